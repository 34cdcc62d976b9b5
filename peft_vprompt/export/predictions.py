"""Predictions for any number of images, into one file: in parts, so that a run that was stopped goes on where it was.

Parts lie in a hidden folder beside the file, with what they were made with; the file appears when all are there.
"""

from __future__ import annotations

import shutil
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ..data.any_images import NamedImages
from ..data.encoded import EncodedShards, preprocessed, require_readable, tell_skipped
from ..experiments.identity import differences
from ..tuners.base.classifier import text_classifier
from ..tuners.base.module_state import fixed_weights
from ..utils.digests import ADAPTER_PROVENANCE, digest_json, digest_tensors, without
from ..utils.io import atomic_path, disk_errors, read_json, write_json
from ..utils.locks import only_writer
from ..utils.process_watch import set_restart_hint
from ..utils.processes import ALONE, Processes
from ..utils.progress import with_progress
from ..utils.warning import warn_caller
from ..version import __version__
from .classifier import Classifier, best
from .tables import COLUMNS, PROBLEM, PredictOptions, columns_of, require_format, write_problems, write_table


#: Images in a part, about; a part has whole batches.
PART = 1024

#: What a folder of parts was made with.
IDENTITY = "identity.json"

#: Batches that are read while another is classified, each by a thread.
_AHEAD = 4


#: What a part is called: its number, or a name.
Part = int | str


class Summary(NamedTuple):
    """What became of the images.

    Attributes:
        images: how many were read.
        skipped: how many could not be read.
        labels: how many images have each label as the most probable one, most first.
        problems: the file that lists what was skipped; None where nothing was.
    """

    images: int
    skipped: int
    labels: dict[str, int]
    problems: Path | None


def predict(
    classifier: Classifier,
    images: NamedImages,
    output: str | Path,
    options: PredictOptions = PredictOptions(),  # noqa: B008 - frozen
    *,
    progress: str | None = None,
    wait: bool = False,
    processes: Processes = ALONE,
) -> Summary:
    """Write the most probable labels of images to a file (.csv, .jsonl or .parquet).

    Images that cannot be read are left out, and listed in a file beside. Stopped and started again with the same adapter,
    images and options it goes on, and the file is the same.

    Args:
        classifier: the adapter.
        images: what to classify.
        output: the file.
        options: what is written.
        progress: label of a progress bar; None for no bar.
        wait: wait while another process writes to the file.
        processes: share the images with these, which all make the same call; the first one writes.

    Raises:
        ValueError: another kind of file, embeddings in a CSV file, or no image can be read.
        CannotWriteError: the disk is full, or the folder is not to be written.
        FolderInUseError: another process writes to the file.
    """
    output = Path(output)
    require_format(output, options.embeddings)
    with only_writer(output, wait, is_file=True) as writer, fixed_weights():
        parts = Parts(output)

        def begin() -> list[int]:
            parts.begin(identity_of(classifier, images, options))
            return [part for part in range(len(spans(len(images), options))) if parts.read(part) is None]

        left = processes.from_first(begin)
        set_restart_hint("Started again in the same way, it goes on: what is done is kept.")
        reader = ThreadPoolExecutor(_AHEAD)
        try:
            for part, rows in _made(classifier, images, options, left, reader, progress, processes):
                if processes.is_first:
                    writer.check()
                    parts.write(part, rows)
        finally:
            reader.shutdown(cancel_futures=True)
        writer.check()
        return processes.from_first(lambda: put_together(output, parts, range(len(spans(len(images), options)))))


def identity_of(classifier: Classifier, images: NamedImages | EncodedShards, options: PredictOptions) -> dict:
    """Return what predictions depend on, by content."""
    model = classifier.model
    config: Any = model.peft_config[model.active_adapter].to_dict()
    config = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    known = text_classifier(model)
    classes = None if known is None else known.in_use.tokenised
    return {
        "code": __version__,
        "adapter": digest_json(without(config, ADAPTER_PROVENANCE), 32),
        "base model or weights": digest_tensors(model.state_dict())[:32],
        "image processor": digest_json(classifier.image_processor.to_dict(), 32),
        "classes": digest_json([classifier.class_names, str(classes.sequences) if classes else None], 32),
        "options": [options.top_k, options.embeddings, options.batch_size, classifier.precision],
        "device": next(model.parameters()).device.type,
        "images": images.digest(),
    }


