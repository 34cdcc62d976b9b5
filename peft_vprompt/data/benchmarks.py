"""FGVC and VTAB-1k, the tasks that VPT is compared on: their splits as published, read from local folders.

* FGVC: five fine-grained data sets, each a folder with `train.json`, `val.json`, `test.json` ({image path: class id}).
  Class ids become labels in sorted order. Splits: KMnP/vpt, README; Jia et al., ECCV 2022, appendix A.
* VTAB-1k: 19 tasks of Zhai et al., "A Large-scale Study of Representation Learning with the Visual Task Adaptation
  Benchmark", 2019, each a folder with `train800.txt`, `val200.txt`, `test.txt` (lines of "image path, label"), the form in
  which the splits are passed around outside of TensorFlow.

Numbers of classes: KMnP/vpt `tune_vtab.py` and `configs/prompt/`. Nothing is downloaded.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datasets import Dataset, DatasetDict, Features, concatenate_datasets
from PIL.Image import Resampling
from transformers import CLIPImageProcessorPil, ViTImageProcessorPil
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..utils.arguments import typed
from ..utils.io import read_json, read_text
from ..utils.validation import shorten
from .class_names import class_label
from .images import RGBImage


#: Our names of the splits and the published files' stems.
FGVC_SPLITS = {"train": "train", "validation": "val", "test": "test"}
VTAB_SPLITS = {"train": "train800", "validation": "val200", "test": "test"}

#: Name of training and validation images together, on which the last runs of the protocol are trained.
TRAINVAL = "trainval"


@dataclass(frozen=True)
class TransferTask:
    """One task of a benchmark.

    Attributes:
        benchmark: `fgvc` or `vtab-1k`.
        name: name of the task; in VTAB-1k also of its folder.
        title: name in the papers.
        group: group that the papers average over.
        num_classes: number of classes in the papers.
        image_folder: folder of the images inside the task's own.
    """

    benchmark: str
    name: str
    title: str
    group: str
    num_classes: int
    image_folder: str = ""

    @property
    def full_name(self) -> str:
        """Name on the command line."""
        return f"{self.benchmark}/{self.name}"

    @property
    def crop(self) -> Literal["random_crop", "none"]:
        """Augmentation, see `TrainTransform`: FGVC crops and flips, VTAB-1k does not augment."""
        return "random_crop" if self.benchmark == "fgvc" else "none"

    def image_processor(self, size: int):
        """Return the published preprocessing for a model that takes `size` x `size` pixels; ImageNet mean and deviation.

        FGVC: short side to 8/7 of the size (256 for 224), centre crop. VTAB-1k: resized to the size, whatever the shape.
        Source: KMnP/vpt `src/data/transforms.py`, `src/data/datasets/tf_dataset.py`.
        """
        square = {"height": size, "width": size}
        common = {
            "resample": Resampling.BILINEAR,
            "image_mean": list(IMAGENET_DEFAULT_MEAN),
            "image_std": list(IMAGENET_DEFAULT_STD),
        }
        if self.benchmark == "vtab-1k":
            return ViTImageProcessorPil(size=square, **common)
        return CLIPImageProcessorPil(size={"shortest_edge": round(size * 8 / 7)}, crop_size=square, **common)


def _fgvc(name: str, title: str, num_classes: int, image_folder: str = "") -> TransferTask:
    return TransferTask("fgvc", name, title, "fgvc", num_classes, image_folder)


def _vtab(group: str, name: str, title: str, num_classes: int) -> TransferTask:
    return TransferTask("vtab-1k", name, title, group, num_classes)


#: Every task by its full name.
TRANSFER_TASKS: dict[str, TransferTask] = {
    task.full_name: task
    for task in (
        _fgvc("cub", "CUB-200-2011", 200, "images"),
        _fgvc("nabirds", "NABirds", 555, "images"),
        _fgvc("flowers", "Oxford Flowers", 102),
        _fgvc("dogs", "Stanford Dogs", 120, "Images"),
        _fgvc("cars", "Stanford Cars", 196),
        _vtab("natural", "cifar", "CIFAR-100", 100),
        _vtab("natural", "caltech101", "Caltech101", 102),
        _vtab("natural", "dtd", "DTD", 47),
        _vtab("natural", "oxford_flowers102", "Flowers102", 102),
        _vtab("natural", "oxford_iiit_pet", "Pets", 37),
        _vtab("natural", "svhn", "SVHN", 10),
        _vtab("natural", "sun397", "Sun397", 397),
        _vtab("specialised", "patch_camelyon", "Patch Camelyon", 2),
        _vtab("specialised", "eurosat", "EuroSAT", 10),
        _vtab("specialised", "resisc45", "Resisc45", 45),
        _vtab("specialised", "diabetic_retinopathy", "Retinopathy", 5),
        _vtab("structured", "clevr_count", "Clevr/count", 8),
        _vtab("structured", "clevr_dist", "Clevr/distance", 6),
        _vtab("structured", "dmlab", "DMLab", 6),
        _vtab("structured", "kitti", "KITTI/distance", 4),
        _vtab("structured", "dsprites_loc", "dSprites/location", 16),
        _vtab("structured", "dsprites_ori", "dSprites/orientation", 16),
        _vtab("structured", "smallnorb_azi", "SmallNORB/azimuth", 18),
        _vtab("structured", "smallnorb_ele", "SmallNORB/elevation", 9),
    )
}


@typed
def find_tasks(name: str) -> list[TransferTask]:
    """Return the task of that full name, or all tasks of a benchmark.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    found = [task for task in TRANSFER_TASKS.values() if name in (task.full_name, task.benchmark)]
    if not found:
        raise ValueError(
            f"Expected a benchmark (fgvc, vtab-1k) or one of its tasks: {', '.join(TRANSFER_TASKS)}. "
            f"Received: {name!r}."
        )
    return found


