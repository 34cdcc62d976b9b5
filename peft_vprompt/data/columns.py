"""Columns that are put beside others which stay where they are, on the disk for the most part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Image, List
from datasets.table import InMemoryTable


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


def is_text(feature: Any) -> bool:
    """Tell whether a column holds text."""
    return getattr(feature, "dtype", None) in ("string", "large_string")


def same_names(parts: Sequence[Dataset]) -> list[Dataset]:
    """Return tables whose columns of classes have the same names: all of those of all parts, each found by what it says.

    Where some hold text, this names classes as well; numbers without names count as they do elsewhere.

    Raises:
        ValueError: numbers without names, where the others do not agree on what each number is.
    """
    parts = list(parts)
    for column in dict.fromkeys(name for part in parts for name in part.column_names):
        holders = [i for i, part in enumerate(parts) if column in part.features]
        labels = {i: label for i in holders if (label := class_label_of(parts[i].features[column])) is not None}
        if not labels:
            continue
        for i in holders:
            if is_text(parts[i].features[column]):
                parts[i], labels[i] = _encoded(parts[i], column)
        names = list(dict.fromkeys(name for i in holders if i in labels for name in labels[i].names))
        if all(label.names == names for label in labels.values()):
            continue
        if len(labels) < len(holders):
            raise ValueError(
                f"Expected names of the classes {column!r} in all files, or the same names in those that have some. Received "
                "numbers in some, and names in other orders elsewhere. Write the classes as text."
            )
        joined = ClassLabel(names=names)
        for i, label in labels.items():
            values = [renumbered(value, label.names, names) for value in parts[i][column][:]]
            nested = isinstance(parts[i].features[column], List)
            parts[i] = _replaced(parts[i], column, values, List(joined) if nested else joined)
    return parts


def same_types(parts: Sequence[Dataset]) -> list[Dataset]:
    """Return tables whose columns have the same types: of each the one that holds most, and the first of such.

    Raises:
        ValueError: values of a column that are not of its type; names both.
    """
    features = Features()
    for part in parts:
        for name, feature in part.features.items():
            if name not in features or _holds(feature) > _holds(features[name]):
                features[name] = feature
    found = []
    for part in parts:
        wanted = Features({name: features[name] for name in part.column_names})
        try:
            found.append(part if wanted == part.features else Dataset(part.data.cast(wanted.arrow_schema)))
        except (pa.ArrowException, TypeError, ValueError) as error:
            other = next(name for name in wanted if wanted[name] != part.features[name])
            raise ValueError(
                f"Expected one type of values in the column {other!r} of all files. Received {features[other]} and "
                f"{part.features[other]}. Write them alike."
            ) from error
    return found


def _holds(feature: Any) -> int:
    """Return a number that is larger for a type that holds values of others: text is above numbers.

    Above all are types that say more than how values are stored: that they are classes, or images.
    """
    if isinstance(feature, Image) or class_label_of(feature) is not None:
        return 4
    if is_text(feature):
        return 3
    kind = str(getattr(feature, "dtype", ""))
    return 2 if kind.startswith(("float", "double")) else int(kind != "null")


def _encoded(rows: Dataset, column: str) -> tuple[Dataset, ClassLabel]:
    """Return rows whose column of text is one of classes, and its type."""
    values = rows[column][:]
    label = ClassLabel(names=sorted({value for value in values if value is not None}))
    numbers = [None if value is None else label.names.index(value) for value in values]
    return _replaced(rows, column, numbers, label), label


def _replaced(rows: Dataset, column: str, values: Sequence, feature: Any) -> Dataset:
    """Return all rows of a table with other values in a column, in one block with the others, which are not copied."""
    rows = rows if rows._indices is None else rows.flatten_indices()
    features = Features(rows.features | {column: feature})
    table = rows.data.table.set_column(
        rows.column_names.index(column), column, pa.array(values, features.arrow_schema.field(column).type)
    )
    return Dataset(InMemoryTable(table.replace_schema_metadata(features.arrow_schema.metadata)), split=rows.split)


def renumbered(value: Any, names: Sequence[str], among: Sequence[str]) -> Any:
    """Return the number among some names of a number, or of those in a list, that counts among others."""
    if isinstance(value, list):
        return [renumbered(each, names, among) for each in value]
    return value if value is None or value < 0 else among.index(names[value])
