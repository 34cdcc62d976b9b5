"""The files of a saved adapter: written together, and read with checks that they are intact and belong together."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from peft import PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..errors import AdapterMismatchError
from ..tuners.base.class_name_checks import digest_names
from ..utils.digests import ADAPTER_PROVENANCE, digest_json, digest_tensors
from ..utils.fields import shown
from ..utils.io import atomic_files, finish_saving, read_text
from ..utils.warning import warn_caller


#: Entry of the metadata of a file of weights: the digest of its tensors.
DIGEST = "digest"

#: Bytes that say how long the header of a safetensors file is; the header's length is a multiple of them.
_SIZE = 8

#: Files that an adapter is made of.
ADAPTER = (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)

#: The card of an adapter, and what the run that trained it says: its results and its page.
CARD = "README.md"
RESULTS = "results.json"
PAGE = "report.html"

#: Folder, in that of an adapter, of what earlier runs left there.
PREVIOUS = "previous"

#: Fields of a config that say where an adapter is from, what its classes are called, or how it started.
_NOT_COMPUTED = {
    *ADAPTER_PROVENANCE,
    "task_type",
    "peft_type",
    "class_names",
    "class_names_digest",
    "token",
    "num_labels",
    "id2label",
    "label2id",
    "modules_to_save",
    "prompt_init",
}

#: Files of weights, of which a folder has one.
_INSTEAD_OF = {SAFETENSORS_WEIGHTS_NAME: WEIGHTS_NAME, WEIGHTS_NAME: SAFETENSORS_WEIGHTS_NAME}


@contextmanager
def adapter_files(folder: str | Path, keep_other: bool = False) -> Iterator[Path]:
    """Yield a hidden folder, with the old card in it, to save adapters to: config, weights and card change together.

    A kill leaves the old adapter or the new one, see `atomic_files`. Weights get their digest.

    Args:
        folder: the folder.
        keep_other: copy another adapter that is there to `previous/`, move what its run says there, and say so.

    Raises:
        CannotWriteError: the disk is full, or the folder is not to be written.
    """
    folder = Path(folder)
    with atomic_files(folder, _INSTEAD_OF) as staging:
        take_card(folder, staging)
        yield staging
        for path in staging.rglob(SAFETENSORS_WEIGHTS_NAME):
            _add_digest(path)
        if keep_other:
            keep_changed(ADAPTER, folder, staging, (RESULTS, PAGE))


def complete_adapter(folder: str | Path) -> None:
    """Let weights follow their config, if a kill came between while an adapter was saved to a folder.

    Raises:
        CannotWriteError: the folder is read-only.
    """
    finish_saving(folder, began_with=CONFIG_NAME)


def take_card(folder: Path, staging: Path) -> None:
    """Copy the card of a folder to that of new files, where it is updated; one that is no text is kept in `previous/`."""
    card = folder / CARD
    if not card.is_file():
        return
    try:
        read_text(card)
    except ValueError:
        keep_files([card], folder)
    else:
        shutil.copy2(card, staging)


def keep_changed(names: Sequence[str], folder: str | Path, staging: Path, about: Sequence[str] = ()) -> None:
    """Copy files of a folder, by `names`, to `previous/` where new ones in `staging` are others, and say so.

    What only holds of the old ones, by the names `about`, is moved there.

    Raises:
        CannotWriteError: the disk is full, or the folder is not to be written.
    """
    files = [path for name in names if (path := Path(folder, name)).is_file()]
    if any(not _same_bytes(path, staging / path.name) for path in files):
        moved = [path for name in about if (path := Path(folder, name)).is_file()]
        keep_files([*files, *moved], folder)
        for path in moved:
            path.unlink()


def keep_files(files: Sequence[Path], folder: str | Path, name: str | None = None) -> None:
    """Copy files, and the card beside them, to `previous/` in their folder, and say so; once for the same ones.

    Args:
        files: the files.
        folder: their folder.
        name: of the folder in `previous/`; default: a digest of the files.

    Raises:
        CannotWriteError: the disk is full, or the folder is not to be written.
    """
    place = Path(folder, PREVIOUS, name or _digest_of(files))
    if place.is_dir():
        return
    with atomic_files(place) as staging:
        for file in dict.fromkeys([*files, *Path(folder).glob(CARD)]):
            shutil.copy2(file, staging)
    warn_caller(
        f"{str(folder)!r} holds an adapter, a model, a card or results of something else. They are now in {str(place)!r}."
    )


def _same_bytes(path: Path, other: Path) -> bool:
    return other.is_file() and path.read_bytes() == other.read_bytes()


def _digest_of(files: Sequence[Path]) -> str:
    return digest_json([hashlib.sha256(file.read_bytes()).hexdigest() for file in files], 12)


def check_digest(weights: Mapping[str, Tensor], model_id: str | os.PathLike, hub_options: dict) -> None:
    """Refuse weights that are not those that were saved. A file that names no digest passes.

    Args:
        weights: tensors as they were read.
        model_id: folder or Hub id of the adapter.
        hub_options: `subfolder`, `revision`, `cache_dir` of the adapter.

    Raises:
        AdapterMismatchError: the file is damaged.
    """
    expected = said_digest(model_id, hub_options)
    if expected is not None and expected != digest_tensors(weights):
        raise AdapterMismatchError(
            f"Cannot read the adapter weights in {str(model_id)!r}: the file is damaged, its tensors are not those that "
            "were saved. Save or download it again."
        )


def said_digest(model_id: str | os.PathLike, hub_options: dict) -> str | None:
    """Return the digest of its tensors that a file of weights names, if there is one; arguments as for `check_digest`."""
    path = _file_of(model_id, hub_options)
    if path is None:
        return None
    with safe_open(path, "pt") as file:
        return (file.metadata() or {}).get(DIGEST)


def tell_other_config(config: Any, model_id: str | os.PathLike, hub_options: dict) -> None:
    """Warn where an adapter's file was saved with a config that computes otherwise: the one that is there stays.

    Args:
        config: that of the adapter that takes the weights.
        model_id: folder or Hub id of the adapter.
        hub_options: `subfolder`, `revision`, `cache_dir` of the adapter.
    """
    if other := saved_otherwise(config, model_id, hub_options):
        warn_caller(
            f"The adapter in {str(model_id)!r} was saved with {', '.join(other)}. Of an adapter that is there already the "
            "weights are replaced and the config stays. Delete it first, or load under another name, to take both."
        )


def saved_otherwise(config: Any, model_id: str | os.PathLike, hub_options: dict) -> list[str]:
    """Return the `other_fields` of a saved adapter's config; arguments as for `tell_other_config`."""
    return other_fields(_saved_config(model_id, hub_options), config)


