"""Few-shot images as published: `split_fewshot/shot_16-seed_1.pkl` in the folder of a task.

Such files are written and read by KaiyangZhou/CoOp `datasets/*.py`: a pickled dict of the lists `train` and, mostly, `val`,
of objects of Dassl's class `Datum`. Nothing that a file asks for is built or run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from datasets import Dataset

from ...utils.pickled import PickleError, read_pickle
from ...utils.validation import shorten
from ...utils.warning import warn_caller
from ..few_shot import check_draw
from ..images import image_paths


#: Folder of the files inside that of a task.
FOLDER = "split_fewshot"

#: Class of the objects in the lists; forks of the authors' code have it in modules of their own.
DATUM = "Datum"


def listed_few_shot(
    folder: Path,
    draw: Callable[..., Dataset],
    dataset: Dataset,
    shots: int,
    seed: int,
    label_column: str = "label",
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Take the few-shot images that a file in the task's folder lists, and say so; draw them where there is no such file.

    Args:
        folder: of the task.
        draw: how they are drawn, a function called like `few_shot`.
        dataset: the training images, with labels as published.
        shots: as for `few_shot`.
        seed: likewise.
        label_column: likewise.
        class_names: likewise; other classes in the file are left out.

    Returns:
        The chosen rows in the order of the file.

    Raises:
        ValueError: the file cannot be read, or names images that are not in the training images or of another class there.
    """
    file = folder / FOLDER / f"shot_{shots}-seed_{seed}.pkl"
    if not file.is_file():
        return draw(dataset, shots, seed, label_column, class_names)
    wanted = set(check_draw(dataset, shots, seed, label_column, class_names))
    labels = dataset[label_column][:]
    row_of = {_inside(path, folder): row for row, path in enumerate(image_paths(dataset)) if path is not None}
    chosen = []
    missing = []
    for path, label in read_list(file):
        row = _find(path, row_of)
        if row is None:
            missing.append(path)
        elif labels[row] != label:
            raise ValueError(
                f"{file} says that {path} is of class {label}, which the training images have in class {labels[row]}. {_REMEDY}"
            )
        elif label in wanted:
            chosen.append(row)
    if missing:
        raise ValueError(
            f"{file} names {len(missing)} images that are no training images: {shorten(missing, 3)}. {_REMEDY}"
        )
    warn_caller(f"Few-shot images are those that {file} lists; they are not drawn.")
    return dataset.select(np.asarray(chosen, dtype=int))


def read_list(file: Path) -> list[tuple[str, int]]:
    """Return path and label of every training image that a file lists.

    Raises:
        ValueError: it is no such file.
    """
    try:
        content = read_pickle(file.read_bytes(), records=(DATUM,))
    except PickleError as error:
        raise ValueError(f"Cannot read the few-shot list {file}: {error}. {_REMEDY}") from error
    rows = content.get("train") if isinstance(content, dict) else None
    listed = [_path_and_label(row) for row in rows] if isinstance(rows, list) and rows else [None]
    if None in listed:
        raise ValueError(
            f"Expected a dict with a list 'train' of Dassl's Datum, with _impath and _label, in {file}. Received something "
            f"else. {_REMEDY}"
        )
    return [each for each in listed if each is not None]


_REMEDY = "Move the file away to have the images drawn."


def _path_and_label(row: Any) -> tuple[str, int] | None:
    match row:
        case {"_impath": str(path), "_label": int(label)}:
            return path.replace("\\", "/"), label
    return None


def _inside(path: str, folder: Path) -> str:
    """Return a path as it is inside a folder; one that is elsewhere as it is."""
    return os.path.abspath(path).removeprefix(os.path.abspath(folder) + os.sep).replace(os.sep, "/")


def _find(path: str, row_of: dict[str, int]) -> int | None:
    """Return the row of an image by the end of its path, whose beginning is of the machine that wrote it."""
    parts = PurePosixPath(path).parts
    return next((row for start in range(len(parts)) if (row := row_of.get("/".join(parts[start:]))) is not None), None)
