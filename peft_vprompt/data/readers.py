"""From what a user calls the data to rows by split: folders, tables, archives, saved data sets and ids on the Hub."""

from __future__ import annotations

import glob
import itertools
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from tempfile import mkdtemp

import datasets
from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset, load_from_disk
from datasets.exceptions import DatasetNotFoundError

from ..utils.digests import digest_json
from ..utils.io import disk_errors
from ..utils.validation import first_line, shorten
from ..utils.warning import warn_caller
from .class_names import nearest
from .columns import same_names, same_types
from .declared import declared_files, require_declared
from .feature_folders import is_feature_folder, read_features
from .folders import IMAGE_SUFFIXES, Found, is_image, label_files, split_name, walk, warn_empty, warn_other_pictures
from .tables import TABLE_SUFFIXES, TAR_SUFFIXES, TEXT_SUFFIXES, file_mark, group_by_split, read_tables, read_tars


_ARCHIVES = (".zip",)
#: What to do where the cache of data sets cannot be written.
CACHE_REMEDY = "set HF_DATASETS_CACHE to another folder"

#: Most that an archive may hold: so many bytes for each of its own, and so many more.
_UNPACKED_SHARE, _UNPACKED_MORE = 100, 2**30
#: Files that `datasets.save_to_disk` leaves in its folder.
_SAVED = ("dataset_dict.json", "state.json")


def is_local(path: str) -> bool:
    """Tell whether the data are here: a path that exists, looks like a path or has wildcards, and no id on the Hub."""
    looks_so = path.startswith((".", "~")) or os.path.isabs(path) or path.count("/") > 1 or "\\" in path
    return looks_so or glob.has_magic(path) or os.path.exists(path) or path.lower().endswith(_endings())


def _endings() -> tuple[str, ...]:
    return (*TABLE_SUFFIXES, *TAR_SUFFIXES, *_ARCHIVES)


def read_rows(
    path: str,
    *,
    image_column: str,
    label_column: str | None,
    labels_from: str | None = "path",
    keep_loose: bool = False,
) -> dict[str, Dataset]:
    """Read all splits at a local path or of a data set on the Hub.

    Args:
        path: folder, file, pattern with wildcards, or id on the Hub.
        image_column: column of the images.
        label_column: column of the classes; None where each class has one.
        labels_from: which folders of an image folder are the class, see `label_files`.
        keep_loose: keep images that lie in no class folder.

    Raises:
        FileNotFoundError: there is nothing of that name; says what is there of a similar one.
        ValueError: what is there cannot be read as images.
    """
    local = Path(os.path.abspath(os.path.expanduser(path)))
    columns = {"image_column": image_column, "label_column": label_column}
    folder = {"labels_from": labels_from, "keep_loose": keep_loose}
    if local.is_dir():
        return _read_directory(local, columns, folder)
    if local.is_file():
        return _read_files([local], columns, folder)
    if "://" in path:
        raise FileNotFoundError(
            f"Expected a file, a folder, or a data set on the Hub by its id (owner/name). Received an address: {path}. Images are "
            "streamed by `vprompt features`, whose folder is then the data, and by `vprompt predict`; or download the file once, "
            "and name it."
        )
    if glob.has_magic(path):
        return _read_pattern(local, columns, folder)
    if is_local(path):
        raise FileNotFoundError(f"No file or folder {path}. {_beside(local)}")
    try:
        return dict(load_dataset(path))
    except (DatasetNotFoundError, ConnectionError, OSError) as error:
        raise FileNotFoundError(
            f"No file or folder {path}, and no data set of that id on the Hub or among those downloaded before "
            f"({type(error).__name__}: {' '.join(str(error).split())[:160]}). {_beside(local)}"
        ) from error


def _beside(missing: Path) -> str:
    """Say what there is in the last folder of a path that exists."""
    parent = missing.parent
    while not parent.is_dir():
        missing, parent = parent, parent.parent
    names = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    close = nearest(missing.name, names)
    if close is None:
        return f"{parent} is empty."
    return f"Nearest in {parent}: {close!r}. Check the spelling and the current folder."


