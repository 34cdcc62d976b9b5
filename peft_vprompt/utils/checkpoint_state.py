"""`CheckpointState`: the tensors of a checkpoint by name, each read and checked when a method asks for it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import AdapterMismatchError
from .archive import Archive, dtype_named
from .fields import shown
from .pickled import Opaque, PickleError, ScriptedModule, Stored


#: What trainers wrap a state dict in.
WRAPPERS = ("state_dict", "model")

#: Most dimensions of a tensor of prompts.
MAX_RANK = 8

#: How often the numbers of a file may be read as tensors of several names: some models tie a few.
MAX_SHARED = 4

#: Kinds of tensors that are no plain table of numbers, by the function that makes them.
_KINDS = {
    "sparse": "a sparse tensor",
    "qtensor": "a quantised tensor",
    "meta": "a tensor without values (on the device 'meta')",
    "nested": "a nested tensor",
}


class CheckpointState(Mapping[str, Tensor]):
    """Tensors by name, in float32, without the wrapping that trainers add. What is not asked for is never read.

    Args:
        checkpoint: path of a file of `torch.save`, of `torch.jit.save` or of safetensors, or the state dict itself.

    Raises:
        AdapterMismatchError: the file is damaged, or there is no state dict in it.
    """

    def __init__(self, checkpoint: str | os.PathLike | Mapping):
        self._archive: Archive | None = None
        self._read: dict[str, int] = {}
        self.source = "the state dict"
        content: Any = checkpoint
        if isinstance(checkpoint, (str, os.PathLike)):
            self.source = repr(os.fspath(checkpoint))
            content = self._open(checkpoint)
        if isinstance(content, ScriptedModule):
            content = dict(_flat(content))
        for wrapper in WRAPPERS:
            if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
        if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
            raise AdapterMismatchError(
                f"Expected a checkpoint that names its tensors (a state dict). Received: {_describe(content)} in "
                f"{self.source}. Save model.state_dict()."
            )
        named = {name.removeprefix("module."): value for name, value in content.items()}
        self._values = {name: value for name, value in named.items() if _is_tensor(value)}

    def _open(self, path: str | os.PathLike) -> Any:
        if os.path.isdir(path):
            raise AdapterMismatchError(f"Expected the file of a checkpoint. Received a folder: {self.source}.")
        if os.fspath(path).endswith(".safetensors"):
            try:
                return load_file(path)
            except SafetensorError as error:
                raise AdapterMismatchError(
                    f"Cannot read {self.source} as a file of safetensors: {error}. Copy or download it again."
                ) from error
        try:
            self._archive = Archive(path)
        except PickleError as error:
            raise AdapterMismatchError(
                f"Cannot read {self.source} as a checkpoint of plain tensors: {error}. Expected a file of torch.save. Copy it "
                "again, or save it again with torch.save(model.state_dict(), path)."
            ) from error
        return self._archive.content

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor, in float32.

        Raises:
            AdapterMismatchError: it is no plain tensor of finite floating-point numbers; names it and the remedy.
        """
        value = self._values[name]
        if (reason := _unusable(value)) is not None:
            self._refuse(name, reason)
        if isinstance(value, Stored):
            archive: Any = self._archive  # it comes from there
            self._read[name] = math.prod(value.shape) * getattr(dtype_named(value.dtype), "itemsize", 1)
            if sum(self._read.values()) > MAX_SHARED * archive.size:
                self._refuse(
                    name, "one of so many that share their numbers that they are far more than the file holds"
                )
            try:
                value = archive.read(value)
            except PickleError as error:
                self._refuse(name, f"a tensor that cannot be read: {error}")
        tensor = value.detach().cpu().float()
        if not bool(torch.isfinite(tensor).all()):
            self._refuse(name, "a tensor with NaN or infinite values: its training diverged")
        return tensor

    def _refuse(self, name: str, reason: str) -> None:
        raise AdapterMismatchError(
            f"Expected {shown(name)} in {self.source} to be a plain tensor of finite floating-point numbers. Received "
            f"{reason}. Save it again as tensor.detach().float().to_dense().contiguous()."
        )


def _flat(module: ScriptedModule) -> Iterator[tuple[str, Any]]:
    """Give what a scripted module and those inside hold, by its name in a state dict; no module is looked at twice."""
    waiting = [("", module)]
    seen = {id(module)}
    while waiting:
        prefix, module = waiting.pop()
        for name, value in module.items():
            if not isinstance(value, ScriptedModule):
                yield f"{prefix}{name}", value
            elif id(value) not in seen:
                seen.add(id(value))
                waiting.append((f"{prefix}{name}.", value))


def _is_tensor(value: Any) -> bool:
    made_by_torch = isinstance(value, Opaque) and value.kind.startswith("torch._utils._rebuild")
    return isinstance(value, (Tensor, Stored)) or made_by_torch


def _unusable(value: Any) -> str | None:
    """Return what makes a tensor unusable, None where nothing does; nothing is read for it."""
    if isinstance(value, Opaque):
        return next(
            (words for kind, words in _KINDS.items() if kind in value.kind), f"an object of {value.kind[:60]!r}"
        )
    if isinstance(value, Tensor):
        if value.is_meta:
            return _KINDS["meta"]
        if value.is_nested or value.is_quantized or value.layout != torch.strided:
            kinds = {"nested": value.is_nested, "qtensor": value.is_quantized}
            return _KINDS[next((kind for kind, is_so in kinds.items() if is_so), "sparse")]
    dtype = value.dtype if isinstance(value, Tensor) else dtype_named(value.dtype)
    if dtype is None or not dtype.is_floating_point:
        return f"one of type {str(dtype or value.dtype)[:60]}"
    shape = tuple(value.shape)
    stride = value.stride() if isinstance(value, Tensor) else value.stride
    if not math.prod(shape) or len(shape) > MAX_RANK:
        return f"one of shape {shown(shape)}"
    span = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if math.prod(shape) > span:
        return f"an expanded one, whose {math.prod(shape):,} numbers are {span:,} that are repeated"
    return None


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        return "a dict with keys that are no names"
    if isinstance(content, (Tensor, Stored)):
        return "a tensor alone"
    if isinstance(content, Opaque):
        return f"an object of {content.kind[:100]}, which is not built"
    return f"an object of {type(content).__name__}"
