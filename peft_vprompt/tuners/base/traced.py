"""What compilers and exporters see in the place of features that are kept.

* A compiled model (`torch.compile`) gets an operator of ours, which looks into the caches in every call. Compiled code
  could not see that a weight has changed, and leaving it for the look would break the graph.
* An exported model (`torch.export`, and so `torch.onnx.export`) has no caches and no class prompts: it gets the features as
  constants, computed while it is exported.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes


#: Whether a model is being exported; torch before 2.7 does not tell.
is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)

#: The operator looks at more than its inputs, which a recorded CUDA graph would not; older versions of torch record none.
TAGS: dict[str, Any] = {"tags": (torch.Tag.cudagraph_unsafe,)} if hasattr(torch.Tag, "cudagraph_unsafe") else {}

_numbers: WeakKeyDictionary[object, int] = WeakKeyDictionary()
_objects: WeakValueDictionary[int, object] = WeakValueDictionary()
_next = itertools.count(1)


@torch.compiler.assume_constant_result
def number_of(thing: object) -> int:
    """Return a number by which an operator finds an object again."""
    if thing not in _numbers:
        _numbers[thing] = next(_next)
        _objects[_numbers[thing]] = thing
    return _numbers[thing]


@torch.library.custom_op(
    "peft_vprompt::kept",
    mutates_args=(),
    schema="(Tensor like, int owner, str method, int about, str name, SymInt[] shape, ScalarType dtype, "
    "ScalarType? autocast) -> Tensor",
    **TAGS,
)
def kept(like, owner, method, about, name, shape, dtype, autocast):
    """Return what the method of an object keeps or computes, of `shape` and `dtype`, where `like` is.

    `owner` and `about` are numbers of objects (`number_of`): the one with the method, and its first argument; `name` is
    the second. A compiler may write into what an operator gives, so it is a copy.
    """
    precision = nullcontext() if autocast is None else torch.autocast(like.device.type, autocast)
    with torch.inference_mode(False), torch.no_grad(), precision:
        value = getattr(_objects[owner], method)(_objects[about], name)
    return value.to(dtype, copy=True)


@kept.register_fake
def _(like, owner, method, about, name, shape, dtype, autocast):
    return like.new_empty(shape, dtype=dtype)


@contextmanager
def outside_of_export(model: nn.Module) -> Iterator[bool]:
    """Let `model` compute with its own tensors in the block, while an exporter has put fakes in their places.

    Gives False, and changes nothing, where they cannot be told.
    """
    places = [
        (store, name, tensor)
        for module in model.modules()
        for store in (module._parameters, module._buffers)
        for name, tensor in store.items()
        if isinstance(tensor, FakeTensor)
    ]
    reals = real_tensors([tensor for _, _, tensor in places])
    if reals is None:
        yield False
        return
    try:
        for (store, name, _), real in zip(places, reals, strict=True):
            store[name] = real
        with _disable_current_modes():
            yield True
    finally:
        for store, name, fake in places:
            store[name] = fake


def real_tensors(fakes: Sequence[FakeTensor]) -> list[Tensor] | None:
    """Return the tensors that fakes were made of; None where they cannot be told."""
    known = {}
    for mode in {fake.fake_mode for fake in fakes}:
        converter = mode.fake_tensor_converter.meta_converter
        for real, number in converter.describer.lookup_tensor.items():
            known[id(converter.tensor_memo.get(number))] = real
    if not all(id(fake) in known for fake in fakes):
        return None
    return [known[id(fake)] for fake in fakes]
