"""Images that are streamed by `datasets`: each file is read once, from its place, and nothing of it is kept on the disk.

Files of parquet and tar files of the WebDataset form, on this machine or behind any address that fsspec knows, and data
sets of the Hub. What they hold is data: no code in them is run, and names in them are names, not places to write to.
"""

from __future__ import annotations

import glob
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
from datasets import Features, Image, IterableDataset, Value, load_dataset, load_dataset_builder
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from fsspec.core import url_to_fs
from pyarrow import parquet

from ..utils.digests import digest_json
from ..utils.validation import first_line, shorten
from .columns import class_label_of, is_text, renumbered
from .declared import README, configurations, declared_files, listed
from .encoded import Encoded, warn_unlabelled
from .feature_folders import is_feature_folder
from .folders import is_image, walk
from .images import RGBImage
from .labels import as_text, asked_text, parse_condition
from .options import DataOptions
from .readers import are_folders, is_local
from .tables import PATH_COLUMNS, TAR_SUFFIXES, group_by_split


#: What reads files, by their endings.
_BUILDERS = {(".parquet",): "parquet", TAR_SUFFIXES: "webdataset"}
#: Rows of a table that are in memory at the same time.
_ROWS = 256
#: What a file system says of a file by which it is known again, beside its size; the first that it says.
_MARKS = ("ETag", "etag", "blob_id", "mtime", "LastModified", "created")
#: What is raised of a file that cannot be read.
_UNREADABLE = (
    *(tarfile.TarError, pa.ArrowException, DatasetsError, zlib.error),
    *(ValueError, TypeError, KeyError, OSError, EOFError, RecursionError, OverflowError),
)


class _File(NamedTuple):
    """A file of a stream.

    Attributes:
        split: its split.
        name: what to call it.
        mark: by what it is known again.
        folder: where it lies, if on this machine.
        schema: the place of a file that says itself what its columns are; None for others.
    """

    split: str
    name: str
    mark: str
    folder: str | None = None
    schema: str | None = None


