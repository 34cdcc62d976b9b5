"""Images of which nothing else is known: read one by one under their names, so that a broken one costs only itself."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, Value, concatenate_datasets
from PIL import Image

from ..utils.digests import Digest, digest_json
from .columns import same_names
from .encoded import Encoded, RowShards, decode, warn_unlabelled
from .feature_folders import images_alone, require_images
from .images import RGBImage
from .labels import check_column, image_column, tell_idle_filters, where_mask
from .options import DataOptions
from .sources import read_splits, split_named
from .tables import PATH_COLUMNS


class NamedImages:
    """Encoded images and their names.

    Args:
        rows: a column `image` of encoded images or paths.
        names: a name for each.
        feature: how they are read.
    """

    def __init__(self, rows: Dataset, names: list[str], feature: RGBImage):
        self.rows = rows
        self.names = names
        self.feature = feature

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Image.Image | str:
        """Return an image in RGB, or why it cannot be read."""
        value = self.rows[index]["image"] or {"bytes": None, "path": None}
        return decode(Encoded(self.names[index], value), self.feature)

    def digest(self) -> str:
        """Return a digest by which the same images are known again: names, and size and time of files or their content."""
        digest = Digest().add(repr(self.feature).encode())
        for name, (path, content) in zip(self.names, _encoded(self.rows), strict=True):
            digest.add(f"{name}\0".encode(errors="surrogateescape"))
            digest.add(_mark(path) if content is None else Digest().add(content).hex().encode())
        return digest.hex(32)


def load_any(options: DataOptions, split: str | None = None) -> NamedImages:
    """Read images whatever lies beside them: a file, a folder, a pattern, a table, an archive or a data set.

    Folders are no classes, and no column of classes is looked for. Images are not looked at before they are read.

    Args:
        options: where they are; of what concerns labels nothing counts.
        split: the split to take; None for all images.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: what is there holds no images, or no such split; images are addresses that are not to be followed.
    """
    return _together(_load(options, split, labelled=False), options)


def load_shards(options: DataOptions, split: str | None = None, size: int = 4096) -> RowShards:
    """Read images as `load_any`, in shards and with their labels where the data say them.

    Args:
        options: where they are.
        split: the split to take; None for all images.
        size: images of a shard.

    Raises:
        FileNotFoundError, ValueError: as `load_any`.
    """
    parts = _load(options, split, labelled=True)
    together = _together({name: (images_alone(rows), names) for name, (rows, names) in parts.items()}, options)
    if all("label" in rows.column_names for rows, _ in parts.values()):
        named = same_names([rows for rows, _ in parts.values()])
        parts = {name: (rows, names) for (name, (_, names)), rows in zip(parts.items(), named, strict=True)}
    labels = [rows["label"][:] for rows, _ in parts.values() if "label" in rows.column_names]
    return RowShards(parts, together.feature, size, lambda: digest_json([together.digest(), *labels], 32))


def _together(parts: dict[str, tuple[Dataset, list[str]]], options: DataOptions) -> NamedImages:
    names = [name for _, some in parts.values() for name in some]
    if not names:
        raise ValueError(f"No image in {options.path!r}.")
    images = [rows for rows, _ in parts.values()]
    found = NamedImages(
        images[0] if len(images) == 1 else concatenate_datasets(images), names, RGBImage(background=options.background)
    )
    if not options.follow_urls:
        _refuse_addresses(found)
    return found


def _load(options: DataOptions, split: str | None, labelled: bool) -> dict[str, tuple[Dataset, list[str]]]:
    """Return encoded images, with the column `label` where it is asked for and there, and their names, by split."""
    splits = read_splits(options, labelled=labelled, keep_loose=labelled)
    chosen = splits if split is None else {split: split_named(splits, split, options)}
    parts = {}
    for split_name, rows in chosen.items():
        require_images(rows, f" in {options.path!r}")
        check_column(rows, options.image_column)
        kept = np.flatnonzero(where_mask(rows, options.where))
        images = image_column(rows, options)
        feature: Any = images.features["image"]
        images = images.cast_column("image", replace(feature, decode=False))
        if labelled and options.label_column in rows.column_names:
            labels = rows.select_columns(options.label_column).rename_columns({options.label_column: "label"})
            images = concatenate_datasets([images, labels], axis=1)
        images = images if len(kept) == len(rows) else images.select(kept)
        unnamed = "row" if len(splits) == 1 else f"{split_name} row"
        said = _said_paths(rows, options.image_column, unnamed)
        parts[split_name] = (images, _names(images, options.path, [said[row] for row in kept]))
    tell_idle_filters(chosen.values(), options.where)
    if labelled and all(options.label_column not in rows.column_names for rows in chosen.values()):
        warn_unlabelled(options.label_column, dict.fromkeys(c for rows in chosen.values() for c in rows.column_names))
    return parts


def _said_paths(rows: Dataset, image_column: str, unnamed: str) -> list[str]:
    """Return what a column of paths beside the images says, else the numbers of the rows."""
    columns = [
        name
        for name, feature in rows.features.items()
        if name.lower() in PATH_COLUMNS and name != image_column and isinstance(feature, Value)
    ]
    said = rows[columns[0]][:] if columns else [None] * len(rows)
    return [str(path or f"{unnamed} {row}") for row, path in enumerate(said)]


def _names(images: Dataset, place: str, others: list[str]) -> list[str]:
    """Return the paths of images from where the data are; of those without one, another name."""
    roots = _roots(place)
    encoded = zip(_encoded(images), others, strict=True)
    return [_below(path, roots) if path else other for (path, _), other in encoded]


def _roots(path: str) -> list[Path]:
    """Return the folders that names begin in: that of the data, that of unpacked archives."""
    place = Path(os.path.abspath(os.path.expanduser(path)))
    fixed = next((i for i, part in enumerate(place.parts) if glob.has_magic(part)), None)
    if fixed is not None and not place.exists():
        place = Path(*place.parts[:fixed])
    return [place if place.is_dir() else place.parent, Path(datasets.config.HF_DATASETS_CACHE) / "vprompt-zip"]


def _below(path: str, roots: list[Path]) -> str:
    for root in roots:
        if os.path.isabs(path) and Path(path).is_relative_to(root):
            parts = Path(path).relative_to(root).parts
            return Path(*parts[root == roots[1] and len(parts) > 1 :]).as_posix()
    return path


def _encoded(images: Dataset) -> Iterator[tuple[str | None, bytes | None]]:
    """Give path and content of each image as they are."""
    for table in images.select_columns("image").with_format("arrow").iter(256):
        for value in table["image"]:
            known = value.as_py() or {}
            yield known.get("path"), known.get("bytes")


def _mark(path: str | None) -> bytes:
    """Return by what a file is known again without reading it."""
    try:
        status = os.stat(path or "")
    except OSError:
        return b"not there"
    return f"{status.st_size} {status.st_mtime_ns}".encode()


def _refuse_addresses(images: NamedImages) -> None:
    addresses = [path for path, content in _encoded(images.rows) if content is None and path and "://" in path]
    if addresses:
        raise ValueError(
            f"{len(addresses)} of {len(images)} images are addresses, the first is {addresses[0]}. They are followed only "
            "where you ask for it by follow_urls=True (--follow-urls). Better download them once."
        )
