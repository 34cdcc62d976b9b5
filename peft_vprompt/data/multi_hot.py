"""`MultiHot`: labels of images that may be of several classes or none, as a column of a data set."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pyarrow as pa
from datasets import Dataset
from datasets.features.features import register_feature

from .columns import set_column


#: Entry of a class of which nobody knows whether an image is of it.
NOT_KNOWN = -100


@dataclass
class MultiHot:
    """A column of one number for each class: 1 where an image is of it, 0 where not, -100 where nobody knows.

    No kind of `List`, of which `datasets` makes plain ones again.

    Attributes:
        names: names of the classes, in label order.
    """

    names: list[str]
    id: str | None = field(default=None, repr=False)
    dtype: ClassVar[str] = "list"
    _type: str = field(default="MultiHot", init=False, repr=False)

    def __call__(self) -> pa.DataType:
        """Return the type of the Arrow column."""
        return pa.list_(pa.float32(), len(self.names))

    def encode_example(self, value: Sequence[float]) -> list[float]:
        """Return the labels of one image as they are stored."""
        return [float(number) for number in value]


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
    return set_column(rows, column, labels.astype(np.float32), MultiHot(names=list(names)))


def share_of_labels(rows: Dataset, class_names: Sequence[str]) -> float:
    """Return the mean over classes, in percent, of the share of images that are of it: what guessing finds of each.

    Classes that no image is of do not count, as in the mean average precision.
    """
    labels = label_matrix(rows)[:, [rows.features["label"].names.index(name) for name in class_names]]
    known = np.maximum((labels != NOT_KNOWN).sum(0), 1)
    shares = (labels == 1).sum(0) / known
    return 100 * float(shares[shares > 0].mean()) if shares.any() else float("nan")
