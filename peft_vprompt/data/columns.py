"""Columns that are put beside others which stay where they are, on the disk for the most part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset


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