def other_fields(config: Any, here: Any) -> list[str]:
    """Return in which fields a config computes otherwise than one that is here, with both values; none of two methods."""
    if type(config) is not type(here):
        return []
    return [
        f"{each.name}={shown(getattr(config, each.name))} (here {shown(getattr(here, each.name))})"
        for each in fields(config)
        if each.name not in _NOT_COMPUTED and getattr(config, each.name) != getattr(here, each.name)
    ]


def _saved_config(model_id: str | os.PathLike, hub_options: dict) -> Any:
    """Return the config of a saved adapter; None of weights alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when the adapter was made
        try:
            return PeftConfig.from_pretrained(str(model_id), **hub_options)
        except ValueError:
            return None


def check_classes(config: Any, model_id: str | os.PathLike, hub_options: dict) -> None:
    """Refuse an adapter that learned something for each class, where its classes are not those of the file.

    An adapter that was saved before this was recorded passes.

    Args:
        config: the adapter's.
        model_id: folder or Hub id of the adapter.
        hub_options: `subfolder`, `revision`, `cache_dir` of the adapter.

    Raises:
        AdapterMismatchError: they differ.
    """
    classes = getattr(config, "learned_classes", None)
    if classes is None:
        return
    saved = _saved_config(model_id, hub_options)
    if saved is None:  # weights alone, for an adapter that is there already
        return
    if saved.class_names_digest not in (None, digest_names(classes)):
        names = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
        raise AdapterMismatchError(
            f"The adapter in {str(model_id)!r} learned something for each of its classes, and these are not the "
            f"names it learned them for. Received: {len(classes)} names ({names}). Put back the names, "
            f"in their order, that {CONFIG_NAME} was saved with, or train an adapter for these."
        )


def _add_digest(path: Path) -> None:
    """Write a file of weights anew with its digest; the same weights give the same bytes."""
    digest = digest_tensors(load_file(path))
    content = path.read_bytes()
    start = _SIZE + int.from_bytes(content[:_SIZE], "little")
    header = json.loads(content[_SIZE:start])
    header["__metadata__"] = dict(sorted((header.get("__metadata__", {}) | {DIGEST: digest}).items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _SIZE)  # tensors are aligned
    sealed = path.with_suffix(".sealed")
    with sealed.open("wb") as file:
        file.write(len(text).to_bytes(_SIZE, "little") + text)
        file.write(memoryview(content)[start:])
    os.replace(sealed, path)


def _file_of(model_id: str | os.PathLike, hub_options: dict) -> Path | None:
    """Return the file of an adapter's weights, where it is one that can name a digest."""
    folder = Path(model_id, hub_options.get("subfolder") or "")
    if folder.is_dir():
        path = folder / SAFETENSORS_WEIGHTS_NAME
        return path if path.is_file() else None
    name = "/".join(filter(None, (hub_options.get("subfolder"), SAFETENSORS_WEIGHTS_NAME)))
    options = {key: hub_options[key] for key in ("revision", "cache_dir") if hub_options.get(key) is not None}
    found = try_to_load_from_cache(str(model_id), name, **options)
    return Path(found) if isinstance(found, str) else None
