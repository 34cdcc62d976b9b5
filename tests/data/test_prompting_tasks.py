"""CoOp's eleven data sets and ImageNet's shifts: published files on small folders written on the fly, and published draws."""

import gzip
import json

import pytest
from datasets import ClassLabel, Dataset, Image

from peft_vprompt.data import (
    TASKS,
    DataOptions,
    PromptingTask,
    find_task,
    load_images,
    load_split,
    load_task,
    published_few_shot,
)
from peft_vprompt.experiments import run
from peft_vprompt.experiments.models import adapter_config
from peft_vprompt.experiments.supervision import training_images
from tests.support.command_line import QUICK, train, vprompt
from tests.support.labelled_images import save_image


pytestmark = pytest.mark.filterwarnings("ignore:.*classes; the published files name")
#: Names as the papers have them, and those of the published split files.
SPLIT_FILES = {task.name: task for task in TASKS.values() if getattr(task, "source", "").startswith("split_zhou")}
WNIDS = {"n01440764": "tench", "n01443537": "goldfish", "n02119789": "kit fox"}


@pytest.fixture(scope="module")
def published(shared):
    """Read one of the published files."""

    def read(path):
        return json.loads(gzip.decompress((shared / "data" / path).read_bytes()))

    return read


def listed(path):
    """Pictures as `path` says: the same file has the same colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(path, len(path.name))


def write_split_file(folder, name, classes=("Sea_Lake", "Forest"), images=6):
    """A task with a split file, of which the second class comes first."""
    task = SPLIT_FILES[name]
    root = folder / task.folder
    rows = {
        split: [
            [f"{split}/{label}_{number}.png", label, classes[label]]
            for label in reversed(range(len(classes)))
            for number in range(images)
        ]
        for split in ("train", "val", "test")
    }
    for path, *_ in (row for split in rows.values() for row in split):
        listed(root / task.image_folder / path)
    (root / task.source).write_text(json.dumps(rows))
    return root


def write_classes(folder, names=tuple(WNIDS)):
    for name in names:
        listed(folder / name / f"{name}_1.JPEG.png")


def write_imagenet(folder):
    lines = [f"{wnid} {name}" for wnid, name in WNIDS.items()]
    write_classes(folder / "imagenet" / "images" / "train")
    write_classes(folder / "imagenet" / "images" / "val")
    (folder / "imagenet" / "classnames.txt").write_text("\n".join(reversed(lines)))


def classes(rows):
    return [rows.features["label"].names[label] for label in rows["label"]]


@pytest.mark.parametrize(
    "name", ["caltech101", "dtd", "eurosat", "oxford_flowers", "oxford_pets", "stanford_cars", "ucf101"]
)
def test_shots_are_those_of_the_published_lists(name, published):
    task = SPLIT_FILES[name]
    rows = published(f"splits/{task.source}.gz")["train"]
    names = {label: title for _, label, title in rows}
    images = Dataset.from_dict({"path": [f"{task.image_folder}/{path}".lstrip("/") for path, *_ in rows]})
    label = ClassLabel(names=[names[number] for number in sorted(names)])
    images = images.add_column("label", [number for _, number, _ in rows], feature=label)
    lists = published(f"fewshot/{name}.json.gz")
    assert len(lists) == 15
    for key, chosen in lists.items():
        shots, seed = (int(part.split("_")[1]) for part in key.split("-"))
        drawn = published_few_shot(images, shots, seed)
        assert list(map(list, zip(drawn["path"], drawn["label"], strict=True))) == chosen["train"], key
    half = label.names[: len(label.names) // 2]
    assert set(published_few_shot(images, 4, 1, class_names=half)["path"]) == {
        path for path, number in lists["shot_4-seed_1"]["train"] if number < len(half)
    }


def test_class_names_and_templates_are_the_published_ones(shared):
    names = json.loads((shared / "data" / "coop_classnames.json").read_text())
    tasks = {task.title: task for task in TASKS.values() if task.benchmark == "coop-11"}
    assert {title: task.num_classes for title, task in tasks.items()} == {
        key: len(value) for key, value in names.items()
    }
    assert all(task.template.count("{}") == 1 for task in TASKS.values() if isinstance(task, PromptingTask))


def test_split_files(tmp_path):
    write_split_file(tmp_path, "eurosat")
    splits = load_task("coop-11/eurosat", tmp_path)
    assert splits["train"].features["label"].names == ["Sea_Lake", "Forest"]  # CLAP reads them so
    assert {name: classes(rows) for name, rows in splits.items()} == dict.fromkeys(
        ("train", "validation", "test"), ["Forest"] * 6 + ["Sea_Lake"] * 6
    )
    together = load_images(DataOptions(tmp_path, benchmark="coop-11/eurosat", train_split="trainval"))
    assert len(together["train"]) == 24 and "validation" not in together


def test_aircraft(tmp_path):
    root = tmp_path / "fgvc_aircraft"
    for split, number in (("train", "1"), ("val", "2"), ("test", "3")):
        listed(root / "images" / f"{number}.jpg")
        (root / f"images_variant_{split}.txt").write_text(f"{number} Boeing 707-320\n")
    (root / "variants.txt").write_text("A300B4\nBoeing 707-320\n")
    splits = load_task("coop-11/fgvc_aircraft", root)
    assert all(classes(rows) == ["Boeing 707-320"] and rows["label"][:] == [1] for rows in splits.values())
    (root / "images_variant_val.txt").write_text("2 Boeing 999\n")
    with pytest.raises(
        ValueError, match="a variant of variants.txt in .*images_variant_val.txt. Received: '2 Boeing 999'"
    ):
        load_task("coop-11/fgvc_aircraft", root)


def test_imagenet_and_its_shifts(tmp_path):
    write_imagenet(tmp_path)
    splits = load_task("coop-11/imagenet", tmp_path)
    assert set(splits) == {"train", "test"} and classes(splits["test"]) == ["tench", "goldfish", "kit fox"]
    # Names come from the file of ImageNet itself; a shift may have some of the classes, or numbers.
    write_classes(tmp_path / "imagenet-adversarial" / "imagenet-a", ["n02119789", "n01440764"])
    shift = load_task("imagenet-shifts/a", tmp_path)["test"]
    assert shift.features["label"].names == ["tench", "kit fox"] == classes(shift)
    numbered = tmp_path / "imagenetv2" / "imagenetv2-matched-frequency-format-val"
    write_classes(numbered, ["0", "1", "2"])
    assert classes(load_task("imagenet-shifts/v2", tmp_path)["test"]) == ["tench", "goldfish", "kit fox"]
    with pytest.raises(ValueError, match="No split 'train' to train on"):
        load_images(DataOptions(tmp_path, benchmark="imagenet-shifts/v2"))
    assert len(load_split(DataOptions(tmp_path, benchmark="imagenet-shifts/v2"))) == 3


def damage_rows(root, rows):
    (root / "split_zhou_EuroSAT.json").write_text(json.dumps({"train": rows, "val": rows, "test": rows}))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (
            lambda root: (root / "split_zhou_EuroSAT.json").unlink(),
            FileNotFoundError,
            "No file .*split_zhou_EuroSAT.json",
        ),
        (
            lambda root: [path.unlink() for path in (root / "2750" / "val").glob("0_*.png")],
            FileNotFoundError,
            r"0_0.png, .* \(6 in all\). split_zhou_EuroSAT.json names 12 images, of which 6 are missing",
        ),
        (lambda root: damage_rows(root, [["a.png", "0", "sea"]]), ValueError, "rows of path, label and class name"),
        (
            lambda root: damage_rows(root, [["a", 0, "sea"], ["b", 0, "lake"]]),
            ValueError,
            "class 0 both 'sea' and 'lake'",
        ),
        (lambda root: (root / "split_zhou_EuroSAT.json").write_text("[]"), ValueError, "lists train, val and test"),
    ],
)
def test_broken_split_files(change, error, match, tmp_path):
    change(write_split_file(tmp_path, "eurosat"))
    with pytest.raises(error, match=match):
        load_task("coop-11/eurosat", tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda root: (root / "imagenet" / "classnames.txt").unlink(), "No file .*classnames.txt"),
        (
            lambda root: write_classes(root / "imagenet-sketch" / "images", ["n00000001"]),
            "no name for the folders n00000001",
        ),
        (lambda root: (root / "imagenet" / "classnames.txt").write_text("n01440764\n"), "Received: 'n01440764'"),
    ],
)
def test_broken_shifts(change, match, tmp_path):
    write_imagenet(tmp_path)
    write_classes(tmp_path / "imagenet-sketch" / "images")
    change(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        load_task("imagenet-shifts/sketch", tmp_path)


def test_training_takes_the_published_shots_and_text(clip_path, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(run, "training_images", lambda *given: drawn.append(training_images(*given)) or drawn[-1])
    data = write_split_file(tmp_path / "data", "eurosat", classes=("red", "blue", "green", "white"))
    options = ("--benchmark", "coop-11/eurosat", "--base-novel", "--shots", 2)
    train(tmp_path / "run", clip_path, data, "--method", "coop", *QUICK, *options)
    assert adapter_config(tmp_path / "run").template == find_task("coop-11/eurosat").template
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["classes"] == {"base": ["red", "blue"], "novel": ["green", "white"]}
    chosen = published_few_shot(load_task("coop-11/eurosat", data)["train"], 2, 1, class_names=["red", "blue"])
    assert paths(drawn[0].rows) == paths(chosen)
    assert "novel (2 classes, 12 images)" in vprompt("evaluate", "--adapter", tmp_path / "run", "--subset", "novel")


def paths(rows):
    return {row["image"]["path"] for row in rows.cast_column("image", Image(decode=False))}