def _read_directory(root: Path, columns: dict, folder: dict) -> dict[str, Dataset]:
    if is_feature_folder(root):
        return read_features(root)
    if any((root / name).is_file() for name in _SAVED):
        saved = load_from_disk(str(root))
        return dict(saved) if isinstance(saved, DatasetDict) else {"train": saved}
    files = list(walk(root))
    declared = declared_files(root)
    data = [Path(path) for _, path in files if declared is None or path in declared]
    images = [(parts, path) for parts, path in files if is_image(path)]
    classes = any(len(parts) > (split_name(parts[0]) is not None) for parts, _ in images if parts)
    if tables := [path for path in data if path.name.lower().endswith(".parquet")]:
        if classes:
            warn_caller(
                f"{root} holds parquet files, which are read, and {len(images)} images in folders, which are not."
            )
        return read_tables(tables, columns["image_column"], root, declared)
    metadata = _metadata_files(root)
    if metadata or images:
        if metadata:
            splits = _read_metadata(root, metadata, len(images), columns, folder)
        else:
            splits = _read_images(root, files, images, folder, classes)
        if declared is not None:
            require_declared(root, splits, columns["image_column"], declared)
        return splits
    for endings in (TAR_SUFFIXES, *((suffix,) for suffix in TEXT_SUFFIXES), _ARCHIVES):
        if chosen := [path for path in data if path.name.lower().endswith(endings)]:
            return _read_files(chosen, columns, folder, root, declared)
    raise ValueError(f"No images in {root}. {_what_is_there(files)}")


def _read_images(root: Path, files: Found, images: Found, folder: dict, classes: bool) -> dict[str, Dataset]:
    """Read a folder of images, of which `classes` tells whether some lie in folders of classes."""
    beside = [path for _, path in files if path.lower().endswith(TEXT_SUFFIXES)]
    if beside and not classes and folder["labels_from"]:
        warn_caller(
            f"Tables beside the images are not read: {shorten(beside, 5)}. Name one as the data for its labels."
        )
    warn_other_pictures(root, files)
    warn_empty(root, images)
    return label_files(root, images, **folder)


def _what_is_there(files: Found) -> str:
    endings = Counter(os.path.splitext(path)[1].lower() or "no ending" for _, path in files)
    if not endings:
        return "There is no file in it."
    held = shorten([f"{count} of {ending}" for ending, count in endings.most_common()])
    return f"There are files in it: {held}. Images are read from {shorten(IMAGE_SUFFIXES, 30)}."


def _read_files(
    files: Sequence[Path],
    columns: dict,
    folder: dict,
    root: Path | None = None,
    declared: Mapping[str, str] | None = None,
) -> dict[str, Dataset]:
    """Read files of one kind, by split if `root` is the folder they are in, or by the splits `declared`."""
    kinds = {next((ending for ending in _endings() if path.name.lower().endswith(ending)), "") for path in files}
    if len(kinds) > 1:
        raise ValueError(f"Expected data files of one kind. Received: {', '.join(sorted(kinds))}.")
    (kind,) = kinds
    if kind in TABLE_SUFFIXES:
        return read_tables(files, columns["image_column"], root, declared)
    splits = group_by_split(files, root, declared)
    if kind in _ARCHIVES or (kind in TAR_SUFFIXES and are_folders(splits)):
        if len(files) == 1:
            return _read_directory(_unpacked(files[0], kind), columns, folder)
        return {name: _read_archives(name, some, kind, columns, folder) for name, some in splits.items()}
    if kind in TAR_SUFFIXES:
        return read_tars(files, **columns, root=root, declared=declared)
    if folder["labels_from"] is None and is_image(files[0]):
        return label_files(files[0].parent, [((), str(path)) for path in files], None)
    what = "an image" if is_image(files[0]) else "a file of another kind"
    raise ValueError(
        f"Expected a folder of images, or a data file that ends in {', '.join(_endings())}. Received {what}: {files[0]}."
    )


