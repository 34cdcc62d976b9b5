"""What a task of a benchmark says of itself, whatever its files look like."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from datasets import Dataset

from ...utils.validation import shorten
from ..few_shot import few_shot


#: Paths of images and the numbers of their classes.
Rows = list[tuple[str, int]]

#: Our names of the splits and the published ones, of most tasks.
SPLITS = {"train": "train", "validation": "val", "test": "test"}


class Published(NamedTuple):
    """What the files of a task say.

    Attributes:
        splits: rows by split; class ids need not count from 0.
        class_names: names by class id; None where the files have none.
    """

    splits: dict[str, Rows]
    class_names: dict[int, str] | None = None


@dataclass(frozen=True)
class Task(ABC):
    """One task of a benchmark.

    Attributes:
        benchmark: name of the benchmark.
        name: name of the task in it.
        title: name in the papers.
        num_classes: number of classes in the papers.
        image_folder: folder of the images inside the task's own.
        group: group of the benchmark that the papers average over.
        place: name of its folder beside the others; None for its own name.
        template: text that class names are put into; None where the benchmark has no texts.
    """

    benchmark: str
    name: str
    title: str
    num_classes: int
    image_folder: str = ""
    group: str = "mean"
    place: str | None = None
    template: str | None = None

    @property
    def full_name(self) -> str:
        """Name on the command line."""
        return f"{self.benchmark}/{self.name}"

    @property
    def folder(self) -> str:
        """Name of the task's folder, beside those of other tasks."""
        return self.place or self.name

    @property
    def crop(self) -> Literal["random_crop", "none"] | None:
        """Augmentation, see `TrainTransform`; None for that of the method's recipe."""
        return None

    @property
    def draw(self) -> Callable[..., Dataset]:
        """How few shots are drawn, a function called like `few_shot`."""
        return few_shot

    def image_processor(self, size: int) -> Any:
        """Return the published preprocessing for a model that takes `size` x `size` pixels; None for the model's own."""
        return None

    @abstractmethod
    def read(self, folder: Path) -> Published:
        """Read the published files.

        Raises:
            FileNotFoundError: files or images are missing; names them.
            ValueError: a file cannot be read.
        """


def existing(path: Path) -> Path:
    """Return a path that is one of a file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}. The published split files belong beside the images.")
    return path


def require_images(paths: Iterable[Path], named_by: str) -> None:
    """Refuse an incomplete folder.

    Args:
        paths: the images that there should be.
        named_by: the file that names them.

    Raises:
        FileNotFoundError: some are missing; names the first ones and counts them.
    """
    paths = list(paths)
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"No image {shorten(missing, 5)}. {named_by} names {len(paths)} images, of which {len(missing)} are missing."
        )


def rows_of(folder: Path, labelled: Sequence[tuple[str, int]], named_by: str) -> Rows:
    """Return rows with whole paths.

    Args:
        folder: what the paths are relative to.
        labelled: paths and class ids.
        named_by: the file that names them.

    Raises:
        FileNotFoundError: images are missing; names the first ones.
    """
    require_images((folder / path for path, _ in labelled), named_by)
    return [(str(folder / path), label) for path, label in labelled]
