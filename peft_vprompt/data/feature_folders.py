"""Folders of image features in the place of images: Arrow shards that are mapped into memory, and a manifest of them.

They are written by `training.feature_folders` (`vprompt features`). A shard is an Arrow stream with a checksum behind it;
the manifest says what made the features, of which images they are, and the checksum of every shard.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Image, Value, concatenate_datasets

from ..utils.checked_files import is_intact, said_checksum
from ..utils.io import read_json


#: Column of the features, and name of the argument by which a model takes them.
FEATURES = "image_features"
#: Column of the digests of the encoded images, see `image_digests`.
DIGESTS = "image_digest"
#: Column of the images' names.
NAMES = "file"

#: What a folder of features says about itself.
MANIFEST = "manifest.json"
#: What this package calls such a folder, and the form of its files.
KIND, FORM = "vprompt image features", 1

#: Entry of a shard's schema that holds its details.
DETAILS = b"vprompt"

#: What to do where a shard is missing or damaged.
_REMEDY = "Start the `vprompt features` that made the folder again: it makes what is missing or damaged anew."
#: Files whose checksum is computed at the same time.
_THREADS = 8


def holds_features(rows: Any) -> bool:
    """Tell whether rows have features in the place of images, and no column that happens to be called so beside them."""
    names = getattr(rows, "column_names", None) or ()
    types = (getattr(rows, "features", None) or {}).values()
    beside = "image" in names or any(isinstance(each, Image) for each in types)
    return FEATURES in names and (DIGESTS in names or not beside)


def require_images(rows: Any, why: str) -> None:
    """Refuse features where images are looked at.

    Args:
        rows: images or features.
        why: what looks at them, behind "images".

    Raises:
        ValueError: they are features; says what to give.
    """
    if holds_features(rows):
        raise ValueError(
            f"Expected images{why}. Received image features. Give the images that they were made of (--data)."
        )


def images_alone(rows: Dataset) -> Dataset:
    """Return the images of some rows without their labels, or the features and digests that stand for them."""
    names = [name for name in (FEATURES, DIGESTS) if name in rows.column_names] if holds_features(rows) else ["image"]
    return rows.select_columns(names)


def is_feature_folder(path: str | Path) -> bool:
    """Tell whether a folder is one of features, be it whole or still being made."""
    try:
        manifest = read_json(Path(path) / MANIFEST, missing_ok=True)
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("kind") == KIND


def made_with(rows: Dataset) -> dict | None:
    """Return what made the features of some rows: digests by what they are of; None where the rows do not say it."""
    said = getattr(rows.features.get(DIGESTS), "id", None)
    try:
        content = json.loads(said or "")
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def digests_column(content: Mapping[str, str | None]) -> Value:
    """Return the type of the column of digests, from whose `id` `made_with` knows what made the features beside it.

    The column of features cannot hold it: `datasets` makes plain lists of lists anew.
    """
    return Value("binary", id=json.dumps(content, sort_keys=True))


def read_manifest(folder: str | Path) -> dict:
    """Read what a folder of features says about itself.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or of another kind or form; names it.
    """
    path = Path(folder) / MANIFEST
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise ValueError(f"Expected the manifest of image features in {str(path)!r}. Received something else.")
    if manifest.get("form") != FORM:
        raise ValueError(
            f"Expected image features of the form {FORM} in {str(folder)!r}. Received: form={manifest.get('form')!r}, of "
            "another version of this package. Make them anew by `vprompt features`."
        )
    shards = manifest.get("shards")
    whole = isinstance(shards, list) and all(map(_is_shard, shards)) and isinstance(manifest.get("content"), dict)
    if not whole or not isinstance(manifest.get("complete"), bool):
        raise ValueError(f"{str(path)!r} is damaged. Make the features anew by `vprompt features`.")
    return manifest


def _is_shard(entry: Any) -> bool:
    """Tell whether an entry of a manifest names a file of its own folder."""
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("file", "split", "sha256")):
        return False
    return Path(entry["file"]).name == entry["file"] and isinstance(entry.get("rows"), int)


def read_features(folder: str | Path) -> dict[str, Dataset]:
    """Return image features by split, mapped into memory: `image_features`, `image_digest`, `file` and maybe `label`.

    Every shard is compared with its checksum, which reads it once.

    Raises:
        FileNotFoundError: a shard is not there; names it.
        ValueError: the folder is not complete, or a shard is damaged; names it, and says how to make it anew.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if not manifest["complete"]:
        raise ValueError(
            f"The image features in {str(folder)!r} are not complete. Start the `vprompt features` that makes them again: it "
            "goes on where it was."
        )
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda entry: _require_whole(folder / entry["file"], entry["sha256"]), manifest["shards"]))
    splits: dict[str, list[Dataset]] = {}
    for entry in manifest["shards"]:
        if entry["rows"]:
            splits.setdefault(entry["split"], []).append(Dataset.from_file(str(folder / entry["file"])))
    return {name: concatenate_datasets(parts) for name, parts in splits.items()}


def _require_whole(path: Path, checksum: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"No file {str(path)!r}, which {MANIFEST} names. {_REMEDY}")
    if said_checksum(path) != checksum or not is_intact(path):
        raise ValueError(f"The image features in {str(path)!r} are damaged: their checksum is another. {_REMEDY}")


def shard_details(path: Path) -> dict | None:
    """Return what a shard says about itself beside its rows; None where it cannot be read.

    Returns:
        `first` and `seen`: its place among the images of its source and how many of these it covers; `last`: whether it
        ends the source; `rows`; `problems`: names and reasons of those that could not be read.
    """
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
            details = json.loads((stream.schema.metadata or {}).get(DETAILS, b"null"))
    except (OSError, ValueError, pa.ArrowException):
        return None
    return details if isinstance(details, dict) else None
