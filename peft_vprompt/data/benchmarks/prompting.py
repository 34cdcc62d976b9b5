"""The data sets that prompt learning is compared on: eleven of CoOp's paper, and four shifts of ImageNet.

Folders, split files and templates are those of KaiyangZhou/CoOp (`DATASETS.md`, `datasets/*.py`, `trainers/zsclip.py`;
Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022). Class names and their order are read from the
published files, with their underscores, which methods read as blanks, but for CLAP. Nothing is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset

from ...utils.io import read_json, read_text
from ...utils.validation import shorten
from ..few_shot import published_few_shot
from .task import SPLITS, Published, Rows, Task, existing, rows_of


CLASS_NAMES = "classnames.txt"
#: What the papers put class names into, unless a data set has a text of its own.
PHOTO = "a photo of a {}."


@dataclass(frozen=True)
class PromptingTask(Task):
    """One of these data sets.

    Attributes:
        reader: reads its published files: `reader(folder, folder of the images, source)`.
        source: the file that says splits or class names.
        hub_id: a copy on the Hub, whose splits and names of classes are its own; None where none is known.
    """

    reader: Callable[[Path, Path, str], Published] = field(kw_only=True)
    source: str = CLASS_NAMES
    hub_id: str | None = None

    @property
    def draw(self) -> Callable[..., Dataset]:
        """How few shots are drawn: as the published lists are."""
        return published_few_shot

    def read(self, folder: Path) -> Published:
        """Read the published files.

        Raises:
            FileNotFoundError: files or images are missing; names them.
            ValueError: a file cannot be read.
        """
        return self.reader(folder, folder / self.image_folder, self.source)


def _read_split_file(folder: Path, images: Path, source: str) -> Published:
    """Read a file `split_zhou_*.json`: rows of path, label and class name by split."""
    file = existing(folder / source)
    content = read_json(file)
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in SPLITS.values()):
        raise ValueError(f"Expected a JSON object with lists train, val and test in {file}. Received another form.")
    names: dict[int, str] = {}
    splits = {}
    for split, published in SPLITS.items():
        rows = [_split_row(row, file) for row in content[published]]
        for _, label, name in rows:
            if names.setdefault(label, name) != name:
                raise ValueError(f"{file} calls class {label} both {names[label]!r} and {name!r}. Download it again.")
        splits[split] = rows_of(images, [(path, label) for path, label, _ in rows], source)
    return Published(splits, names)


def _split_row(row: Any, file: Path) -> tuple[str, int, str]:
    match row:
        case [str(path), int(label), str(name)] if label >= 0:
            return path, label, name
    raise ValueError(f"Expected rows of path, label and class name in {file}. Received: {shorten([repr(row)])[:80]}.")


def _read_aircraft(folder: Path, images: Path, source: str) -> Published:
    """Read FGVC Aircraft's lists: lines of an image's number and its variant."""
    variants = read_text(existing(folder / source)).splitlines()
    label = {name.strip(): number for number, name in enumerate(variants)}
    splits = {}
    for split, published in SPLITS.items():
        file = existing(folder / f"images_variant_{published}.txt")
        rows = []
        for line in read_text(file).splitlines():
            image, _, name = line.strip().partition(" ")
            if name not in label:
                raise ValueError(
                    f"Expected lines of an image and a variant of {source} in {file}. Received: {line!r}."
                )
            rows.append((f"{image}.jpg", label[name]))
        splits[split] = rows_of(images, rows, file.name)
    return Published(splits, {number: name for name, number in label.items()})


def _read_imagenet(folder: Path, images: Path, source: str) -> Published:
    """Read ImageNet's folders `train` and `val`, of which the latter is tested on."""
    names = _folder_names(folder, source)
    numbers = {wnid: label for label, wnid in enumerate(sorted(names))}
    splits = {"train": _read_folders(images / "train", numbers), "test": _read_folders(images / "val", numbers)}
    return Published(splits, {number: names[wnid] for wnid, number in numbers.items()})


def _read_shift(folder: Path, images: Path, source: str) -> Published:
    """Read a shift with a folder for each class, of all thousand or some of them, by ImageNet's ids."""
    names = _folder_names(folder, source)
    here = sorted(path.name for path in _class_folders(images))
    if unknown := [name for name in here if name not in names]:
        raise ValueError(f"{source} has no name for the folders {shorten(unknown, 5)} of {images}. Is it ImageNet's?")
    numbers = {wnid: label for label, wnid in enumerate(here)}
    return Published(
        {"test": _read_folders(images, numbers)}, {number: names[wnid] for wnid, number in numbers.items()}
    )


def _read_numbered(folder: Path, images: Path, source: str) -> Published:
    """Read a shift with folders 0 to 999, ImageNet's labels."""
    names = _folder_names(folder, source)
    numbers = {str(label): label for label in range(len(names))}
    in_order = dict(enumerate(names[wnid] for wnid in sorted(names)))
    return Published({"test": _read_folders(images, numbers)}, in_order)


