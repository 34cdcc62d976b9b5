"""Data of every kind through the commands: trained on, evaluated on, and what is said where they do not fit."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from peft import get_peft_model
from PIL import Image
from transformers import CLIPModel

from peft_vprompt import ContextOptConfig
from peft_vprompt.export import Classifier
from tests.support.command_line import next_command, vprompt
from tests.support.saved_models import COLOURS


LONG = ("--all-classes", "--shots", 0, "--epochs", 4, "--batch-size", 8, "--lr", 0.05)
SHORT = ("--all-classes", "--shots", 2, "--epochs", 1, "--batch-size", 4, "--lr", 0.01)


@pytest.fixture(autouse=True)
def quiet():
    """Warnings are for the command's own display here."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        yield


def write_colours(root, classes, names=None, split=""):
    """An image folder of noisy colours: number of images by colour; `names` says what a colour's folder is called."""
    for colour, count in classes.items():
        place = root / split / (names or {}).get(colour, colour)
        place.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            noise = np.random.default_rng([index, sorted(COLOURS).index(colour)]).integers(-20, 20, (32, 32, 3))
            image = (np.asarray(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(image).save(place / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_colours(tmp_path_factory.mktemp("photos"), dict.fromkeys(COLOURS, 8))


def trained(path, model, data, *more):
    vprompt("train", "--output", path, "--model", model, "--data", data, *more)
    return path


def evaluated(adapter, *more):
    output = Path(adapter) / "again.json"
    vprompt("evaluate", "--adapter", adapter, "--output", output, *more)
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, photos, clip_path, vit_path):
    """Adapters of three kinds by name: prompts for any class, a context for each class, a head."""
    folder = tmp_path_factory.mktemp("adapters")
    specific = ("--method", "coop", "--set", "class_specific=true")
    return {
        "any": trained(folder / "any", clip_path, photos, "--method", "coop", *LONG),
        "specific": trained(folder / "specific", clip_path, photos, *specific, *LONG),
        "head": trained(folder / "head", vit_path, photos, "--method", "vpt", *LONG),
    }


@pytest.mark.parametrize("kind", ("any", "specific", "head"))
def test_part_of_the_classes_is_compared_among_all(kind, adapters, photos, tmp_path):
    """Two halves of the classes have, together, the accuracy of the whole: none is easier for being alone."""
    halves = [
        write_colours(tmp_path / half[0], dict.fromkeys(half, 8)) for half in (("blue", "red"), ("green", "white"))
    ]
    results = [evaluated(adapters[kind], "--data", half) for half in halves]
    whole = evaluated(adapters[kind], "--data", write_colours(tmp_path / "whole", dict.fromkeys(COLOURS, 8)))
    assert [result["classes"] for result in results] == [sorted(COLOURS)] * 2
    assert [result["images"] for result in (*results, whole)] == [16, 16, 32]
    assert np.mean([result["accuracy"]["all"] for result in results]) == whole["accuracy"]["all"]
    assert whole["accuracy"]["all"] > 0

    named = write_colours(tmp_path / "named", {"white": 8, "green": 8}, {"white": "n1", "green": "n2"})
    shown = vprompt("evaluate", "--adapter", adapters[kind], "--data", named, code=2)
    assert "none of the adapter's 4: n1, n2" in shown
    names = tmp_path / "names.csv"
    names.write_text("folder,name\nn2,Green\nn1,white\n")
    assert evaluated(adapters[kind], "--data", named, "--class-names", names)["accuracy"] == results[1]["accuracy"]

    numbers = {colour: str(number) for number, colour in enumerate(sorted(COLOURS))}
    numbered = write_colours(tmp_path / "numbered", {"blue": 8, "red": 8}, numbers)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(sorted(COLOURS)))
    assert evaluated(adapters[kind], "--data", numbered, "--class-names", names)["accuracy"] == results[0]["accuracy"]

    names.write_text("\n".join(sorted(COLOURS, reverse=True)))
    given = evaluated(adapters[kind], "--data", tmp_path / "whole", "--class-names", names)
    assert given["accuracy"] == whole["accuracy"]


def test_a_name_that_is_nearly_right(adapters, tmp_path):
    some = write_colours(tmp_path, {"white": 5, "green": 4}, {"green": "greem"})
    shown = vprompt("evaluate", "--adapter", adapters["any"], "--data", some, code=2)
    assert "The nearest to 'greem' is 'green'" in shown and "--new-classes" in shown


def test_new_classes(adapters, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    some = write_colours(tmp_path / "some", {"white": 5, "green": 4}, {"white": "fox", "green": "owl"})
    result = evaluated(adapters["any"], "--data", some, "--new-classes")
    assert result["classes"] == ["fox", "owl"]
    again = vprompt(*next_command(vprompt("evaluate", "--adapter", adapters["any"], "--data", some, "--new-classes")))
    assert f"Accuracy on all (2 classes, 9 images): {result['accuracy']['all']:.2f} %" in again
    for kind, refused in (
        ("specific", "means nothing for other names. Received: fox, owl"),
        ("head", "for fox, owl. Leave"),
    ):
        assert refused in vprompt("evaluate", "--adapter", adapters[kind], "--data", some, "--new-classes", code=2)
    part = write_colours(tmp_path / "part", {"white": 5, "green": 4})
    again = evaluated(adapters["specific"], "--data", part, "--new-classes")
    assert (again["classes"], again["chance"]) == (["green", "white"], {"all": 50.0})
    shown = vprompt("evaluate", "--adapter", adapters["head"], "--data", part, "--new-classes", code=2)
    assert "for green, white. Leave --new-classes out" in shown


@pytest.mark.parametrize("command", ("train", "evaluate", "sweep", "noise-study", "pseudo-label"))
def test_an_output_inside_the_data_is_refused(command, adapters, clip_path, photos, monkeypatch):
    monkeypatch.chdir(photos)
    base = ("--adapter", adapters["any"]) if command == "evaluate" else ("--model", clip_path)
    places = [("--output", photos / "run"), ("--output", "run"), ("--data", photos / "*", "--output", photos / "run")]
    places += [("--diagnose", photos / "run")] if command == "evaluate" else []
    before = sorted(photos.rglob("*"))
    for place in places:
        shown = vprompt(command, *base, "--data", ".", *place, code=2)
        assert "Expected an output outside of the data" in shown and f"{photos.parent / photos.name}-run" in shown
    assert sorted(photos.rglob("*")) == before


@pytest.mark.parametrize(("subset", "half"), [("base", "first"), ("novel", "second")])
def test_classes_that_were_all_trained_on_are_not_passed_off_as_novel(subset, half, adapters):
    shown = vprompt("evaluate", "--adapter", adapters["any"], "--subset", subset)
    assert f"{subset!r} is the {half} half of them, and none of them is new" in shown
    assert "none of them is new" not in vprompt("evaluate", "--adapter", adapters["any"])


def test_base_and_novel_are_those_of_the_training(clip_path, photos, tmp_path):
    trained(tmp_path / "a", clip_path, photos, "--method", "coop", "--base-novel", *SHORT[1:])
    saved = json.loads((tmp_path / "a" / "results.json").read_text())
    some = write_colours(tmp_path / "some", {"white": 5, "green": 4})
    for subset, images in (("base", 4), ("novel", 5)):
        result = evaluated(tmp_path / "a", "--data", some, "--subset", subset)
        assert (result["classes"], result["images"]) == (saved["classes"][subset], images)


class TestTheTrainingsOwnImages:
    """Named by `--data`, they are split as they were in the training, however the place is written."""

    def test_through_a_link(self, adapters, photos, tmp_path):
        (tmp_path / "link").symlink_to(photos.parent)
        result = evaluated(adapters["any"], "--data", tmp_path / "link" / photos.name)
        assert result["images"] == evaluated(adapters["any"])["images"] == 8

    def test_with_options_of_the_split(self, clip_path, photos, tmp_path):
        rows = [f"{path},{path.parent.name},{int(path.stem) % 2}" for path in sorted(photos.glob("*/*.png"))]
        (tmp_path / "t.csv").write_text("\n".join(["image,label,part", *rows]))
        more = ("--method", "coop", "--split-column", "part", "--train-split", 0, "--test-split", 1, *SHORT)
        trained(tmp_path / "a", clip_path, tmp_path / "t.csv", *more)
        assert evaluated(tmp_path / "a", "--data", tmp_path / "t.csv")["images"] == 16
        trained(tmp_path / "b", clip_path, photos, "--method", "coop", "--test-fraction", 0, *SHORT)
        shown = vprompt("evaluate", "--adapter", tmp_path / "b", "--data", photos, code=2)
        assert "There are no test images" in shown
        assert evaluated(tmp_path / "b", "--data", photos, "--split", "train")["images"] == 32

    def test_options_that_are_given_as_they_are_by_default(self, clip_path, photos, tmp_path):
        rows = [f"{path},{path.parent.name > 'h'},{path.parent.name}" for path in sorted(photos.glob("*/*.png"))]
        (tmp_path / "t.csv").write_text("\n".join(["image,label,fine", *rows]))
        more = ("--method", "coop", "--label-column", "fine", "--test-fraction", 0.5, *SHORT)
        trained(tmp_path / "a", clip_path, tmp_path / "t.csv", *more)
        again = ("--data", tmp_path / "t.csv", "--label-column", "label", "--new-classes")
        shown = vprompt("evaluate", "--adapter", tmp_path / "a", *again, code=2)
        assert "Received: label_column" in shown
        assert evaluated(tmp_path / "a", *again, "--split", "train")["classes"] == ["False", "True"]
        fraction = ("--data", tmp_path / "t.csv", "--test-fraction", 0.3)
        shown = vprompt("evaluate", "--adapter", tmp_path / "a", *fraction, code=2)
        assert "test_fraction=0.5. Received: test_fraction=0.3" in shown

    def test_split_in_another_way(self, adapters, photos, tmp_path):
        base = ("evaluate", "--adapter", adapters["any"], "--data", photos)
        assert "test_fraction=0.3. Received: test_fraction=0.5" in vprompt(*base, "--test-fraction", 0.5, code=2)
        (tmp_path / "names.txt").write_text("\n".join(sorted(COLOURS, reverse=True)))
        assert "Received: class_names" in vprompt(*base, "--class-names", tmp_path / "names.txt", code=2)
        whole = evaluated(
            adapters["any"], "--data", photos, "--class-names", tmp_path / "names.txt", "--split", "train"
        )
        assert whole["images"] == 24


class TestWithoutTestImages:
    def test_all_images_are_trained_on(self, clip_path, photos, tmp_path):
        more = ("--method", "coop", "--test-fraction", 0, *SHORT)
        shown = vprompt("train", "--output", tmp_path, "--model", clip_path, "--data", photos, *more)
        assert "no test images" in shown
        results = json.loads((tmp_path / "results.json").read_text())
        assert results["accuracy"] == results["test_images"] == {}
        assert "--data path/to/images" in shown
        assert "--split train" in vprompt("evaluate", "--adapter", tmp_path, code=2)
        assert evaluated(tmp_path, "--split", "train")["images"] == 32

    def test_images_held_out(self, clip_path, photos, tmp_path):
        more = ("--method", "coop", "--test-fraction", 0, "--val-fraction", 0.25, "--watch", *SHORT)
        shown = vprompt("train", "--output", tmp_path, "--model", clip_path, "--data", photos, *more)
        held_out = json.loads((tmp_path / "results.json").read_text())["validation"]
        assert f"held out of the training images: all {held_out['all']:.2f} %" in shown
        assert evaluated(tmp_path, "--split", "validation")["accuracy"] == held_out
        assert f"Accuracy on all (4 classes, 8 images): {held_out['all']:.2f} %" in vprompt(*next_command(shown))

    def test_nothing_to_watch(self, clip_path, photos, tmp_path):
        more = ("--method", "coop", "--test-fraction", 0, "--watch", *SHORT)
        shown = vprompt("train", "--output", tmp_path, "--model", clip_path, "--data", photos, *more, code=2)
        assert "--val-fraction" in shown

    def test_unlabelled_images_alone(self, clip_path, photos, tmp_path):
        flat = tmp_path / "flat"
        flat.mkdir()
        for number, path in enumerate(sorted(photos.glob("*/*.png"))):
            (flat / f"{number}.png").write_bytes(path.read_bytes())
        names = tmp_path / "names.txt"
        base = ("--output", tmp_path / "a", "--model", clip_path, "--data", flat, "--method", "coop", *SHORT)
        assert "--class-names" in vprompt("train", *base, "--unlabelled", code=2)
        names.write_text(", ".join(COLOURS))
        assert "one name per line" in vprompt("train", *base, "--unlabelled", "--class-names", names, code=2)
        names.write_text("\n".join(COLOURS))
        vprompt("train", *base, "--unlabelled", "--class-names", names)
        results = json.loads((tmp_path / "a" / "results.json").read_text())
        assert results["classes"] == {"all": list(COLOURS)} and results["accuracy"] == {}

    @pytest.mark.parametrize("command", ("sweep", "noise-study"))
    def test_commands_that_compare_need_some(self, command, clip_path, photos, tmp_path):
        more = ("--output", tmp_path, "--model", clip_path, "--data", photos, "--test-fraction", 0)
        assert "test images" in vprompt(command, *more, code=2)


def test_a_sweep_rates_on_the_datas_own_validation_images(vit_path, tmp_path):
    for split, count in (("train", 4), ("val", 3), ("test", 2)):
        write_colours(tmp_path / "data", dict.fromkeys(COLOURS, count), split=split)
    more = ("--method", "linear", "--epochs", 1, "--rates", 1, "--weight-decays", 0, "--seeds", 1)
    vprompt("sweep", "--output", tmp_path / "sweep", "--model", vit_path, "--data", tmp_path / "data", *more)
    report = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert report["images"] == {"train": 16, "validation": 12, "test": 8}
    assert report["data"]["path"] == "../data"


@pytest.fixture
def validated(clip_path, tmp_path):
    """Training and validation images, and how they are trained on without any to test on."""
    for split, count in (("train", 4), ("val", 3)):
        write_colours(tmp_path / "data", dict.fromkeys(COLOURS, count), split=split)
    return clip_path, tmp_path / "data", "--test-fraction", 0, *SHORT


def test_a_search_takes_the_datas_own_validation_images(validated, tmp_path):
    search = ("--method", "tip-adapter-f", "--set", "search_scale=[7,3]", "--set", "search_step=[3,4]")
    trained(tmp_path / "a", *validated, *search)
    found = json.loads((tmp_path / "a" / "results.json").read_text())
    assert found["search"]["accuracy"] == pytest.approx(found["validation"]["all"])
    assert evaluated(tmp_path / "a", "--split", "validation")["images"] == 12
    write_colours(tmp_path / "data", dict.fromkeys(COLOURS, 4), split="val")
    trained(tmp_path / "a", *validated, *search)
    assert json.loads((tmp_path / "a" / "results.json").read_text())["identity"] != found["identity"]


def test_watching_takes_the_datas_own_validation_images(validated, tmp_path):
    trained(tmp_path / "a", *validated, "--method", "coop", "--watch")
    assert "validation" in json.loads((tmp_path / "a" / "results.json").read_text())


class TestBadImages:
    @pytest.fixture
    def spoilt(self, tmp_path):
        write_colours(tmp_path / "spoilt", {"white": 5, "green": 5})
        (tmp_path / "spoilt" / "white" / "0.png").write_bytes(b"")
        return tmp_path / "spoilt"

    def test_training(self, clip_path, spoilt, tmp_path):
        base = ("--output", tmp_path / "a", "--model", clip_path, "--data", spoilt, "--method", "coop", *SHORT)
        shown = vprompt("train", *base, code=2)
        assert "1 of 10 images" in shown and "white/0.png" in shown and not (tmp_path / "a").exists()
        vprompt("train", *base, "--skip-bad-images")
        assert json.loads((tmp_path / "a" / "results.json").read_text())["test_images"] == {"all": 3}

    def test_evaluation(self, adapters, spoilt):
        assert "white/0.png" in vprompt("evaluate", "--adapter", adapters["any"], "--data", spoilt, code=2)
        assert evaluated(adapters["any"], "--data", spoilt, "--skip-bad-images")["images"] == 9

    def test_pseudo_labels(self, clip_path, spoilt, tmp_path):
        shown = vprompt("pseudo-label", "--output", tmp_path / "l", "--model", clip_path, "--data", spoilt, code=2)
        assert "white/0.png" in shown


def test_results_say_where_the_data_are_from_their_own_folder(clip_path, tmp_path, monkeypatch):
    write_colours(tmp_path / "photos", {"white": 4, "green": 4})
    monkeypatch.chdir(tmp_path)
    trained("runs/a", clip_path, "photos", "--method", "coop", *SHORT)
    results = json.loads((tmp_path / "runs" / "a" / "results.json").read_text())
    assert results["data"]["path"] == "../../photos"
    monkeypatch.chdir("/")
    assert evaluated(tmp_path / "runs" / "a")["accuracy"] == results["accuracy"]


def test_results_of_another_adapter_are_not_used(adapters, clip_path, tmp_path):
    """An adapter that took the place of a trained one has its own classes."""
    taken = tmp_path / "run"
    shutil.copytree(adapters["any"], taken)
    config = ContextOptConfig(class_names=["fox", "owl"], tokenizer_name_or_path=str(clip_path))
    get_peft_model(CLIPModel.from_pretrained(clip_path), config).save_pretrained(taken)
    with pytest.warns(UserWarning, match="is of another adapter than the one beside it"):
        assert Classifier.from_pretrained(taken, device="cpu").class_names == ["fox", "owl"]


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n"])
@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_damaged_weights_beside_results_are_named(command, content, adapters, photos, tmp_path):
    shutil.copytree(adapters["any"], tmp_path / "run")
    (tmp_path / "run" / "adapter_model.safetensors").write_bytes(content)
    more = () if command == "evaluate" else ("--data", photos, "--output", tmp_path / "found.csv")
    shown = vprompt(command, "--adapter", tmp_path / "run", *more, code=2)
    assert "Cannot read the adapter weights" in shown and "Save or download it again" in shown


def test_classes_of_one_name(clip_path, tmp_path):
    numbers = {colour: str(number) for number, colour in enumerate(COLOURS)}
    data = write_colours(tmp_path / "images", dict.fromkeys(COLOURS, 5), numbers)
    (tmp_path / "names.txt").write_text("crane\nowl\ncrane\nred\n")
    more = ("--method", "coop", "--base-novel", "--class-names", tmp_path / "names.txt", *SHORT[1:])
    trained(tmp_path / "a", clip_path, data, *more)
    saved = json.loads((tmp_path / "a" / "results.json").read_text())
    assert saved["classes"] == {"base": ["crane", "owl"], "novel": ["crane", "red"]}
    for subset in ("base", "novel"):
        assert evaluated(tmp_path / "a", "--subset", subset)["accuracy"][subset] == saved["accuracy"][subset]
    assert evaluated(tmp_path / "a", "--subset", "all")["classes"] == ["crane", "owl", "crane", "red"]
