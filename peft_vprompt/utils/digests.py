"""Digests (SHA-256, in hexadecimal) that tell apart runs, cache files and class lists."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike


#: Entries of a model's config that change nothing it computes: where it is from.
MODEL_PROVENANCE = ("_name_or_path", "name_or_path", "transformers_version", "_attn_implementation_autoset")

#: Entries of an adapter's config that change nothing it computes: where it is from, and what it is loaded for.
ADAPTER_PROVENANCE = (
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
    "tokenizer_name_or_path",
)


def without(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return the entries of a config that have other names."""
    return {name: value for name, value in config.items() if name not in names}


def digest_json(value, length: int = 16) -> str:
    """Return the first `length` digits of the digest of a value that JSON can hold.

    The order of a dict's keys does not matter; anything else than JSON's types counts by its text.
    """
    return Digest().add(json.dumps(value, sort_keys=True, default=str).encode()).hex(length)


def digest_arrays(*arrays: ArrayLike, length: int = 16) -> str:
    """Return the first `length` digits of the digest of arrays of any shape: types, shapes and values, in their order."""
    digest = Digest()
    for array in map(np.ascontiguousarray, arrays):
        digest.add(f"{array.dtype.str}{array.shape}".encode()).add(array.tobytes())
    return digest.hex(length)


def digest_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a digest of the names, types, shapes and values of tensors, in any order, by several threads."""
    names = sorted(tensors)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda name: Digest().add_tensor(name, tensors[name]).hex(), names)
        return Digest().add("".join(found).encode()).hex()


class Digest:
    """A digest that takes its content piece by piece, for content that should not be in memory at once."""

    def __init__(self):
        self._hash = hashlib.sha256()

    def add(self, content: bytes) -> Digest:
        """Add bytes as they are: pieces of varying length need a mark between them."""
        self._hash.update(content)
        return self

    def add_tensor(self, name: str, tensor: torch.Tensor) -> Digest:
        """Add a tensor of any shape, on any device, under its name: type, shape and values."""
        values = tensor.detach().cpu().contiguous()
        self.add(f"{name}{values.dtype}{tuple(values.shape)}".encode())
        self._hash.update(values.reshape(-1).view(torch.uint8).numpy().data)  # without a copy
        return self

    def hex(self, length: int = 64) -> str:
        """Return the first `length` digits."""
        return self._hash.hexdigest()[:length]
