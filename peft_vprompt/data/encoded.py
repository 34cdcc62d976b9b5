"""Encoded images one after another, in shards that are read independently of each other, however large all are together.

A shard is what one process takes at a time: a file of a stream (`streams`), or a run of rows of data that are here.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from datasets import Dataset
from PIL import Image

from ..utils.io import atomic_path
from ..utils.validation import first_line, shorten
from ..utils.warning import warn_caller
from .image_checks import examine
from .images import RGBImage


Item = TypeVar("Item")
Made = TypeVar("Made")

#: Batches that are made ready while another is computed on, each by a thread.
AHEAD = 4


class Encoded(NamedTuple):
    """An image that is not decoded.

    Attributes:
        name: what to call it.
        value: its `bytes`, or the `path` of its file, as `datasets` has them.
        label: what the data call its class; None where they do not say it.
    """

    name: str
    value: dict
    label: Any = None


class EncodedShards(Protocol):
    """Encoded images in shards.

    Attributes:
        splits: split of each shard; its length is the number of shards.
        sizes: number of images of each shard; None where that shows when it is read.
        label: type of the labels, one of `datasets`; None where the data have none.
        image: how images are decoded.
    """

    splits: Sequence[str]
    sizes: Sequence[int | None]
    label: Any
    image: RGBImage

    def read(self, shard: int, first: int = 0) -> Iterator[Encoded]:
        """Give the images of a shard, from one on."""
        ...

    def digest(self) -> str:
        """Return a digest by which the same images are known again."""
        ...


class RowShards:
    """Runs of rows of data that are on this machine, as `EncodedShards`.

    Args:
        rows: by split, a column `image` of encoded images and maybe `label`, and a name for each row.
        image: how images are decoded.
        size: rows of a shard.
        digest: what gives a digest of all images.
    """

    def __init__(
        self, rows: dict[str, tuple[Dataset, list[str]]], image: RGBImage, size: int, digest: Callable[[], str]
    ):
        self._runs = [
            (split, first, min(first + size, len(names)))
            for split, (_, names) in rows.items()
            for first in range(0, len(names), size)
        ]
        self._rows = rows
        self.splits: Sequence[str] = [split for split, _, _ in self._runs]
        self.sizes: Sequence[int | None] = [end - first for _, first, end in self._runs]
        labelled = [images.features["label"] for images, _ in rows.values() if "label" in images.column_names]
        self.label = labelled[0] if labelled else None
        self.image = image
        self.digest = digest

    def read(self, shard: int, first: int = 0) -> Iterator[Encoded]:
        """Give the images of a shard, from one on."""
        split, start, end = self._runs[shard]
        images, names = self._rows[split]
        for index in range(start + first, end):
            row = images[index]
            yield Encoded(names[index], row["image"] or {"bytes": None, "path": None}, row.get("label"))


def decode(encoded: Encoded, image: RGBImage) -> Image.Image | str:
    """Return an image in RGB, or why it cannot be read.

    Args:
        encoded: the image.
        image: how images are decoded.
    """
    value = encoded.value
    try:
        if value["bytes"] is None and value["path"] is None:
            return "missing"
        return image.decode_example(value)
    except ValueError as error:
        content = None if value["bytes"] is None else memoryview(value["bytes"])
        problem = examine(encoded.name, value["path"], content, thorough=True).problem
        return problem or str(error.__cause__ or error)


def preprocessed(image: Image.Image | str, preprocess: Callable[[Image.Image], Made]) -> Made | str:
    """Return what a model takes of an image that `decode` gave, or why there is nothing."""
    try:
        return image if isinstance(image, str) else preprocess(image)
    except (ValueError, ArithmeticError, MemoryError) as error:  # a shape that it cannot bring to its own
        return f"not to be preprocessed: {first_line(error)}"


def as_text(name: str) -> str:
    """Return a name as text that can be written: that of a file may be any bytes."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Give lists of `size` items, the last one maybe shorter."""
    waiting = iter(items)
    while some := list(islice(waiting, size)):
        yield some


def made_ahead(items: Iterator[Item], make: Callable[[Item], Made]) -> Iterator[tuple[Item, Made]]:
    """Give items with what is made of each; one thread takes them and several make, ahead of whoever uses them.

    An error of taking or making is raised where its item's turn comes.
    """
    end: Any = object()
    with ThreadPoolExecutor(1) as taker, ThreadPoolExecutor(AHEAD) as makers:

        def take() -> Any:
            item = next(items, end)
            return item if item is end else (item, makers.submit(make, item))

        waiting = deque(taker.submit(take) for _ in range(AHEAD))
        try:
            while (taken := waiting.popleft().result()) is not end:
                waiting.append(taker.submit(take))
                item, made = taken
                yield item, made.result()
        finally:
            for each in waiting:
                each.cancel()
            makers.shutdown(wait=False, cancel_futures=True)


def require_readable(problems: Sequence[tuple[str, str]], images: int) -> None:
    """Refuse images of which none can be read.

    Args:
        problems: name and problem of each image that cannot be read.
        images: how many there are, those included.

    Raises:
        ValueError: there is no image, or none can be read.
    """
    if not images:
        raise ValueError("Expected images. Received none: the data are empty, or a filter (--where) leaves nothing.")
    if len(problems) == images:
        raise ValueError(f"None of {images} images can be read: {problems[0][0]} is {problems[0][1]}.")


def warn_unlabelled(column: str, columns: Iterable[str]) -> None:
    """Warn that data have no column of classes, but these columns, so that what is made of them has no labels."""
    warn_caller(
        f"No column {column!r} and no class folders, so that no labels are taken. The data has: {', '.join(columns)}. Name the "
        "column of the classes by label_column (--label-column), if there is one."
    )


def tell_skipped(problems: Sequence[tuple[str, str]], images: int) -> None:
    """Warn of the images that were skipped, if there are some; arguments as for `require_readable`."""
    if problems:
        named = shorten([f"{name} ({problem})" for name, problem in problems], 20)
        warn_caller(f"{len(problems)} of {images} images cannot be read and were skipped: {named}.")


def write_skipped(path: Path, problems: Sequence[tuple[str, str]]) -> None:
    """List images that were not read, with the reasons, in a CSV file.

    Raises:
        CannotWriteError: the disk is full, or the folder is not to be written.
    """
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(SKIPPED)
        writer.writerows(problems)


#: Header of such a list.
SKIPPED = ("file", "problem")
