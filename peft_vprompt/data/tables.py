"""Tables of images and labels: CSV, TSV, JSON lines, parquet and Arrow files, tar files of the WebDataset form."""

from __future__ import annotations

import glob
import json
import os
import re
import tarfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TypeVar

import pandas as pd
import pyarrow as pa
from datasets import Dataset, Features, Image, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetsError
from pyarrow import parquet

from ..utils.digests import digest_json
from ..utils.validation import first_line
from ..utils.warning import warn_caller
from .columns import class_label_of, is_text, same_names, same_types
from .folders import is_image, split_name


AnyPath = TypeVar("AnyPath", bound=PurePath)

TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (*TEXT_SUFFIXES, ".parquet")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")

#: Columns that hold paths of images in tables that have no column of the name asked for.
PATH_COLUMNS = ("file_name", "filename", "file_path", "filepath", "image_path", "path", "file")
#: What pandas, json and pyarrow raise of a table that cannot be read.
_UNREADABLE = (ValueError, TypeError, RecursionError, OverflowError, NotImplementedError, pd.errors.ParserWarning)
_WHOLE = re.compile(r"0|-?[1-9]\d*")


def read_tables(
    files: Sequence[Path], image_column: str, root: Path | None = None, declared: Mapping[str, str] | None = None
) -> dict[str, Dataset]:
    """Read tables of one kind.

    Paths of images are relative to the table. Numbers are read as numbers where a whole column holds such.

    Args:
        files: the tables.
        image_column: column of the images; where a table has it not, one called `file_name`, `path` or alike becomes it.
        root: folder below which the names of files and folders say the split (`test.csv`); None for one split alone.
        declared: split of each file by its path, which counts where it is given.

    Returns:
        Rows by split.

    Raises:
        ValueError: a file that cannot be read; names it.
    """
    splits = group_by_split(files, root, declared)
    if files[0].suffix.lower() != ".parquet":
        return _read_text(splits, image_column)
    return _read_parquet(splits, image_column)


def _read_parquet(splits: dict[str, list[Path]], image_column: str) -> dict[str, Dataset]:
    """Read files that are alike together: `datasets` takes what the first of them says of the columns for all."""
    alike: dict[tuple, dict[str, list[Path]]] = {}
    for name, files in splits.items():
        for path in files:
            alike.setdefault(_said_by(path, image_column), {}).setdefault(name, []).append(path)
    parts: dict[str, list[Dataset]] = {name: [] for name in splits}
    for some in alike.values():
        for name, rows in _loaded("parquet", some).items():
            parts[name].append(located(rows, image_column, some[name][0].parent))
    return {name: concatenate_datasets(same_types(same_names(tables))) for name, tables in parts.items()}


def _said_by(path: Path, image_column: str) -> tuple:
    """Return what a parquet file says that others may say otherwise: names of its classes, where its paths begin."""
    try:
        features = Features.from_arrow_schema(parquet.read_schema(path))
    except (ValueError, OSError, pa.ArrowException) as error:
        raise ValueError(f"Cannot read the table {path}: {first_line(error)}") from error
    labels = {name: class_label_of(feature) for name, feature in features.items()}
    names = tuple((name, tuple(label.names)) for name, label in labels.items() if label is not None)
    paths = any(is_text(features.get(name)) for name in {image_column, *features} & {image_column, *PATH_COLUMNS})
    return names, path.parent if paths else None


def _loaded(kind: str, splits: dict[str, list[Path]]) -> dict[str, Dataset]:
    """Read files by `datasets`, anew where one of them is not what it was, whatever its time says."""
    marks = digest_json([file_mark(path) for files in splits.values() for path in files])
    files = {name: [glob.escape(str(path)) for path in some] for name, some in splits.items()}
    return dict(load_dataset(kind, data_files=files, description=marks))


