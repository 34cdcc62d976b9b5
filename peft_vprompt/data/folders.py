"""Image folders: which files are images, which folders are splits, and which class a folder's images are of."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from datasets import Dataset

from ..utils.validation import require_choice, shorten
from ..utils.warning import warn_caller


#: Endings of files that Pillow reads, in lower case.
IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
#: Endings of pictures of phones, cameras and drawing programs, which are not read.
_OTHER_PICTURES = (
    *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".raw", ".rw2"),
    *(".exr", ".heic", ".heif", ".jxl", ".psd", ".svg", ".xcf"),
)
#: Names of splits by the name that they have here.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
_SPLITS = {name: split for split, names in SPLIT_NAMES.items() for name in names}
#: Folders that programs leave behind.
_NO_CLASSES = {"__MACOSX", "__pycache__"}

#: Which of the folders between the root and an image is its class.
LABELS_FROM = ("path", "first", "last")

#: Files, each with the folders between it and the root (or its split).
Found = list[tuple[tuple[str, ...], str]]


def split_name(name: str) -> str | None:
    """Return the split that a name stands for, whatever its case; None where it stands for none."""
    return _SPLITS.get(name.lower())


def label_files(
    root: Path, found: Found, labels_from: str | None = "path", keep_loose: bool = False
) -> dict[str, Dataset]:
    """Return image files by split, with the folders that they lie in as their classes.

    Where all folders in `root` have the names of splits, they are splits; where some do, all are classes.

    Args:
        root: the folder.
        found: images in it.
        labels_from: `path` for the whole path below the split as the class, `first` or `last` for its first or last
            folder; None where folders are no classes.
        keep_loose: keep images that lie in no class folder, without a label; else they are left out, and it is said.

    Returns:
        By split, a data set of files `image` and, where there are class folders, `label`.

    Raises:
        ValueError: an unknown `labels_from`.
    """
    if labels_from is None:
        return _unlabelled(found)
    require_choice("labels_from", labels_from, LABELS_FROM)
    splits = _split(root, found)
    return {name: _labelled(root, rows, labels_from, keep_loose) for name, rows in splits.items()}


def walk(root: str | Path) -> Iterator[tuple[tuple[str, ...], str]]:
    """Give the files below a folder in order, each with the folders between.

    Links are followed, but not back up; hidden files and folders are passed over.
    """
    waiting: list[tuple[str, tuple[str, ...], frozenset[str]]] = [(str(root), (), frozenset())]
    while waiting:
        folder, parts, above = waiting.pop()
        place = os.path.realpath(folder)
        if place in above:
            warn_caller(f"{folder} is a link to a folder that it lies in, and is not followed.")
            continue
        with os.scandir(folder) as entries:
            visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
        if strange := [entry.path for entry in visible if not _is_text(entry.name)]:
            warn_caller(f"Names that are no UTF-8 are left out: {shorten(list(map(ascii, strange)), 5)}. Rename them.")
        visible = [entry for entry in visible if _is_text(entry.name)]
        folders = [entry for entry in visible if entry.name not in _NO_CLASSES and entry.is_dir()]
        if lost := [entry.path for entry in visible if _is_lost_folder(entry)]:
            warn_caller(f"Links to folders that are not there are left out: {shorten(lost, 5)}.")
        yield from ((parts, entry.path) for entry in visible if not entry.is_dir())
        waiting += [(entry.path, (*parts, entry.name), above | {place}) for entry in reversed(folders)]


def _is_text(name: str) -> bool:
    """Tell whether a name can be written in a table: that of a file may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_lost_folder(entry: os.DirEntry) -> bool:
    """Tell whether an entry is a link to nothing that is not called like a file; an image of this kind is found later."""
    return entry.is_symlink() and not os.path.splitext(entry.name)[1] and not os.path.exists(entry.path)


def is_image(path: str | Path) -> bool:
    """Tell whether a file is called like an image."""
    return str(path).lower().endswith(IMAGE_SUFFIXES)


