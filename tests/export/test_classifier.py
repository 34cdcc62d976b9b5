"""`Classifier`: what the model says, of images in every form, with an adapter as its training left it."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from peft_vprompt import data
from peft_vprompt.app import Playground
from peft_vprompt.errors import ClassNamesError, OutputNotFiniteError
from peft_vprompt.experiments import evaluation
from peft_vprompt.export import Classifier
from tests.support.command_line import QUICK, train, vprompt
from tests.support.models import CLASS_NAMES, NEW_NAMES, images, often
from tests.support.peft_behaviours import ROWS, save_row


TRIED = [row for row in ROWS if row != "vpt-on-encoder"]
OFTEN = ("coop", "rpo", "mmrl", "vpt-deep", "lora-on-class-names", "linear")


@pytest.fixture(scope="module")
def saved(tmp_path_factory, clip_path, vit_path, tokenizer_path):
    """The folder of an adapter of a row, made once."""
    made = {}

    def build(row, **options):
        key = (row, *options)
        if key not in made:
            base = clip_path if ROWS[row] == "CLIPModel" else vit_path
            made[key] = save_row(tmp_path_factory.mktemp(row), row, base, tokenizer_path, **options)
        return made[key]

    return build


def pictures(count=3):
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (40, 36 + i, 3), dtype=np.uint8)) for i in range(count)]


@pytest.mark.parametrize("row", often(TRIED, OFTEN))
def test_it_says_what_the_model_says(row, saved):
    classifier = Classifier.from_pretrained(saved(row), device="cpu")
    pixels = images(3)
    with torch.no_grad():
        expected = classifier.model(pixel_values=pixels).logits.softmax(-1)
    torch.testing.assert_close(classifier.probabilities(pixels, batch_size=2), expected, rtol=0, atol=1e-6)
    found = classifier(pixels, top_k=2)
    values, indices = expected.topk(2)
    assert [[p.label for p in row] for row in found] == [
        [classifier.class_names[i] for i in r] for r in indices.tolist()
    ]
    np.testing.assert_allclose([[p.probability for p in row] for row in found], values, atol=1e-6)
    features = classifier.embed(pixels, batch_size=2)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(3))
    logits, again = classifier.logits_and_features_of({"pixel_values": pixels})
    torch.testing.assert_close(again, features, rtol=0, atol=1e-6)
    torch.testing.assert_close(logits.softmax(-1), expected, rtol=0, atol=1e-6)


def test_images_in_every_form(saved, tmp_path):
    classifier = Classifier.from_pretrained(saved("coop"), device="cpu")
    opened = pictures()
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for image, path in zip(opened, paths, strict=True):
        image.save(path)
    pixels = classifier.image_processor(opened, return_tensors="pt")["pixel_values"]
    expected = classifier.probabilities(pixels)
    for given in (opened, paths, [str(path) for path in paths], iter(opened), [opened[0], str(paths[1]), paths[2]]):
        torch.testing.assert_close(classifier.probabilities(given, batch_size=2), expected)
    torch.testing.assert_close(classifier.probabilities(list(pixels)), expected)
    one = [classifier(given, top_k=1) for given in (opened[0], paths[0], str(paths[0]), pixels[0])]
    assert {found[0].label for found in one} == {classifier(opened, top_k=1)[0][0].label} <= set(CLASS_NAMES)
    assert classifier([], top_k=1) == [] and len(classifier(opened[0], top_k=99)) == len(CLASS_NAMES)
    grey = np.arange(1600).reshape(40, 40)
    deep, path = Image.fromarray((grey * 40).astype(np.uint16)), tmp_path / "deep.png"
    deep.save(path)
    as_seen = Image.fromarray(np.round(grey * 40 * (255 / 65535)).astype(np.uint8))
    for given in (deep, path):
        torch.testing.assert_close(classifier.probabilities(given), classifier.probabilities(as_seen))


def test_what_is_no_image(saved, tmp_path):
    classifier = Classifier.from_pretrained(saved("coop"), device="cpu")
    (tmp_path / "broken.png").write_bytes(b"no image")
    for given, error, message in (
        (tmp_path / "none.png", FileNotFoundError, "none.png"),
        (tmp_path / "broken.png", ValueError, "Cannot read the image .*broken.png"),
        ([np.zeros((4, 4, 3))], TypeError, "Image.fromarray"),
        (3, TypeError, "int"),
        ([torch.zeros(3, 32, 32), torch.zeros(3, 8, 8)], ValueError, "one shape"),
        (torch.zeros(1, 3, 8, 8), ValueError, "32"),
    ):
        with pytest.raises(error, match=message):
            classifier(given)
    with pytest.raises(ValueError, match="top_k"):
        classifier(pictures(1), top_k=0)


def test_other_classes(saved):
    classifier = Classifier.from_pretrained(saved("coop"), class_names=NEW_NAMES, device="cpu")
    assert {p.label for p in classifier(images(1)[0])} == set(NEW_NAMES) == set(classifier.class_names)
    classifier.set_class_names(CLASS_NAMES)
    expected = Classifier.from_pretrained(saved("coop"), device="cpu").probabilities(images())
    torch.testing.assert_close(classifier.probabilities(images()), expected)
    for row in ("classifier-r", "linear"):
        with pytest.raises(ValueError, match="classes"):
            Classifier.from_pretrained(saved(row), class_names=NEW_NAMES, device="cpu")


def test_several_labels_have_a_probability_each(saved):
    classifier = Classifier.from_pretrained(saved("coop", problem_type="multi_label_classification"), device="cpu")
    with torch.no_grad():
        expected = classifier.model(pixel_values=images()).logits.sigmoid()
    assert classifier.multi_label
    torch.testing.assert_close(classifier.probabilities(images()), expected)


def test_classes_that_nothing_says(saved, tmp_path):
    folder = saved("coop")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes(open(f"{folder}/{name}", "rb").read())  # noqa: SIM115
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["class_names"] = None
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ClassNamesError, match="--class-names"):
        Classifier.from_pretrained(tmp_path, device="cpu")
    assert len(Classifier.from_pretrained(tmp_path, class_names=NEW_NAMES, device="cpu").class_names) == 3


def test_what_the_training_left(clip_path, colours, tmp_path):
    """Image size, and the classes that were kept back."""
    train(tmp_path, clip_path, colours, "--method", "coop", "--base-novel", "--image-size", 48, *QUICK)
    classifier = Classifier.from_pretrained(tmp_path, device="cpu")
    results = json.loads((tmp_path / "results.json").read_text())
    assert classifier.class_names == results["classes"]["base"] + results["classes"]["novel"]
    assert classifier.preprocess(pictures())["pixel_values"].shape == (3, 3, 48, 48)


def test_a_model_that_diverged_is_refused(saved, tmp_path):
    classifier = Classifier.from_pretrained(saved("coop"), device="cpu")
    with torch.no_grad():
        classifier.model.base_model.text_encoder.active_prompts.tokens.fill_(float("nan"))
    with pytest.raises(OutputNotFiniteError, match="NaN or infinity for 3 of 3 images"):
        classifier(pictures())


def test_the_background_of_the_training_is_that_of_predictions(clip_path, colours, tmp_path):
    train(tmp_path / "run", clip_path, colours, "--method", "coop", "--background", "black", *QUICK)
    assert Classifier.from_pretrained(tmp_path / "run", device="cpu").background == "black"
    Image.new("RGBA", (40, 40), (255, 255, 255, 0)).save(tmp_path / "clear.png")
    Image.new("RGB", (40, 40), "black").save(tmp_path / "black.png")
    found = {}
    for name, more in (("clear", ()), ("black", ()), ("white", ("--background", "white"))):
        image = tmp_path / f"{'clear' if name == 'white' else name}.png"
        given = ("--adapter", tmp_path / "run", "--data", image, "--output", tmp_path / f"{name}.jsonl", *more)
        vprompt("predict", *given)
        found[name] = json.loads((tmp_path / f"{name}.jsonl").read_text())["probability"]
    assert found["clear"] == found["black"] != found["white"]
    page = Playground([str(tmp_path / "run")], device="cpu")
    clear, black = (page.compare(tmp_path / f"{name}.png", page.class_names, ["run"]) for name in ("clear", "black"))
    assert clear == black


def test_the_background_of_the_training_is_that_of_all_commands(clip_path, colours, tmp_path, monkeypatch):
    train(tmp_path / "run", clip_path, colours, "--method", "coop", "--background", "black", *QUICK)

    def stop(options, *_):
        raise ValueError(f"read on {options.background}")

    monkeypatch.setattr(data, "load_split", stop)
    monkeypatch.setattr(evaluation, "load_split", stop)
    monkeypatch.setattr(sys.modules["vprompt.features"], "_images", stop)
    more = ("--adapter", tmp_path / "run", "--data", colours, "--label-column", "colour", "--output", tmp_path / "out")
    for command in ("evaluate", "export", "features"):
        assert "read on black" in vprompt(command, *more, code=2)
        assert "read on red" in vprompt(command, *more, "--background", "red", code=2)
