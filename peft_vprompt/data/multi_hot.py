"""`MultiHot`: labels of images that may be of several classes or none, as a column of a data set."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset, Value
from datasets.features import List
from datasets.features.features import register_feature


#: Entry of a class of which nobody knows whether an image is of it.
NOT_KNOWN = -100


@dataclass(repr=False)
class MultiHot(List):
    """A column of one number for each class: 1 where an image is of it, 0 where not, -100 where nobody knows.

    Attributes:
        names: names of the classes, in label order.
    """

    feature: Any = None
    names: list[str] = field(default_factory=list)
    _type: str = field(default="MultiHot", init=False, repr=False)

    def __new__(cls, *args, **kwargs):
        """Make one of this class, where `Sequence` makes a plain list of whatever it is."""
        return object.__new__(cls)

    def __post_init__(self):
        self.feature = Value("float32")
        self.length = len(self.names)


with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # "experimental", at every import
    register_feature(MultiHot, "MultiHot")


def is_multi_label(rows: Dataset, column: str = "label") -> bool:
    """Tell whether the labels of a data set are multi-hot."""
    return isinstance(rows.features.get(column), MultiHot)


def label_matrix(rows: Dataset, column: str = "label") -> np.ndarray:
    """Return multi-hot labels, float32 [rows, classes]."""
    names = rows.features[column].names
    return np.asarray(rows[column][:], dtype=np.float32).reshape(len(rows), len(names))


def with_label_matrix(rows: Dataset, labels: np.ndarray, names: Sequence[str], column: str = "label") -> Dataset:
    """Return rows with multi-hot labels [rows, classes] in the place of those they have, if any."""
    rows = rows.remove_columns(column) if column in rows.column_names else rows
    return rows.add_column(column, list(labels.astype(np.float32)), feature=MultiHot(names=list(names)))


def share_of_labels(rows: Dataset, class_names: Sequence[str]) -> float:
    """Return the mean over classes, in percent, of the share of images that are of it: what guessing finds of each.

    Classes that no image is of do not count, as in the mean average precision.
    """
    labels = label_matrix(rows)[:, [rows.features["label"].names.index(name) for name in class_names]]
    known = np.maximum((labels != NOT_KNOWN).sum(0), 1)
    shares = (labels == 1).sum(0) / known
    return 100 * float(shares[shares > 0].mean()) if shares.any() else float("nan")
