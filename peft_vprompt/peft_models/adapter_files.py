"""The files of a saved adapter: written together, and read with checks that they are intact and belong together."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from ..utils.digests import digest_tensors
from ..utils.io import atomic_files, finish_saving


#: Entry of the metadata of a file of weights: the digest of its tensors.
DIGEST = "digest"

#: Bytes that say how long the header of a safetensors file is; the header's length is a multiple of them.
_SIZE = 8

#: Files of weights, of which a folder has one.
_INSTEAD_OF = {SAFETENSORS_WEIGHTS_NAME: WEIGHTS_NAME, WEIGHTS_NAME: SAFETENSORS_WEIGHTS_NAME}


@contextmanager
def adapter_files(folder: str | Path) -> Iterator[Path]:
    """Yield a hidden folder, with the old card in it, to save adapters to: config, weights and card change together.

    A kill leaves the old adapter or the new one, see `atomic_files`. Weights get their digest.

    Raises:
        CannotWriteError: the disk is full, or the folder is not to be written.
    """
    folder = Path(folder)
    with atomic_files(folder, _INSTEAD_OF) as staging:
        if (folder / "README.md").is_file():
            shutil.copy2(folder / "README.md", staging)
        yield staging
        for path in staging.rglob(SAFETENSORS_WEIGHTS_NAME):
            _add_digest(path)


def complete_adapter(folder: str | Path) -> None:
    """Let weights follow their config, if a kill came between while an adapter was saved to a folder.

    Raises:
        CannotWriteError: the folder is read-only.
    """
    finish_saving(folder, began_with=CONFIG_NAME)


def check_digest(weights: Mapping[str, Tensor], model_id: str | os.PathLike, hub_options: dict) -> None:
    """Refuse weights that are not those that were saved. A file that names no digest passes.

    Args:
        weights: tensors as they were read.
        model_id: folder or Hub id of the adapter.
        hub_options: `subfolder`, `revision`, `cache_dir` of the adapter.

    Raises:
        AdapterMismatchError: the file is damaged.
    """
    path = _file_of(model_id, hub_options)
    if path is None:
        return
    with safe_open(path, "pt") as file:
        expected = (file.metadata() or {}).get(DIGEST)
    if expected is not None and expected != digest_tensors(weights):
        raise AdapterMismatchError(
            f"Cannot read the adapter weights in {str(model_id)!r}: the file is damaged, its tensors are not those that "
            "were saved. Save or download it again."
        )


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when the adapter was made
        try:
            saved: Any = PeftConfig.from_pretrained(str(model_id), **hub_options)
        except ValueError:  # weights alone, for an adapter that is there already
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
