"""Several labels for an image, as tables have them: lists, text with separators, or a column for each class."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, LargeList, Value
from datasets.features import List

from ..utils.validation import shorten
from ..utils.warning import warn_caller
from .multi_hot import NOT_KNOWN
from .options import DataOptions


#: What people write between labels.
_SEPARATORS = (";", "|", ",")


def label_columns(dataset: Dataset, options: DataOptions) -> list[str]:
    """Return the columns that fit `label_columns`, in the table's order.

    Raises:
        ValueError: none fits one of the patterns.
    """
    others = (options.image_column, options.split_column)
    candidates = [name for name in dataset.column_names if name not in others]
    for pattern in options.label_columns:
        if not any(fnmatchcase(name, pattern) for name in candidates):
            raise ValueError(f"No column fits label_columns={pattern!r}. The data has: {', '.join(candidates)}.")
    return [name for name in candidates if any(fnmatchcase(name, pattern) for pattern in options.label_columns)]


def multi_hot_columns(dataset: Dataset, columns: Sequence[str]) -> np.ndarray:
    """Return a table's columns of 1, 0 and nothing (not known), int8 [rows, columns].

    Raises:
        ValueError: another value; names the column.
    """
    meanings = {0: 0, 1: 1, "0": 0, "1": 1, "0.0": 0, "1.0": 1, "true": 1, "false": 0, None: NOT_KNOWN}
    matrix = np.empty((len(dataset), len(columns)), dtype=np.int8)
    for position, column in enumerate(columns):
        values = [value.strip().lower() if isinstance(value, str) else value for value in dataset[column][:]]
        values = [None if value in ("", "nan") or value != value else value for value in values]
        if bad := [value for value in dict.fromkeys(values) if value not in meanings]:
            raise ValueError(
                f"Expected 1, 0 or an empty cell (not known) in the column {column!r} of a class. Received: "
                f"{shorten([repr(value) for value in bad], 5)}. Name the columns of classes by label_columns "
                "(--label-columns), and write these values in that way."
            )
        matrix[:, position] = [meanings[value] for value in values]
    return matrix


def label_lists(dataset: Dataset, options: DataOptions) -> tuple[Any, list[list]]:
    """Return the labels of every image as the data have them, and the feature that each of them is of.

    Raises:
        ValueError: an image has a number twice, or lists are ones and zeros for all classes.
    """
    feature = dataset.features[options.label_column]
    values = dataset[options.label_column][:]
    if isinstance(feature, (List, LargeList)):
        lists = [[] if value is None else list(value) for value in values]
        twice = next((row for row in lists if len(set(row)) < len(row)), None)
        hot = {tuple(row) for row in lists} == {(0, 1), (1, 0)}
        if twice is not None or hot:
            received = "[0, 1] and [1, 0], and no other lists" if hot else str((twice or [])[:12])
            raise ValueError(
                f"Expected each class of an image once in the column {options.label_column!r}. Received: {received}. "
                "Lists hold the classes of an image; ones and zeros for all classes come as a column for each "
                "(label_columns, --label-columns)."
            )
        return feature.feature, lists
    if isinstance(feature, Value) and "string" in feature.dtype:
        return feature, _separated(values, options)
    if isinstance(feature, ClassLabel):
        return feature, [[] if value is None or value < 0 else [value] for value in values]
    return feature, [[] if value is None else [value] for value in values]


def _separated(values: Sequence[str | None], options: DataOptions) -> list[list[str]]:
    separator = options.label_separator
    if not any(separator in (value or "") for value in values):
        for other in _SEPARATORS:
            if any(other in (value or "") for value in values):
                warn_caller(
                    f"No label has the separator {separator!r}, so each is read as one class; some have {other!r}. If that "
                    f"separates classes, pass label_separator={other!r} (--label-separator {other!r})."
                )
                break
    return [list(dict.fromkeys(x.strip() for x in (value or "").split(separator) if x.strip())) for value in values]


def multi_hot(lists: Sequence[Sequence[str]]) -> tuple[list[str], np.ndarray]:
    """Return the classes that lists of classes name, in the order in which they come, and int8 [lists, classes]."""
    columns = {key: column for column, key in enumerate(dict.fromkeys(key for keys in lists for key in keys))}
    matrix = np.zeros((len(lists), len(columns)), dtype=np.int8)
    for row, keys in enumerate(lists):
        matrix[row, [columns[key] for key in keys]] = 1
    return list(columns), matrix