class StreamedImages:
    """Images of streamed files, a shard for each, as `EncodedShards`.

    Args:
        files: the files, in the order of the shards.
        rows: the rows of each.
        options: which columns hold what, which rows are taken, and how images are decoded.
    """

    def __init__(self, files: Sequence[_File], rows: Sequence[IterableDataset], options: DataOptions):
        self._files = files
        self._rows = rows
        self._options = options
        features = rows[0].features or {}
        self._image = _image_column(features, options)
        self._label = options.label_column if _feature(features, options.label_column) is not None else None
        if self._label is None and "cls" in features:
            self._label = "cls"
        self._names = [
            name for name, feature in features.items() if name.lower() in PATH_COLUMNS and isinstance(feature, Value)
        ]
        self._where = [parse_condition(condition) for condition in options.where]
        for column, *_ in self._where:
            if _feature(features, column) is None:
                raise ValueError(f"No column {column!r}. The data has: {', '.join(features)}.")
        self._features = features
        self.columns = list(features)
        self.splits: Sequence[str] = [file.split for file in files]
        self.sizes: Sequence[int | None] = [None] * len(files)
        self.label = None if self._label is None else _feature(features, self._label)
        self.image = RGBImage(background=options.background)

    def read(self, shard: int, first: int = 0) -> Iterator[Encoded]:
        """Give the images of a file, from one on.

        Raises:
            ValueError: the file cannot be read, names classes that the first one does not, or images are addresses that are
                not to be followed; names it.
        """
        taken = 0
        own = self._columns_of_classes(self._files[shard])
        counted = [name for name in own if class_label_of(self._features.get(name)) is not None]
        features = self._features | {name: own[name] for name in counted}
        named = {name: class_label_of(own[name]) for name in own if _holds_text(self._features.get(name))}
        for number, row in enumerate(self._read(shard)):
            row |= {name: _named(row[name], label) for name, label in named.items()}
            if not all(_meets(row, features, *condition) for condition in self._where):
                continue
            taken += 1
            if taken > first:
                yield self._encoded(row, self._files[shard], number, features)

    def digest(self) -> str:
        """Return a digest by which the same images are known again: names, sizes and times (or ETags) of the files."""
        options = self._options
        about = [self._image, self._label, options.where, repr(self.image)]
        return digest_json([about, [file[:3] for file in self._files]], 32)

    def _columns_of_classes(self, file: _File) -> dict:
        """Return the columns of classes as a file itself has them: `datasets` takes those of the first file for all."""
        if file.schema is None:
            return {}
        try:
            with fsspec.open(file.schema) as opened:
                own = Features.from_arrow_schema(parquet.read_schema(opened))
        except _UNREADABLE:
            return {}  # said where its rows are read
        return {name: feature for name, feature in own.items() if class_label_of(feature) is not None}

    def _label_of(self, row: dict, file: _File, features: dict) -> Any:
        """Return the label of a row, or the list of its labels, as numbers that count as the first file's."""
        if self._label is None:
            return None
        value = _value(row, self._label)
        own, first = (class_label_of(_feature(types, self._label)) for types in (features, self._features))
        if own is None or first is None or own.names == first.names:
            return value
        numbers = value if isinstance(value, list) else [value]
        named = {own.names[number] for number in numbers if number is not None and number >= 0}
        if unknown := named - set(first.names):
            raise ValueError(
                f"Expected the classes of {self._files[0].name}: {shorten(first.names)}. Received {min(unknown)!r} in "
                f"{file.name}. Write the classes as text, or the same names in all files."
            )
        return renumbered(value, own.names, first.names)

    def _read(self, shard: int) -> Iterator[dict]:
        rows = iter(self._rows[shard])
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except _UNREADABLE as error:
                raise ValueError(
                    f"Cannot read {self._files[shard].name}: {first_line(error)}. Mend it, or leave it out of the data."
                ) from error
            yield row

    def _encoded(self, row: dict, file: _File, number: int, features: dict) -> Encoded:
        value = _value(row, self._image)
        if isinstance(value, str):
            value = {"bytes": None, "path": value}
        elif isinstance(value, bytes):
            value = {"bytes": value, "path": None}
        value = value or {"bytes": None, "path": None}
        said = next((row[name] for name in self._names if row.get(name)), None) or value.get("path")
        name = str(said) if said and self._names else f"{file.name}/{said}" if said else f"{file.name} row {number}"
        if value.get("bytes") is None and value.get("path"):
            value = {"bytes": None, "path": self._located(value["path"], file)}
        return Encoded(name, value, self._label_of(row, file, features))

    def _located(self, path: str, file: _File) -> str:
        """Return where the file of an image is that a table names by its path.

        Raises:
            ValueError: an address that is not to be followed, or a path in a table that is not on this machine.
        """
        if "://" in path:
            if not self._options.follow_urls:
                raise ValueError(
                    f"{file.name} names addresses in the place of images, such as {path[:200]}. They are followed only where you "
                    "ask for it by follow_urls=True (--follow-urls). Better download them once."
                )
            return path
        if file.folder is None:
            raise ValueError(
                f"Expected encoded images in {file.name}, which is not on this machine. Received the path of one: {path[:200]!r}. "
                "Put the images into the files."
            )
        return os.path.join(file.folder, os.path.expanduser(path))


def can_stream(options: DataOptions) -> bool:
    """Tell whether data are of a kind that is streamed: addresses, parquet files and tars of the WebDataset form, the Hub.

    Not so are folders of images, tables with paths, archives of folders and what `save_to_disk` wrote.
    """
    if "://" in options.path or not is_local(options.path):
        return True
    place = Path(os.path.expanduser(options.path))
    if is_feature_folder(place):
        return False
    names, declared = _declared(options.path)
    kinds = set(map(_builder, names))
    if "parquet" in kinds or "webdataset" not in kinds:
        return "parquet" in kinds
    if any(map(is_image, names)):
        return False
    tars = [PurePosixPath(name) for name in names if _builder(name)]
    return not are_folders(group_by_split(tars, _root(tars), declared))