def _read_archives(split: str, files: Sequence[Path], kind: str, columns: dict, folder: dict) -> Dataset:
    """Read packed folders of one split."""
    parts = []
    for path in files:
        inside = _read_directory(_unpacked(path, kind), columns, folder)
        if set(inside) not in ({split}, {"train"}):
            raise ValueError(
                f"Expected images of the split {split!r} alone in {path}, one of several archives. Received the splits: "
                f"{', '.join(inside)}. Unpack them into one folder, and name it, or name one archive."
            )
        parts.extend(inside.values())
    return concatenate_datasets(same_types(same_names(parts)))


def _read_pattern(pattern: Path, columns: dict, folder: dict) -> dict[str, Dataset]:
    """Read what fits a pattern: data files of one kind, images, or folders of them."""
    found = [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True))]
    if not found:
        raise FileNotFoundError(f"No file or folder fits {pattern}.")
    root = Path(*pattern.parts[: next(i for i, part in enumerate(pattern.parts) if glob.has_magic(part))])
    files = [path for path in found if path.is_file()]
    if files and not any(is_image(path) for path in files):
        return _read_files(files, columns, folder, root)
    inside = [Path(path) for each in found if each.is_dir() for _, path in walk(each)]
    images = [path for path in dict.fromkeys([*files, *inside]) if is_image(path)]
    if not images:
        raise ValueError(f"No images in what fits {pattern}: {shorten([path.name for path in found])}.")
    return label_files(root, [(path.relative_to(root).parts[:-1], str(path)) for path in images], **folder)


def _metadata_files(root: Path) -> list[Path]:
    """Return the files that say more of the images, as `datasets` calls them, in the folder or its splits."""
    places = [root, *(entry for entry in sorted(root.iterdir()) if entry.is_dir() and split_name(entry.name))]
    return [
        place / name for place in places for name in ("metadata.csv", "metadata.jsonl") if (place / name).is_file()
    ]


def _read_metadata(root: Path, files: Sequence[Path], count: int, columns: dict, folder: dict) -> dict[str, Dataset]:
    """Read images with what `metadata.csv` says of them; their folders say their split, and the class if it does not."""
    image, label = columns["image_column"], columns["label_column"]
    parts = [next(iter(read_tables([path], image).values())) for path in files]
    if any(image not in part.column_names for part in parts):
        raise ValueError(f"No column 'file_name' in {files[0]}. It has: {', '.join(parts[0].column_names)}.")
    rows = concatenate_datasets(same_types(parts))
    named = [[os.path.normpath(path) for path in part[image][:]] for part in parts]
    paths = [path for some in named for path in some]
    together = itertools.combinations(zip(files, named, strict=True), 2)
    if any(one.parent == other.parent and not set(some).isdisjoint(more) for (one, some), (other, more) in together):
        raise ValueError(
            f"Expected images to be named once. Received metadata.csv and metadata.jsonl in one folder of {root}, which both name "
            "some. Keep one of the two files."
        )
    if (left := count - len(set(paths))) > 0:
        warn_caller(
            f"{left} images in {root} are left out: {', '.join(path.name for path in files)} does not name them."
        )
    split = rows["split"][:] if "split" in rows.column_names else [_folder_split(root, path) for path in paths]
    if label is not None and label not in rows.column_names:
        if not folder["keep_loose"] and all(Path(path).parent in (root, *{f.parent for f in files}) for path in paths):
            names = ", ".join(name for name in rows.column_names if name != image)
            raise ValueError(
                f"No column {label!r} in {files[0]}, and no class folders. It has: {names}. Name the column of the classes by "
                "label_column (--label-column)."
            )
        found = [(Path(os.path.relpath(path, root)).parts[:-1], path) for path in paths]
        return label_files(root, found, **folder)
    chosen = {name: [i for i, s in enumerate(split) if s == name] for name in dict.fromkeys(split)}
    return {name: rows.select(indices) for name, indices in chosen.items()}