def file_mark(path: Path) -> list:
    """Return by what a file is known again without reading it.

    The time of the change of its entry is moved by every writer, also by one that keeps the time of the content.
    """
    status = os.stat(path)
    return [str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def group_by_split(
    files: Sequence[AnyPath], root: PurePath | None, declared: Mapping[str, str] | None = None
) -> dict[str, list[AnyPath]]:
    """Return files by the split that is declared, else that their names or their folders below `root` say, else `train`.

    A name says it by one of its words, as in `train-00000-of-00001.parquet`.
    """
    splits: dict[str, list[AnyPath]] = {}
    for path in files:
        if declared is not None:
            splits.setdefault(declared[str(path)], []).append(path)
            continue
        parts = [] if root is None else reversed(path.relative_to(root).parts)
        words = [word for part in parts for word in re.split(r"[^A-Za-z]+", part)]
        splits.setdefault(next(filter(None, map(split_name, words)), "train"), []).append(path)
    return splits


def _read_text(splits: dict[str, list[Path]], image_column: str) -> dict[str, Dataset]:
    """Read files of text, in which a column that is text in one of them is text in all."""
    files = [path for some in splits.values() for path in some]
    parts = iter(same_types([located(_read_file(path), image_column, path.parent) for path in files]))
    return {name: concatenate_datasets([next(parts) for _ in some]) for name, some in splits.items()}


def _read_file(path: Path) -> Dataset:
    try:
        if path.suffix.lower() in (".csv", ".tsv"):
            return _typed(_read_separated(path))
        return Dataset.from_dict(_of_one_type(_read_json(path), path))
    except _UNREADABLE as error:
        raise ValueError(f"Cannot read the table {path}: {error}") from error


def _read_separated(path: Path) -> pd.DataFrame:
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    with open(path, encoding="utf-8-sig") as file:
        header = file.readline()
    if separator not in header:
        separator = next((other for other in (";", "\t") if other in header), separator)
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # a row with more cells than the header
        table = pd.read_csv(
            path,
            sep=separator,
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
            index_col=False,
            skipinitialspace=True,
        )
    if images := [name for name in table.columns if is_image(name.strip())]:
        raise ValueError(
            f"Expected the names of the columns in the first line, such as {separator.join(('image', 'label'))}. Received an "
            f"image, {images[0].strip()!r}. Write such a line above it."
        )
    if not len(table):
        raise ValueError("Expected a row for each image below the header. Received none.")
    return table.rename(columns=str.strip)


def _typed(table: pd.DataFrame) -> Dataset:
    """Return a table of text with its whole numbers as numbers, if none is too large, and empty cells as missing."""
    columns = {}
    for name in table.columns:
        values = [str(value).strip() or None for value in table[name].astype(object)]
        numbers = any(values) and all(value is None or _is_number(value) for value in values)
        columns[name] = [int(v) if numbers and v is not None else v for v in values]
    return Dataset.from_dict(columns)


def _is_number(value: str) -> bool:
    return _WHOLE.fullmatch(value) is not None and len(value) <= 20 and -(2**63) <= int(value) < 2**63


def _of_one_type(rows: list[dict], path: Path) -> dict[str, list]:
    """Return the columns of rows: as text where values are of several types, and without those that hold lists beside others."""
    columns = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        try:
            pa.array(values)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            if any(isinstance(value, (list, dict)) for value in values):
                warn_caller(
                    f"The column {name!r} of {path} is left out: its values are not of one type, and some are lists or objects. "
                    "Write them alike."
                )
                continue
            values = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        columns[name] = values
    return columns


def _read_json(path: Path) -> list[dict]:
    text = path.read_text(encoding="utf-8-sig")
    rows = (
        json.loads(text) if text.lstrip().startswith("[") else [json.loads(x) for x in text.splitlines() if x.strip()]
    )
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError("Expected one JSON object for each image, on a line of its own or in one list.")
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def _image_named(rows: Dataset, image_column: str) -> Dataset:
    """Return a table whose column of paths has the name asked for, if that is clear."""
    if image_column in rows.column_names:
        return rows
    paths = [name for name in rows.column_names if name.lower() in PATH_COLUMNS]
    images = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
    candidates = images or paths
    return rows.rename_column(candidates[0], image_column) if len(candidates) == 1 else rows


def located(rows: Dataset, column: str, folder: Path) -> Dataset:
    """Return a table with its paths of images in `column`, and those in a folder made whole."""
    rows = _image_named(rows, column)
    if not is_text(rows.features.get(column)):
        return rows
    columns = {name: rows[name][:] for name in rows.column_names}
    columns[column] = [None if path is None else _locate(path, folder) for path in columns[column]]
    return Dataset.from_dict(columns, rows.features)


def _locate(path: str, folder: Path) -> str:
    if "://" in path:
        return path
    place = os.path.join(folder, os.path.expanduser(path))
    if "\\" in path and not os.path.exists(place):  # of a table from Windows
        return os.path.join(folder, path.replace("\\", "/"))
    return place


# ---- tar files ----------------------------------------------------------------------------------------------------


def read_tars(
    files: Sequence[Path],
    image_column: str,
    label_column: str | None,
    root: Path | None = None,
    declared: Mapping[str, str] | None = None,
) -> dict[str, Dataset]:
    """Read tar files of the WebDataset form, by split as `read_tables`.

    The column of images becomes `image_column`, and `cls` becomes `label_column`, where there are no such columns; the
    entries of `json` are columns such as `json.label`.

    Raises:
        ValueError: a file that is no such tar.
    """
    try:
        tables = _loaded("webdataset", group_by_split(files, root, declared))
    except (ValueError, TypeError, tarfile.TarError, DatasetsError) as error:
        cause = error.__cause__ or error
        hint = (
            " The entry `cls` holds whole numbers. Write names to `txt`, and name it as the column of classes (--label-column "
            "txt)."
        ) * str(cause).startswith("invalid literal for int")
        raise ValueError(f"Cannot read {files[0]} as a tar of the WebDataset form: {cause}.{hint}") from error
    for name, rows in tables.items():
        rows = _image_named(rows, image_column).flatten()
        if label_column is not None and label_column not in rows.column_names and "cls" in rows.column_names:
            rows = rows.rename_column("cls", label_column)
        tables[name] = rows
    return tables