def open_stream(options: DataOptions, split: str | None = None, labelled: bool = False) -> StreamedImages:
    """Open images that are streamed, without reading more of them than what their columns are.

    Args:
        options: where they are: files, a folder of them or a pattern, also as an address (`s3://`, `hf://`, `https://`,
            `memory://`, ...), or an id on the Hub; which columns hold what.
        split: the split to take, by the names of files as for other data; None for all images.
        labelled: warn where there is no column of classes.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: files of no kind or of several, no images in them, or no such split.
        ImportError: the file system of an address is not installed.
    """
    if options.split_column is not None:
        raise ValueError(
            "The splits of images that are streamed are those of their files. Received: "
            f"split_column={options.split_column!r}. Leave it out, and take the rows of a split by where=['"
            f"{options.split_column}=train'] (--where)."
        )
    is_id = not is_local(options.path) and "://" not in options.path
    by_split, files = _of_hub(options) if is_id else _of_files(options)
    if split is not None and split not in by_split:
        raise ValueError(f"No split {split!r}. The data has: {', '.join(by_split)}.")
    chosen = {name: rows for name, rows in by_split.items() if split in (None, name)}
    shards = [rows.shard(rows.num_shards, i).decode(False) for rows in chosen.values() for i in range(rows.num_shards)]
    images = StreamedImages([file for name in chosen for file in files[name]], shards, options)
    if labelled and images.label is None:
        warn_unlabelled(options.label_column, images.columns)
    return images


def _of_hub(options: DataOptions) -> tuple[dict[str, IterableDataset], dict[str, list[_File]]]:
    try:
        builder = load_dataset_builder(options.path)
    except (DatasetNotFoundError, ConnectionError, OSError) as error:
        raise FileNotFoundError(
            f"No file or folder {options.path}, and no data set of that id on the Hub or among those downloaded before "
            f"({type(error).__name__}: {first_line(error)}). Check the spelling and the current folder."
        ) from error
    by_split = dict(builder.as_streaming_dataset())
    known: Any = builder.config.data_files or {}
    files = {}
    for name, rows in by_split.items():
        some = known.get(name, [])
        marks = str(getattr(some, "origin_metadata", ""))
        names = [str(file) for file in some] if len(some) == rows.num_shards else [name] * rows.num_shards
        called = [PurePosixPath(each).name if "/" in each else f"{each} {i}" for i, each in enumerate(names)]
        files[name] = [_File(name, each, digest_json([marks, rows.num_shards])) for each in called]
    return by_split, files


def _of_files(options: DataOptions) -> tuple[dict[str, IterableDataset], dict[str, list[_File]]]:
    system, _ = _system(options.path)
    found, declared = _declared(options.path)
    kind = next((kind for kind in _BUILDERS.values() if kind in map(_builder, found)), None)
    if kind is None:
        endings = ", ".join(ending for some in _BUILDERS for ending in some)
        what = shorten([PurePosixPath(name).name for name in found])
        raise ValueError(f"Expected files that end in {endings}, in {options.path!r}. Received: {what}.")
    chosen = [PurePosixPath(name) for name in found if _builder(name) == kind]
    grouped = {split: sorted(names) for split, names in group_by_split(chosen, _root(chosen), declared).items()}
    here = "file" in _protocols(options.path)
    places = {
        split: [str(name) if here else system.unstrip_protocol(str(name)) for name in names]
        for split, names in grouped.items()
    }
    files = {
        split: [
            _File(
                split,
                name.name,
                _mark(system.info(str(name))),
                str(name.parent) if here else None,
                place if kind == "parquet" else None,
            )
            for name, place in zip(names, places[split], strict=True)
        ]
        for split, names in grouped.items()
    }
    own = {"batch_size": _ROWS} if kind == "parquet" else {}
    # Patterns to `datasets`; in addresses of the web `?` is none.
    literal = str if "https" in _protocols(options.path) else glob.escape
    patterns = {split: list(map(literal, some)) for split, some in places.items()}
    try:
        return dict(load_dataset(kind, data_files=patterns, streaming=True, **own)), files
    except _UNREADABLE as error:
        cause: Any = error.__cause__ or error
        raise ValueError(f"Cannot read {options.path}: {first_line(cause)}.") from error


def _root(names: list[PurePosixPath]) -> PurePosixPath | None:
    """Return the folder below which folders and names say the split; None for one file."""
    if len(names) == 1:
        return None
    return PurePosixPath(os.path.commonpath([str(name.parent) for name in names]))