class Parts:
    """The parts of a file.

    Args:
        output: the file.
    """

    def __init__(self, output: Path):
        self.output = output
        self.folder = output.with_name(f".{output.name}.parts")

    def begin(self, identity: dict) -> None:
        """Keep the parts that were made with `identity`, and throw away those of anything else."""
        with disk_errors(self.output):
            self._begin(identity)

    def _begin(self, identity: dict) -> None:
        about = self.folder / IDENTITY
        try:
            earlier = read_json(about, missing_ok=True)
        except ValueError:
            earlier = None
        if earlier == identity:
            return
        if self.folder.is_dir():
            if isinstance(earlier, dict):
                changed = ", ".join(differences(identity, earlier))
                warn_caller(
                    f"The unfinished predictions for this file were made with other {changed}: starting afresh."
                )
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        write_json(identity, about)

    def path(self, part: Part) -> Path:
        """Return the file of a part."""
        return self.folder / f"{part:06}.parquet" if isinstance(part, int) else self.folder / f"{part}.parquet"

    def write(self, part: Part, rows: pa.Table) -> None:
        """Write a part, whole or not at all."""
        with atomic_path(self.path(part)) as partial:
            pq.write_table(rows, partial)

    def read(self, part: Part) -> pa.Table | None:
        """Return a part; None where it is not there or damaged."""
        try:
            return pq.read_table(self.path(part))
        except (OSError, pa.ArrowException):
            return None

    def need(self, part: Part) -> pa.Table:
        """Return a part that was made.

        Raises:
            OSError: it went away meanwhile.
        """
        found = self.read(part)
        if found is None:
            raise OSError(f"The part {str(self.path(part))!r} went away meanwhile. Start again.")
        return found

    def remove(self) -> None:
        """Remove all of them."""
        with suppress(OSError):
            shutil.rmtree(self.folder)


def spans(count: int, options: PredictOptions) -> list[range]:
    """Return the images of each part: whole batches, the same ones however often the run was stopped."""
    size = max(1, PART // options.batch_size) * options.batch_size
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def _made(
    classifier: Classifier,
    images: NamedImages,
    options: PredictOptions,
    left: list[int],
    reader: ThreadPoolExecutor,
    progress: str | None,
    processes: Processes,
) -> Iterator[tuple[int, pa.Table]]:
    """Give the parts that are left, each as soon as it is made. Images are read while others are classified."""
    size = options.batch_size
    parts = spans(len(images), options)
    own = {
        part: processes.share([parts[part][i : i + size] for i in range(0, len(parts[part]), size)]) for part in left
    }
    batches = [(part, batch) for part in left for batch in own[part]]
    waiting = iter(batches)
    ahead = deque(reader.submit(_read, classifier, images, batch) for _, batch in islice(waiting, _AHEAD))
    shown = with_progress(batches, progress)
    for part in left:
        rows: list[pa.Table] = []
        for _, batch in islice(shown, len(own[part])):
            found = ahead.popleft().result()
            ahead.extend(reader.submit(_read, classifier, images, further) for _, further in islice(waiting, 1))
            rows.append(rows_of(classifier, [images.names[index] for index in batch], found, options))
        yield part, pa.concat_tables(processes.gather(rows))


def _read(classifier: Classifier, images: NamedImages, batch: Sequence[int]) -> list[dict[str, Tensor] | str]:
    """Return what the model takes of each image, or why it cannot be read; one decoded image is held at a time."""
    return [preprocessed(images.read(index), lambda image: classifier.preprocess([image])) for index in batch]


def rows_of(
    classifier: Classifier, names: list[str], found: list[dict[str, Tensor] | str], options: PredictOptions
) -> pa.Table:
    """Return the rows of a batch, with a problem in those that were not read."""
    inputs = {index: each for index, each in enumerate(found) if isinstance(each, dict)}
    predictions: list = []
    features = None
    if inputs:
        keys = next(iter(inputs.values()))
        together = {name: torch.cat([each[name] for each in inputs.values()]) for name in keys}
        if options.embeddings:
            logits, features = classifier.logits_and_features_of(together)
        else:
            logits = classifier.logits_of(together)
        predictions = best(classifier.probabilities_of(logits), classifier.class_names, options.top_k)
    problems = [each if isinstance(each, str) else None for each in found]
    return columns_of(names, list(inputs), predictions, features, problems, classifier.class_names, options)


def put_together(output: Path, parts: Parts, numbers: Sequence[Part]) -> Summary:
    """Make the file of its parts.

    Raises:
        ValueError: there is no image, or none can be read.
        OSError: a part went away meanwhile.
    """
    images = 0
    problems: list[tuple[str, str]] = []
    counts: Counter[str] = Counter()
    for number in numbers:
        part = parts.need(number)
        images += part.num_rows
        bad = part.filter(part[PROBLEM].is_valid())
        problems += zip(bad[COLUMNS[0]].to_pylist(), bad[PROBLEM].to_pylist(), strict=True)
        counts.update(label for label in part[COLUMNS[1]].to_pylist() if label is not None)
    if len(problems) == images:
        parts.remove()
    require_readable(problems, images)
    write_table(output, (_without_problems(parts.need(number)) for number in numbers))
    listed = write_problems(output, problems)
    parts.remove()
    tell_skipped(problems, images)
    return Summary(images - len(problems), len(problems), dict(counts.most_common()), listed)


def _without_problems(part: pa.Table) -> pa.Table:
    return part.filter(part[PROBLEM].is_null()).drop_columns(PROBLEM).replace_schema_metadata()