def _folder_split(root: Path, path: str) -> str:
    return split_name(Path(os.path.relpath(path, root)).parts[0]) or "train"


def are_folders(splits: Mapping[str, Sequence[PurePath]]) -> bool:
    """Tell whether tar files are packed folders of class folders, one for each split."""
    return all(len(files) == 1 and holds_a_folder(files[0]) for files in splits.values())


def holds_a_folder(archive: PurePath) -> bool:
    """Tell whether a tar file is a packed folder of class folders: images with nothing beside each of the same name."""
    seen: dict[tuple[str, str], str] = {}
    images = False
    try:
        with tarfile.open(archive) as file:
            for member in file:
                name = Path(member.name)
                if not member.isfile() or any(part.startswith(".") for part in name.parts):
                    continue
                if is_image(name) and len(name.parts) == 1:
                    return False
                images |= is_image(name)
                if seen.setdefault((str(name.parent), name.name.partition(".")[0]), name.name) != name.name:
                    return False  # a sample of several entries, as the WebDataset form has it
    except (tarfile.TarError, EOFError, OSError, zlib.error):
        return False  # said where it is read
    return images


def _unpacked(archive: Path, kind: str) -> Path:
    """Unpack a zip or tar file into the cache, once, and return the folder that holds the classes or splits.

    Raises:
        ValueError: the file is damaged or locked by a password.
        CannotWriteError: the disk is full, or the cache is not to be written.
    """
    place = Path(datasets.config.HF_DATASETS_CACHE) / "vprompt-zip"
    folder = place / digest_json(file_mark(archive))
    if not folder.is_dir():
        with disk_errors(place, CACHE_REMEDY):
            _unpack(archive, kind, place, folder)
    return _inner(folder, archive.name.removesuffix(kind))


def _unpack(archive: Path, kind: str, place: Path, folder: Path) -> None:
    """Unpack a file beside `folder`, and rename what came out when all of it is there."""
    place.mkdir(parents=True, exist_ok=True)
    partial = mkdtemp(dir=place)
    try:
        if kind in TAR_SUFFIXES:
            with tarfile.open(archive) as file:
                # Nothing outside of the folder, and files alone; Python before 3.11.4 has no filter.
                file.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
                inside = [m for m in file if m.isfile() and not {"..", "/"} & set(Path(m.name).parts)]
                _require_proportion(archive, sum(member.size for member in inside))
                file.extractall(partial, inside)
        else:
            with zipfile.ZipFile(archive) as file:
                _require_proportion(archive, sum(member.file_size for member in file.infolist()))
                file.extractall(partial)
        if not folder.is_dir():  # of another process, meanwhile
            os.replace(partial, folder)
    except (zipfile.BadZipFile, tarfile.TarError, RuntimeError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"Cannot unpack {archive}: {first_line(error)}. Unpack it yourself, or mend it.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _require_proportion(archive: Path, unpacked: int) -> None:
    """Refuse an archive that would fill the disk: images and tables are not packed so tight."""
    if unpacked > _UNPACKED_SHARE * archive.stat().st_size + _UNPACKED_MORE:
        raise ValueError(
            f"Expected an archive of images. Received: {archive} of {archive.stat().st_size:,} bytes, which holds "
            f"{unpacked:,}. Unpack it yourself if you trust it, and give the folder."
        )


def _inner(folder: Path, stem: str) -> Path:
    """Return the one folder that everything in an archive lies in, if it is no class and no split."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith((".", "__MACOSX"))]
    if len(entries) != 1 or not entries[0].is_dir() or split_name(entries[0].name):
        return folder
    holds_folders = any(entry.is_dir() for entry in entries[0].iterdir())
    return entries[0] if holds_folders or entries[0].name == stem else folder
