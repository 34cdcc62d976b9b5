"""FGVC and VTAB-1k, the tasks that VPT is compared on: their splits as published, read from local folders.

* FGVC: five fine-grained data sets, each a folder with `train.json`, `val.json`, `test.json` ({image path: class id}).
  Class ids become labels in sorted order. Splits: KMnP/vpt, README; Jia et al., ECCV 2022, appendix A.
* VTAB-1k: 19 tasks of Zhai et al., "A Large-scale Study of Representation Learning with the Visual Task Adaptation
  Benchmark", 2019, each a folder with `train800.txt`, `val200.txt`, `test.txt` (lines of "image path, label"), the form in
  which the splits are passed around outside of TensorFlow.

Numbers of classes: KMnP/vpt `tune_vtab.py` and `configs/prompt/`. Nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL.Image import Resampling
from transformers import CLIPImageProcessorPil, ViTImageProcessorPil
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ...utils.io import read_json, read_text
from .task import SPLITS, Published, Rows, Task, existing, rows_of


#: Our names of the splits and VTAB-1k's stems.
VTAB_SPLITS = {"train": "train800", "validation": "val200", "test": "test"}


@dataclass(frozen=True)
class TransferTask(Task):
    """One task of FGVC or VTAB-1k."""

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

    def read(self, folder: Path) -> Published:
        """Read the published splits; class ids are numbers without names.

        Raises:
            FileNotFoundError: a split file or images are missing; names them.
            ValueError: an unreadable line.
        """
        if self.benchmark == "fgvc":
            return Published(_read_json(folder, folder / self.image_folder))
        splits = _read_lists(folder)
        last = max(label for rows in splits.values() for _, label in rows)
        # A thousand images need not show every class.
        return Published(splits, {number: str(number) for number in range(max(self.num_classes, last + 1))})


def _fgvc(name: str, title: str, num_classes: int, image_folder: str = "") -> TransferTask:
    return TransferTask("fgvc", name, title, num_classes, image_folder, "fgvc")


def _vtab(group: str, name: str, title: str, num_classes: int) -> TransferTask:
    return TransferTask("vtab-1k", name, title, num_classes, group=group)


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


def _read_json(folder: Path, images: Path) -> dict[str, Rows]:
    """Read the rows of the splits of an FGVC data set."""
    splits = {}
    for split, stem in SPLITS.items():
        content = read_json(existing(folder / f"{stem}.json"))
        if not isinstance(content, dict) or not all(isinstance(label, int) for label in content.values()):
            raise ValueError(f"Expected a JSON object {{image path: class id}}. Received: {folder / stem}.json.")
        splits[split] = rows_of(images, list(content.items()), f"{stem}.json")
    return splits


def _read_lists(folder: Path) -> dict[str, Rows]:
    """Read the rows of the splits of a VTAB-1k task."""
    splits = {}
    for split, stem in VTAB_SPLITS.items():
        rows = []
        for line in read_text(existing(folder / f"{stem}.txt")).splitlines():
            path, _, label = line.strip().rpartition(" ")
            if not path or not label.isdigit():
                raise ValueError(f"Expected lines of an image path and a label in {stem}.txt. Received: {line!r}.")
            rows.append((path, int(label)))
        splits[split] = rows_of(folder, rows, f"{stem}.txt")
    return splits