def _find(path: str) -> list[str]:
    """Return the files at a place in their order, by their paths there.

    Raises:
        FileNotFoundError: there is nothing.
    """
    system, inside = _system(path)
    if glob.has_magic(inside) and not system.exists(inside):
        names = [name for name in system.glob(inside) if _is_seen(PurePosixPath(name).name)]
    elif _builder(inside) or not system.isdir(inside):
        names = [inside] if system.isfile(inside) else []
    else:
        below = (name for _, name in walk(inside)) if "file" in _protocols(path) else system.find(inside)
        names = [name for name in below if _is_seen(name.removeprefix(inside))]
    if not names:
        raise FileNotFoundError(f"No file or folder {path}, or nothing in it.")
    return sorted(names)


def _declared(path: str) -> tuple[list[str], dict[str, str] | None]:
    """Return the files at a place, those alone that a README.md there declares if it does, and the splits of these.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: several configurations, of which none is known to be the default.
    """
    found = _find(path)
    system, inside = _system(path)
    if "file" in _protocols(path):
        declared = declared_files(Path(inside)) if system.isdir(inside) else None
        return [name for name in found if declared is None or name in declared], declared
    readme = f"{inside.rstrip('/')}/{README}"
    if readme in found and len(known := configurations(system.cat_file(readme).decode(errors="replace"))) > 1:
        raise ValueError(
            f"Expected files of one configuration. Received several, which {readme} declares. Name the folder or, by a pattern "
            f"in quotes, the files of one as the data (--data): {listed(known)}."
        )
    return found, None


def _protocols(path: str) -> Sequence[str]:
    """Return what the file system of a place is called; `file` is that of this machine."""
    said = _system(path)[0].protocol
    return [said] if isinstance(said, str) else said


def _system(path: str) -> tuple[Any, str]:
    """Return the file system of a place, and the place in it."""
    return url_to_fs(path if "://" in path else os.path.abspath(os.path.expanduser(path)))


def _is_seen(inside: str) -> bool:
    return not any(part.startswith((".", "__")) for part in PurePosixPath(inside).parts)


def _mark(info: dict) -> str:
    said = next((str(info[name]) for name in _MARKS if info.get(name) is not None), "")
    return f"{info.get('size')} {said}"


def _builder(name: str) -> str | None:
    return next((kind for endings, kind in _BUILDERS.items() if name.lower().endswith(endings)), None)


def _image_column(features: dict, options: DataOptions) -> str:
    """Return the column of the images.

    Raises:
        ValueError: there is none, or it shows not which; says what there is.
    """
    feature = _feature(features, options.image_column)
    if isinstance(feature, Image) or (isinstance(feature, Value) and _is_encoded(feature)):
        return options.image_column
    images = [name for name, each in features.items() if isinstance(each, Image)]
    images = images or [name for name in features if name.lower() in PATH_COLUMNS]
    if feature is not None or len(images) != 1:
        raise ValueError(
            f"Expected images in the column {options.image_column!r}. The data has: {', '.join(features) or 'none'}. Name the "
            "column of the images by image_column (--image-column)."
        )
    return images[0]


def _is_encoded(feature: Value) -> bool:
    return is_text(feature) or feature.dtype in ("binary", "large_binary")


def _holds_text(feature: Any) -> bool:
    """Tell whether a column holds text, or lists of such."""
    return is_text(getattr(feature, "feature", feature))


def _named(value: Any, label: Any) -> Any:
    """Return the name of a number of a class, also where it was made text; of a list, the names of those in it."""
    if isinstance(value, list):
        return [_named(each, label) for each in value]
    return None if value is None or int(value) < 0 else label.names[int(value)]


def _feature(features: Any, column: str) -> Any:
    """Return the type of a column, or of an entry of one as in `json.label`; None where there is none."""
    if column in features:
        return features[column]
    outer, dot, inner = column.partition(".")
    inside = features.get(outer) if dot else None
    return _feature(inside, inner) if isinstance(inside, dict) else None


def _meets(row: dict, features: dict, column: str, value: str, negated: bool) -> bool:
    """Tell whether a row meets a condition, see `labels.parse_condition`."""
    feature = _feature(features, column)
    return (as_text(_value(row, column), feature) == asked_text(value, feature)) != negated


def _value(row: dict, column: str) -> Any:
    """Return the value of such a column in a row."""
    if column in row:
        return row[column]
    outer, _, inner = column.partition(".")
    return _value(row[outer] or {}, inner) if outer in row else None
