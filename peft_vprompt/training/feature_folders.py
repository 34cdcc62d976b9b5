"""Writing of folders of image features, shard by shard, by one process or several: `vprompt features`.

Every source of images (`data.encoded`) becomes one Arrow file or more, each written whole. Whoever takes up a source leases
it, so that processes on several machines share a folder, and what one that died had in hand is taken up by another. Files
depend on the images, the model and the sizes alone: however often the work was stopped, and however many shared it, they
are the same to the last byte.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from datasets import Features, Value
from datasets.features import List
from torch import Tensor

from ..data.encoded import (
    Encoded,
    EncodedShards,
    as_text,
    batched,
    decode,
    made_ahead,
    preprocessed,
    require_readable,
    tell_skipped,
    write_skipped,
)
from ..data.feature_folders import (
    DETAILS,
    DIGESTS,
    FEATURES,
    FORM,
    KIND,
    MANIFEST,
    NAMES,
    digests_column,
    is_feature_folder,
    read_manifest,
    shard_details,
)
from ..data.image_digests import image_digest
from ..data.transforms import EvalTransform, ImageProcessor
from ..utils.checked_files import add_checksum, keep_intact, said_checksum
from ..utils.io import atomic_path, disk_errors, write_json
from ..utils.locks import Claim, Writer, only_writer
from ..utils.processes import Processes, launched, launched_number
from ..utils.progress import counting
from ..utils.validation import require_int
from .cached_features import encode_frozen, features_content


#: List of the images that could not be read, in a folder of features.
SKIPPED_FILE = "skipped.csv"
#: Most images of a file, whose numbers Arrow counts by 32 bits.
MAX_SHARD = 1_000_000
#: Seconds between two looks for what others have left.
_WAIT = 0.2
#: Most rows that a reader gets at once from a shard.
_CHUNK = 1024


@dataclass(frozen=True)
class FeatureMaker:
    """What makes features of images.

    Attributes:
        content: digests of what the features depend on beside the images, see `cached_features.features_content`.
        preprocess: makes the model's inputs of one image in RGB, with a dimension for it.
        encode: makes features [b, e], float32 on the CPU, of the inputs of several.
    """

    content: dict[str, str]
    preprocess: Callable[[Any], dict[str, Tensor]]
    encode: Callable[[dict[str, Tensor]], Tensor]


class FeatureSummary(NamedTuple):
    """What became of the images.

    Attributes:
        images: how many have features.
        skipped: how many could not be read.
        shards: number of files.
        problems: the file that lists what was skipped; None where nothing was.
    """

    images: int
    skipped: int
    shards: int
    problems: Path | None


def write_features(
    maker: FeatureMaker,
    images: EncodedShards,
    folder: str | Path,
    *,
    batch_size: int = 64,
    shard_size: int = 4096,
    progress: str | None = None,
) -> FeatureSummary:
    """Write the features of images to a folder, or go on with what was begun there; return when all are there.

    Several processes may write to one folder at a time, on one machine or several that share it: each makes what no other
    does. Images that cannot be read are left out, and listed.

    Args:
        maker: makes the features.
        images: the images.
        folder: where to write.
        batch_size: images per forward pass.
        shard_size: images of a file at most; a multiple of the batch.
        progress: label of a progress bar; None for no bar.

    Raises:
        ValueError: the folder holds features of other images or another model, an odd size, or no image can be read.
        CannotWriteError: the disk is full, or the folder is not to be written.
        FolderInUseError: this process stood still so long that another took over.
    """
    require_int("batch_size", batch_size, 1)
    require_int("shard_size", shard_size, 1, MAX_SHARD)
    if shard_size % batch_size:
        raise ValueError(
            f"Expected shards of whole batches. Received: shard_size={shard_size}, batch_size={batch_size}. Take a multiple, such "
            f"as {(shard_size // batch_size + 1) * batch_size}."
        )
    work = _Work(maker, images, Path(folder), batch_size, shard_size)
    work.begin()
    total = None if None in images.sizes else sum(size or 0 for size in images.sizes)
    with counting(progress, "images", total) as advance:
        for source, writer in work.turns():
            work.make(source, writer, advance)
    return work.finish()


class _Work:
    """A folder that is being made."""

    def __init__(self, maker: FeatureMaker, images: EncodedShards, folder: Path, batch_size: int, shard_size: int):
        self.maker, self.images, self.folder = maker, images, folder
        self.batch_size, self.shard_size = batch_size, shard_size
        columns = {FEATURES: List(Value("float32")), DIGESTS: digests_column(maker.content), NAMES: Value("string")}
        self.columns = Features(columns | ({} if images.label is None else {"label": images.label}))
        self.manifest = {
            "kind": KIND,
            "form": FORM,
            "complete": False,
            "content": dict(maker.content),
            "images": images.digest(),
            "batch_size": batch_size,
            "shard_size": shard_size,
            "shards": [],
        }

    def path(self, source: int, part: int) -> Path:
        """Return the file of a part of a source."""
        return self.folder / f"features-{source:05}-{part:04}.arrow"

    def begin(self) -> None:
        """Write what the folder is for, or compare it; move damaged files aside.

        Raises:
            ValueError: the folder is for something else; says what differs.
        """
        with only_writer(self.folder, wait=True, each=True), disk_errors(self.folder):
            if (self.folder / MANIFEST).exists():
                self._require_same()
            else:
                write_json(self.manifest, self.folder / MANIFEST)
            self._remove_partial(MANIFEST)
            for path in sorted(self.folder.glob("features-*.arrow")):
                keep_intact(path, "image features")

    def _require_same(self) -> None:
        if not is_feature_folder(self.folder):
            raise ValueError(
                f"Expected a new folder, or one of image features to go on with. Received: {str(self.folder)!r} with another "
                f"{MANIFEST}. Choose another --output."
            )
        found = read_manifest(self.folder)
        names = {"content": "model or preprocessing", "images": "images", "batch_size": "batch size"}
        names |= {"shard_size": "shard size"}
        changed = [called for name, called in names.items() if found.get(name) != self.manifest[name]]
        if changed and changed[0] == names["content"]:
            changed[:1] = [name for name, value in self.maker.content.items() if found["content"].get(name) != value]
        if changed:
            raise ValueError(
                f"The image features in {str(self.folder)!r} were made with other {', '.join(changed)}. Choose another "
                "--output, or the same options."
            )

    def _remove_partial(self, pattern: str) -> None:
        """Remove what a kill left half written of files that nobody else writes now."""
        for path in self.folder.glob(f".{pattern}.*.partial"):
            path.unlink(missing_ok=True)

    def parts(self, source: int) -> list[dict]:
        """Return the details of the parts of a source that are there, from the first one on."""
        found: list[dict] = []
        while not (found and found[-1]["last"]):
            details = shard_details(self.path(source, len(found)))
            if details is None:
                break
            found.append(details)
        return found

    def is_done(self, source: int) -> bool:
        """Tell whether all parts of a source are there."""
        found = self.parts(source)
        return bool(found) and found[-1]["last"]

    def turns(self) -> Iterator[tuple[int, Writer]]:
        """Give each source that is not done when it is this process's to make: what others hold comes last."""
        sources = range(len(self.images.splits))
        first = Processes(launched_number(), launched()).share(sources).start
        left = [source for source in [*sources[first:], *sources[:first]] if not self.is_done(source)]
        claims = {source: Claim(self.path(source, 0)) for source in left}
        while left:
            before = len(left)
            for source in list(left):
                with claims[source].tried() as writer:
                    if writer is None:
                        continue
                    if not self.is_done(source):
                        yield source, writer
                    left.remove(source)
            if len(left) == before:  # others have all that is left
                time.sleep(_WAIT)

    def make(self, source: int, writer: Writer, advance: Callable[[int], None]) -> None:
        """Write the parts of a source that are not there."""
        self._remove_partial(f"features-{source:05}-*")
        found = self.parts(source)
        first = sum(details["seen"] for details in found)
        waiting = made_ahead(batched(self.images.read(source, first), self.batch_size), self._read)
        following = next(waiting, None)
        for number in count(len(found)):
            part = _Part(first)
            while following is not None and part.seen < self.shard_size:
                self._add(part, *following)
                advance(len(following[0]))
                following = next(waiting, None)
            writer.check()
            self._write(part, self.path(source, number), last=following is None)
            if following is None:
                return
            first += part.seen

    def _read(self, batch: list[Encoded]) -> list[tuple[bytes, dict[str, Tensor] | str]]:
        """Return the digest of each image of a batch, and what the model takes of it or why it cannot be read."""
        return [self._read_one(encoded) for encoded in batch]

    def _read_one(self, encoded: Encoded) -> tuple[bytes, dict[str, Tensor] | str]:
        inputs = preprocessed(decode(encoded, self.images.image), self.maker.preprocess)
        return (b"", inputs) if isinstance(inputs, str) else (image_digest(encoded.value), inputs)

    def _add(self, part: _Part, batch: list[Encoded], made: list[tuple[bytes, dict[str, Tensor] | str]]) -> None:
        """Encode what was read of a batch."""
        part.seen += len(batch)
        inputs = []
        for encoded, (digest, found) in zip(batch, made, strict=True):
            if isinstance(found, str):
                part.problems.append((as_text(encoded.name), found))
                continue
            inputs.append(found)
            part.digests.append(digest)
            part.names.append(as_text(encoded.name))
            part.labels.append(encoded.label)
        if inputs:
            together = {name: torch.cat([each[name] for each in inputs]) for name in inputs[0]}
            part.features.append(self.maker.encode(together))

    def _write(self, part: _Part, path: Path, last: bool) -> None:
        """Write a part, whole or not at all."""
        features = torch.cat(part.features) if part.features else torch.zeros(0, 0)
        offsets = torch.arange(len(features) + 1, dtype=torch.int32) * features.shape[1]
        values = pa.array(features.reshape(-1).numpy())
        schema = self.columns.arrow_schema
        columns = {
            FEATURES: pa.ListArray.from_arrays(pa.array(offsets.numpy()), values),
            DIGESTS: pa.array(part.digests, pa.binary()),
            NAMES: pa.array(part.names, pa.string()),
        }
        if self.images.label is not None:
            columns["label"] = pa.array(part.labels, schema.field("label").type)
        details = {
            "first": part.first,
            "seen": part.seen,
            "last": last,
            "rows": len(features),
            "problems": part.problems,
        }
        metadata = {**(schema.metadata or {}), DETAILS: json.dumps(details).encode()}
        table = pa.table(columns, schema=schema.with_metadata(metadata))
        with atomic_path(path) as partial:
            with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table, max_chunksize=_CHUNK)
            add_checksum(partial)

    def finish(self) -> FeatureSummary:
        """Write the manifest of all shards, and the list of what could not be read.

        Raises:
            OSError: shards went away meanwhile.
            ValueError: there is no image, or none can be read.
        """
        shards, problems = [], []
        for source, split in enumerate(self.images.splits):
            if not self.is_done(source):
                raise OSError(f"Files of {str(self.path(source, 0))!r} went away meanwhile. Start again.")
            for part, details in enumerate(self.parts(source)):
                path = self.path(source, part)
                rows, skipped = details["rows"], len(details["problems"])
                entry = {"file": path.name, "split": split, "rows": rows, "skipped": skipped}
                shards.append(entry | {"sha256": said_checksum(path)})
                problems += [tuple(problem) for problem in details["problems"]]
        images = sum(entry["rows"] for entry in shards)
        require_readable(problems, images + len(problems))
        listed = self.folder / SKIPPED_FILE
        with only_writer(self.folder, wait=True, each=True):
            if problems:
                write_skipped(listed, problems)
            write_json(self.manifest | {"complete": True, "shards": shards}, self.folder / MANIFEST)
        tell_skipped(problems, images + len(problems))
        return FeatureSummary(images, len(problems), len(shards), listed if problems else None)


@dataclass
class _Part:
    """What goes into one file: where it begins among the images of its source, how many of these it covers, and what of them."""

    first: int
    seen: int = 0
    names: list[str] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)


def feature_maker(model: Any, image_processor: ImageProcessor) -> FeatureMaker:
    """Return what makes L2-normalised image features of a base model, as `cached_features` does without augmentation.

    Args:
        model: a PEFT model of this package, whose adapters are switched off.
        image_processor: what makes its inputs of images.
    """
    transform = EvalTransform(image_processor)

    def encode(inputs: dict[str, Tensor]) -> Tensor:
        with model.disable_adapter():
            return encode_frozen(model, inputs)

    with model.disable_adapter():
        content = features_content(model, transform)
    return FeatureMaker(content, lambda image: transform({"image": [image]}), encode)
