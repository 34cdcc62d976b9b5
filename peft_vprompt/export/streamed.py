"""Predictions for images that are streamed, and for image features in their place: as `predictions`, of any number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, concatenate_datasets

from ..data import DataOptions, EvalTransform
from ..data.encoded import Encoded, EncodedShards, batched, decode, made_ahead, preprocessed
from ..data.feature_folders import FEATURES, NAMES, read_features
from ..data.labels import tell_idle_filters, where_mask
from ..data.sources import split_named
from ..training.cached_features import require_features_of
from ..tuners.base.module_state import fixed_weights
from ..utils.locks import Writer, only_writer
from ..utils.progress import counting, with_progress
from . import predictions
from .classifier import Classifier, best
from .predictions import Parts, Summary, identity_of, put_together, rows_of
from .tables import COLUMNS, PROBLEM, PredictOptions, columns_of, require_format, write_problems, write_table


#: Features that are classified at the same time.
_ROWS = 1024
#: Entry of a part's schema that says that no image comes after it in its file.
_LAST = b"last"


def predict_stream(
    classifier: Classifier,
    images: EncodedShards,
    output: str | Path,
    options: PredictOptions = PredictOptions(),  # noqa: B008 - frozen
    *,
    progress: str | None = None,
    wait: bool = False,
) -> Summary:
    """Write the most probable labels of streamed images to a file, as `predictions.predict` does of others.

    Args:
        classifier: the adapter.
        images: what to classify.
        output: the file.
        options: what is written.
        progress: label of a progress bar; None for no bar.
        wait: wait while another process writes to the file.

    Raises:
        ValueError: another kind of file, embeddings in a CSV file, a file of images that cannot be read, or no image can.
        CannotWriteError: the disk is full, or the folder is not to be written.
        FolderInUseError: another process writes to the file.
    """
    output = Path(output)
    require_format(output, options.embeddings)
    with only_writer(output, wait, is_file=True) as writer, fixed_weights():
        parts = Parts(output)
        parts.begin(identity_of(classifier, images, options))
        with counting(progress, "images", None) as advance:
            names = [
                name
                for shard in range(len(images.splits))
                for name in _made(classifier, images, shard, options, parts, writer, advance)
            ]
        writer.check()
        return put_together(output, parts, names)


def _made(
    classifier: Classifier,
    images: EncodedShards,
    shard: int,
    options: PredictOptions,
    parts: Parts,
    writer: Writer,
    advance: Callable[[int], None],
) -> Iterator[str]:
    """Give the names of the parts of a file of images, and write those that are not there yet."""
    size = max(1, predictions.PART // options.batch_size) * options.batch_size
    first = done = 0
    while (found := parts.read(_name(shard, done))) is not None:
        yield _name(shard, done)
        first, done = first + found.num_rows, done + 1
        advance(found.num_rows)
        if _LAST in (found.schema.metadata or {}):
            return

    def read(batch: list[Encoded]) -> list:
        decoded = (decode(each, images.image) for each in batch)
        return [preprocessed(image, lambda image: classifier.preprocess([image])) for image in decoded]

    waiting = made_ahead(batched(images.read(shard, first), options.batch_size), read)
    following = next(waiting, None)
    for number in count(done):
        if following is None:
            return
        rows: list[pa.Table] = []
        while following is not None and sum(table.num_rows for table in rows) < size:
            batch, found = following
            rows.append(rows_of(classifier, [each.name for each in batch], found, options))
            advance(len(batch))
            following = next(waiting, None)
        writer.check()
        table = pa.concat_tables(rows)
        parts.write(_name(shard, number), table.replace_schema_metadata({_LAST: b""} if following is None else None))
        yield _name(shard, number)


def _name(shard: int, number: int) -> str:
    return f"{shard:05}-{number:04}"


def predict_features(
    classifier: Classifier,
    features: Dataset,
    output: str | Path,
    options: PredictOptions = PredictOptions(),  # noqa: B008 - frozen
    *,
    progress: str | None = None,
    wait: bool = False,
) -> Summary:
    """Write the most probable labels of images whose features are there (`vprompt features`) to a file.

    Args:
        classifier: an adapter that leaves the image features alone.
        features: rows of `data.feature_folders.read_features`.
        output: the file.
        options: what is written.
        progress: label of a progress bar; None for no bar.
        wait: wait while another process writes to the file.

    Raises:
        UnsupportedModelError: the adapter changes the image features.
        ValueError: another kind of file, or features of another model, precision or preprocessing.
        CannotWriteError: the disk is full, or the folder is not to be written.
        FolderInUseError: another process writes to the file.
    """
    output = Path(output)
    require_format(output, options.embeddings)
    require_features_of(classifier.model, EvalTransform(classifier.image_processor), features)
    counts: Counter[str] = Counter()
    names = features.select_columns(NAMES)
    batches = [range(first, min(first + _ROWS, len(features))) for first in range(0, len(features), _ROWS)]

    def tables() -> Iterator[pa.Table]:
        rows = features.select_columns(FEATURES).with_format("torch")
        for batch in with_progress(batches, progress):
            vectors = rows[batch.start : batch.stop][FEATURES]
            found = best(
                classifier.probabilities_of(classifier.logits_of({FEATURES: vectors})),
                classifier.class_names,
                options.top_k,
            )
            called = names[batch.start : batch.stop][NAMES]
            table = columns_of(
                called, range(len(batch)), found, vectors, [None] * len(batch), classifier.class_names, options
            )
            counts.update(table[COLUMNS[1]].to_pylist())
            yield table.drop_columns(PROBLEM)

    with only_writer(output, wait, is_file=True) as writer, fixed_weights():
        write_table(output, tables())
        writer.check()
        write_problems(output, [])
    return Summary(len(features), 0, dict(counts.most_common()), None)


def features_of(options: DataOptions, split: str | None = None) -> Dataset:
    """Read the rows of a folder of features that are to be classified.

    Args:
        options: the folder, and which rows of it.
        split: the split to take; None for all.

    Raises:
        FileNotFoundError, ValueError: as `data.feature_folders.read_features`, or there is no such split.
    """
    splits = read_features(options.path)
    chosen = list(splits.values()) if split is None else [split_named(splits, split, options)]
    rows = chosen[0] if len(chosen) == 1 else concatenate_datasets(chosen)
    kept = np.flatnonzero(where_mask(rows, options.where))
    tell_idle_filters(chosen, options.where)
    return rows if len(kept) == len(rows) else rows.select(kept)
