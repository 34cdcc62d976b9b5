"""The files of predictions: one flat row for each image, the same columns in CSV, JSON lines and parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from ..data.encoded import SKIPPED, as_text, write_skipped
from ..utils.io import atomic_path, disk_errors, read_text
from ..utils.validation import require_int


if TYPE_CHECKING:
    from .classifier import Prediction


#: Columns of every file; further labels are `label_2`, `probability_2` and so on.
COLUMNS = ("file", "label", "probability")
EMBEDDING = "embedding"
#: Column of parts alone: why an image was not read.
PROBLEM = "problem"
FORMATS = (".csv", ".jsonl", ".parquet")
#: Digits of probabilities in text.
_DIGITS = 6


@dataclass(frozen=True)
class PredictOptions:
    """What is written, and how.

    Attributes:
        top_k: how many labels of each image.
        embeddings: whether features are written, too.
        batch_size: images per forward pass.
    """

    top_k: int = 1
    embeddings: bool = False
    batch_size: int = 32

    def __post_init__(self):
        require_int("top_k", self.top_k, 1)
        require_int("batch_size", self.batch_size, 1)


def require_format(output: Path, embeddings: bool) -> None:
    """Refuse a file of another kind, or one that has no place for embeddings.

    Raises:
        ValueError: names the kinds that there are.
    """
    if output.suffix.lower() not in FORMATS:
        raise ValueError(f"Expected an output that ends in {', '.join(FORMATS)}. Received: {str(output)!r}.")
    if embeddings and output.suffix.lower() == ".csv":
        raise ValueError(f"Embeddings are written to .jsonl or .parquet. Received: {str(output)!r}.")


def is_predictions(path: Path) -> bool:
    """Tell whether a file holds predictions."""
    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            return set(COLUMNS) <= set(pq.read_schema(path).names)
        with open(path, encoding="utf-8-sig") as file:
            line = file.readline()
        names = json.loads(line) if kind == ".jsonl" else next(csv.reader([line]), [])
    except (OSError, ValueError, pa.ArrowException, csv.Error):
        return False
    return isinstance(names, (dict, list)) and set(COLUMNS) <= set(map(str, names))


def columns_of(
    names: Sequence[str],
    read: Sequence[int],
    predictions: Sequence[Sequence[Prediction]],
    features: Tensor | None,
    problems: Sequence[str | None],
    class_names: Sequence[str],
    options: PredictOptions,
) -> pa.Table:
    """Return the rows of a batch.

    Args:
        names: names of its images.
        read: which of them were read.
        predictions: labels of those.
        features: features of those [images, e].
        problems: why an image was not read, of all.
        class_names: the classes.
        options: what is written.
    """
    places = {index: position for position, index in enumerate(read)}
    columns: dict[str, pa.Array] = {COLUMNS[0]: pa.array([as_text(name) for name in names], pa.string())}
    for rank in range(min(options.top_k, len(class_names))):
        ending = f"_{rank + 1}" if rank else ""
        found = [predictions[places[index]][rank] if index in places else (None, None) for index in range(len(names))]
        columns[f"{COLUMNS[1]}{ending}"] = pa.array([label for label, _ in found], pa.string())
        columns[f"{COLUMNS[2]}{ending}"] = pa.array([probability for _, probability in found], pa.float32())
    if options.embeddings:
        rows = features.tolist() if features is not None else []
        values = [rows[places[index]] if index in places else None for index in range(len(names))]
        columns[EMBEDDING] = pa.array(values, pa.list_(pa.float32()))
    columns[PROBLEM] = pa.array(problems, pa.string())
    return pa.table(columns)


def write_table(output: Path, parts: Iterable[pa.Table]) -> None:
    """Write rows to a file of the kind that its ending says, whole or not at all.

    Raises:
        CannotWriteError: the disk is full, or the folder is not to be written.
    """
    write = {".csv": _write_csv, ".jsonl": _write_json_lines, ".parquet": _write_parquet}
    with atomic_path(output) as partial:
        write[output.suffix.lower()](partial, parts)


def _write_parquet(path: Path, parts: Iterable[pa.Table]) -> None:
    writer = None
    try:
        for part in parts:
            writer = writer or pq.ParquetWriter(path, part.schema)
            writer.write_table(part)
    finally:
        if writer is not None:
            writer.close()


def _write_csv(path: Path, parts: Iterable[pa.Table]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)  # Python below 3.13 leaves \r as it is
        for number, part in enumerate(parts):
            if not number:
                writer.writerow(part.column_names)
            for row in part.to_pylist():
                has_return = any("\r" in value for value in row.values() if isinstance(value, str))
                (quoting if has_return else writer).writerow(_rounded(row).values())


def _write_json_lines(path: Path, parts: Iterable[pa.Table]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for part in parts:
            file.writelines(json.dumps(_rounded(row), ensure_ascii=False) + "\n" for row in part.to_pylist())


def _rounded(row: dict) -> dict:
    return {name: round(value, _DIGITS) if isinstance(value, float) else value for name, value in row.items()}


def problems_file(output: Path) -> Path:
    """Return where images that could not be read are listed."""
    return output.with_suffix(".skipped.csv")


def write_problems(output: Path, problems: Sequence[tuple[str, str]]) -> Path | None:
    """List images that were not read in a file beside the output; without any, remove the list of an earlier run."""
    path = problems_file(output)
    if problems:
        write_skipped(path, problems)
        return path
    with disk_errors(path), suppress(FileNotFoundError, ValueError, IsADirectoryError):
        if read_text(path).startswith(",".join(SKIPPED)):
            path.unlink()
    return None
