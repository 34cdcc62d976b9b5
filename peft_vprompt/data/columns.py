"""Columns that are put beside others which stay where they are, on the disk for the most part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, List, concatenate_datasets


def set_column(rows: Dataset, name: str, values: np.ndarray | Sequence, feature: Any) -> Dataset:
    """Return rows with a column, in the place of one of that name if there is any.

    `Dataset.add_column` copies all other columns of rows that were selected, into a file beside the first one. Here nothing
    is copied: the rows that were left out get a value that nobody reads.

    Args:
        rows: the rows.
        name: name of the column.
        values: a value, or an array of one shape, for each row.
        feature: type of the column.
    """
    rows = rows.remove_columns(name) if name in rows.column_names else rows
    values = np.asarray(values)
    chosen = None if rows._indices is None else rows._indices.column(0).to_numpy()
    if chosen is None or len(np.unique(chosen)) < len(chosen):
        return rows.add_column(name, _listed(values), feature=feature)
    everything = Dataset(rows.data, info=rows.info, split=rows.split)
    padded = np.zeros((len(everything), *values.shape[1:]), values.dtype)
    padded[chosen] = values
    return everything.add_column(name, _listed(padded), feature=feature).select(chosen)


def _listed(values: np.ndarray) -> Any:
    return values if values.ndim == 1 else list(values)


def class_label_of(feature: Any) -> ClassLabel | None:
    """Return the type of a column of classes, or of the lists in one; None where it holds none."""
    inside = feature.feature if isinstance(feature, List) else feature
    return inside if isinstance(inside, ClassLabel) else None


def same_names(parts: Sequence[Dataset]) -> list[Dataset]:
    """Return tables whose columns of classes have the same names: all of those of all parts, each found by what it says."""
    parts = list(parts)
    for column, feature in parts[0].features.items():
        labels = [class_label_of(part.features.get(column)) for part in parts]
        named: list[ClassLabel] = [label for label in labels if label is not None]
        names = list(dict.fromkeys(name for label in named for name in label.names))
        if len(named) < len(parts) or all(label.names == named[0].names for label in named):
            continue
        joined: Any = ClassLabel(names=names)
        for i, label in enumerate(named):
            values = [_renumbered(value, label.names, names) for value in parts[i][column][:]]
            nested = isinstance(feature, List)
            new = Dataset.from_dict({column: values}, Features({column: List(joined) if nested else joined}))
            parts[i] = concatenate_datasets([parts[i].remove_columns(column), new], axis=1).select_columns(
                parts[i].column_names
            )
    return parts


def _renumbered(value: Any, names: Sequence[str], among: Sequence[str]) -> Any:
    """Return the number among some names of a number, or of those in a list, that counts among others."""
    if isinstance(value, list):
        return [_renumbered(each, names, among) for each in value]
    return value if value is None or value < 0 else among.index(names[value])