@typed
def find_task(name: str) -> TransferTask:
    """Return the task of that full name.

    Raises:
        ValueError: there is none, or the name is of a whole benchmark.
    """
    tasks = find_tasks(name)
    if len(tasks) > 1:
        raise ValueError(f"Expected one task, such as {tasks[0].full_name}. Received: the whole benchmark {name!r}.")
    return tasks[0]


@typed
def load_task(name: str, folder: str | Path, class_names: Sequence[str] | None = None) -> DatasetDict:
    """Read the published splits of a task.

    Args:
        name: full name, such as `vtab-1k/caltech101`.
        folder: the task's folder, or the one that holds a folder of the task's name.
        class_names: names in label order; default: the class ids as text.

    Returns:
        `train`, `validation`, `test` with the columns `image` and `label`.

    Raises:
        FileNotFoundError: a split file or an image is missing.
        ValueError: unknown task, an unreadable line, more classes than the task has, or names that do not fit.
    """
    task = find_task(name)
    folder = Path(folder).expanduser()
    folder = folder / task.name if (folder / task.name).is_dir() else folder
    splits = _read_json(task, folder) if task.benchmark == "fgvc" else _read_lists(folder)
    ids = sorted({label for rows in splits.values() for _, label in rows})
    if task.benchmark == "vtab-1k":
        ids = list(range(max(task.num_classes, ids[-1] + 1)))  # a thousand images need not show every class
    _check_classes(task, ids, class_names)
    names = list(class_names) if class_names else [str(number) for number in ids]
    label = {number: position for position, number in enumerate(ids)}
    features = Features({"image": RGBImage(), "label": class_label(names)})
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {"image": [path for path, _ in rows], "label": [label[number] for _, number in rows]}, features
            )
            for split, rows in splits.items()
        }
    )


def with_trainval(splits: DatasetDict) -> DatasetDict:
    """Return the splits with `trainval`, training and validation images together."""
    return DatasetDict(splits | {TRAINVAL: concatenate_datasets([splits["train"], splits["validation"]])})


@typed
def group_means(accuracies: Mapping[str, float]) -> dict[str, float]:
    """Return the means over the tasks of every group, as the papers report them, by `benchmark/group`.

    Args:
        accuracies: accuracy by full task name.

    Returns:
        `fgvc/fgvc`, `vtab-1k/natural`, `vtab-1k/specialised`, `vtab-1k/structured` as far as all their tasks are there,
        and `vtab-1k/mean`, the mean of the three groups' means, if all three are.

    Raises:
        ValueError: an unknown task.
    """
    groups: dict[str, list[str]] = {}
    for task in TRANSFER_TASKS.values():
        groups.setdefault(f"{task.benchmark}/{task.group}", []).append(task.full_name)
    for name in accuracies:
        find_task(name)
    means = {
        group: statistics.mean(accuracies[name] for name in names)
        for group, names in groups.items()
        if all(name in accuracies for name in names)
    }
    vtab = [value for group, value in means.items() if group.startswith("vtab-1k/")]
    return means | ({"vtab-1k/mean": statistics.mean(vtab)} if len(vtab) == 3 else {})


Rows = list[tuple[str, int]]


def _read_json(task: TransferTask, folder: Path) -> dict[str, Rows]:
    """Read the rows of the splits of an FGVC data set."""
    splits = {}
    for split, stem in FGVC_SPLITS.items():
        content = read_json(_existing(folder / f"{stem}.json"))
        if not isinstance(content, dict) or not all(isinstance(label, int) for label in content.values()):
            raise ValueError(f"Expected a JSON object {{image path: class id}}. Received: {folder / stem}.json.")
        splits[split] = [(_image(folder / task.image_folder, path), label) for path, label in content.items()]
    return splits


def _read_lists(folder: Path) -> dict[str, Rows]:
    """Read the rows of the splits of a VTAB-1k task."""
    splits = {}
    for split, stem in VTAB_SPLITS.items():
        rows = []
        for line in read_text(_existing(folder / f"{stem}.txt")).splitlines():
            path, _, label = line.strip().rpartition(" ")
            if not path or not label.isdigit():
                raise ValueError(f"Expected lines of an image path and a label in {stem}.txt. Received: {line!r}.")
            rows.append((_image(folder, path), int(label)))
        splits[split] = rows
    return splits


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}. The published split files belong beside the images.")
    return path


def _image(folder: Path, path: str) -> str:
    if not (folder / path).is_file():
        raise FileNotFoundError(f"No image {folder / path}, which a split file names.")
    return str(folder / path)


def _check_classes(task: TransferTask, ids: list[int], class_names: Sequence[str] | None) -> None:
    if len(ids) > task.num_classes:
        raise ValueError(f"{task.title} has {task.num_classes} classes. Received: {len(ids)} in the split files.")
    if len(ids) < task.num_classes:
        warnings.warn(f"{task.title} has {task.num_classes} classes; the split files name {len(ids)}.", stacklevel=3)
    if class_names and len(class_names) != len(ids):
        raise ValueError(f"Expected {len(ids)} class names. Received: {len(class_names)} ({shorten(class_names)}).")