def warn_other_pictures(root: str | Path, found: Found) -> None:
    """Say which files in class folders are pictures that are not read: an image is never left out without a word."""
    left = [path for parts, path in found if parts and _is_other_picture(path)]
    if left:
        count = "1 picture is" if len(left) == 1 else f"{len(left)} pictures are"
        warn_caller(
            f"{count} left out in {root}, of a kind that is not read or without an ending: {shorten(left, 5)}. Save such as "
            "JPEG or PNG to have them among the images."
        )


def _is_other_picture(path: str) -> bool:
    ending = os.path.splitext(path)[1].lower()
    return ending in _OTHER_PICTURES or (not ending and os.path.isfile(path))


def _split(root: Path, found: Found) -> dict[str, Found]:
    """Return the images by split: `train` where no folder is one."""
    top = dict.fromkeys(parts[0] for parts, _ in found if parts)
    known = {name: split for name in top if (split := split_name(name))}
    if not known or len(known) < len(top):
        if known:
            warn_caller(
                f"In {root}, {shorten(list(known))} stand beside {shorten([n for n in top if n not in known])}: all of "
                "them are read as classes, none as a split."
            )
        return {"train": found}
    if loose := [path for parts, path in found if not parts]:
        warn_caller(f"{_count(loose)} beside the splits of {root} left out: {shorten(loose, 5)}.")
    splits: dict[str, Found] = {split: [] for split in SPLIT_NAMES if split in known.values()}
    for parts, path in found:
        if parts:
            splits[known[parts[0]]].append((parts[1:], path))
    if all(len(parts) < 2 for parts, _ in found):
        warn_caller(
            f"{shorten(list(known))} in {root} have the names of splits and are read as such, and no class folders are in "
            "them. If they are classes, give one another name ('train vehicle'), or write a table of images and labels."
        )
    return splits


def _unlabelled(found: Found) -> dict[str, Dataset]:
    """Return all images: by split where each lies in a folder with the name of one, else as `train`."""
    tops = [(split_name(parts[0]) or "") if parts else "" for parts, _ in found]
    splits = tops if all(tops) else ["train"] * len(found)
    files = [path for _, path in found]
    return {
        name: Dataset.from_dict({"image": [path for path, split in zip(files, splits, strict=True) if split == name]})
        for name in dict.fromkeys(splits)
    }


def _labelled(root: Path, found: Found, labels_from: str, keep_loose: bool) -> Dataset:
    loose = [path for parts, path in found if not parts]
    if len(loose) == len(found):
        return Dataset.from_dict({"image": loose})
    if loose and not keep_loose:
        warn_caller(
            f"{_count(loose)} beside the class folders of {root} left out, being of no class: {shorten(loose, 5)}."
        )
        found = [(parts, path) for parts, path in found if parts]
    if labels_from == "path" and (nested := next((parts for parts, _ in found if len(parts) > 1), None)):
        warn_caller(
            f"Folders of {root} lie in each other: the class of an image is its whole path, such as {'/'.join(nested)!r}. "
            f"For {nested[0]!r} give labels_from='first' (`--labels-from first`), for {nested[-1]!r} 'last'."
        )
    if within := dict.fromkeys("/".join(parts) for parts, _ in found if any(map(split_name, parts[1:]))):
        warn_caller(
            f"Folders of {root} have the names of splits and lie in other folders, where they are read as classes: "
            f"{shorten(list(within), 5)}. Splits are the folders at the top of what is named as the data."
        )
    labels = [_label(parts, labels_from) if parts else None for parts, _ in found]
    return Dataset.from_dict({"image": [path for _, path in found], "label": labels})


def _label(parts: Sequence[str], labels_from: str) -> str:
    return "/".join(parts) if labels_from == "path" else parts[0 if labels_from == "first" else -1]


def _count(paths: Sequence[str]) -> str:
    return "1 image is" if len(paths) == 1 else f"{len(paths)} images are"