def _folder_names(folder: Path, source: str) -> dict[str, str]:
    """Return class names by folder; the file lies in the folder, or in ImageNet's beside it."""
    beside = folder.parent / "imagenet" / source
    file = existing(folder / source if (folder / source).is_file() or not beside.is_file() else beside)
    names = {}
    for line in read_text(file).splitlines():
        wnid, _, name = line.strip().partition(" ")
        if not name:
            raise ValueError(f"Expected lines of a folder and a class name in {file}. Received: {line!r}.")
        names[wnid] = name.strip()
    return names


def _class_folders(images: Path) -> list[Path]:
    if not images.is_dir():
        raise FileNotFoundError(f"No folder {images}. The published archive has it; unpack it there.")
    return [path for path in images.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _read_folders(images: Path, numbers: dict[str, int]) -> Rows:
    """Return the images of class folders, in the order of their names."""
    missing = sorted(set(numbers) - {path.name for path in _class_folders(images)})
    if missing:
        raise FileNotFoundError(f"{images} has no folder {shorten(missing, 5)}. Unpack the published archive again.")
    rows = []
    for name, label in numbers.items():
        files = sorted(file.path for file in os.scandir(images / name) if not file.name.startswith("."))
        if not files:
            raise FileNotFoundError(f"{images / name} has no image. Unpack the published archive again.")
        rows += [(path, label) for path in files]
    return rows


def _task(name: str, title: str, num_classes: int, **fields: Any) -> PromptingTask:
    usual: dict[str, Any] = {"reader": _read_split_file, "template": PHOTO}
    return PromptingTask("coop-11", name, title, num_classes, **usual | fields)


def _shift(name: str, title: str, num_classes: int, place: str, **fields: Any) -> PromptingTask:
    usual: dict[str, Any] = {"reader": _read_shift, "place": place, "template": PHOTO}
    return PromptingTask("imagenet-shifts", name, title, num_classes, **usual | fields)


TASKS = (
    _task("imagenet", "ImageNet", 1000, image_folder="images", reader=_read_imagenet, hub_id="ILSVRC/imagenet-1k"),
    _task(
        "caltech101",
        "Caltech101",
        100,
        place="caltech-101",
        image_folder="101_ObjectCategories",
        source="split_zhou_Caltech101.json",
        hub_id="dpdl-benchmark/caltech101",
    ),
    _task(
        "oxford_pets",
        "OxfordPets",
        37,
        image_folder="images",
        source="split_zhou_OxfordPets.json",
        template="a photo of a {}, a type of pet.",
        hub_id="timm/oxford-iiit-pet",
    ),
    _task(
        "stanford_cars",
        "StanfordCars",
        196,
        source="split_zhou_StanfordCars.json",
        hub_id="tanganke/stanford_cars",
    ),
    _task(
        "oxford_flowers",
        "Flowers102",
        102,
        image_folder="jpg",
        source="split_zhou_OxfordFlowers.json",
        template="a photo of a {}, a type of flower.",
        hub_id="dpdl-benchmark/oxford_flowers102",
    ),
    _task(
        "food101",
        "Food101",
        101,
        place="food-101",
        image_folder="images",
        source="split_zhou_Food101.json",
        template="a photo of {}, a type of food.",
        hub_id="ethz/food101",
    ),
    _task(
        "fgvc_aircraft",
        "FGVCAircraft",
        100,
        image_folder="images",
        reader=_read_aircraft,
        source="variants.txt",
        template="a photo of a {}, a type of aircraft.",
    ),
    _task("sun397", "SUN397", 397, image_folder="SUN397", source="split_zhou_SUN397.json", hub_id="tanganke/sun397"),
    _task(
        "dtd",
        "DTD",
        47,
        image_folder="images",
        source="split_zhou_DescribableTextures.json",
        template="{} texture.",
        hub_id="tanganke/dtd",
    ),
    _task(
        "eurosat",
        "EuroSAT",
        10,
        image_folder="2750",
        source="split_zhou_EuroSAT.json",
        template="a centered satellite photo of {}.",
        hub_id="tanganke/eurosat",
    ),
    _task(
        "ucf101",
        "UCF101",
        101,
        image_folder="UCF-101-midframes",
        source="split_zhou_UCF101.json",
        template="a photo of a person doing {}.",
    ),
    _shift(
        "v2",
        "ImageNetV2",
        1000,
        "imagenetv2",
        image_folder="imagenetv2-matched-frequency-format-val",
        reader=_read_numbered,
    ),
    _shift("sketch", "ImageNet-Sketch", 1000, "imagenet-sketch", image_folder="images"),
    _shift("a", "ImageNet-A", 200, "imagenet-adversarial", image_folder="imagenet-a"),
    _shift("r", "ImageNet-R", 200, "imagenet-rendition", image_folder="imagenet-r"),
)
