"""`ModuleState`: what the answer of some modules depends on, so that an answer is kept for as long as it holds.

What a version counter counts is not enough: libraries for averaged weights, LoRA tools and numpy views write into
`parameter.data`, which moves none. So the contents of all parameters and buffers are read, to the last bit, and the modules'
attributes, parts and classes are compared. On one core of an EPYC the text encoder of CLIP ViT-B/16 is compared in 25 ms
(253 MB at 10 GB/s, the most that memory gives), a classification of one image takes 320 ms there and computing the features
of 100 classes more than a second. Where nobody writes, `fixed_weights` makes do with addresses and version counters.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from xxhash import xxh3_128

from ...core.plain_modules import all_plain, parts


#: Attributes in which modules of torch and transformers keep a rate of dropout.
DROPOUT_RATES = ("p", "dropout", "attention_dropout", "drop_prob")

#: Types of integers as wide as the numbers of a tensor, by their bytes.
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

#: Numbers on an accelerator are summed up in so many columns: a prime number, so that moved rows change columns.
COLUMNS = 8191

_fixed: ContextVar[bool] = ContextVar("fixed_weights", default=False)


@contextmanager
def fixed_weights() -> Iterator[None]:
    """Take the word of the caller that nobody writes into weights past autograd's version counters in the block."""
    token = _fixed.set(True)
    try:
        yield
    finally:
        _fixed.reset(token)


class ModuleState:
    """The state of some modules at this moment.

    Args:
        modules: the modules; None stands for none.
        facts: what else the answer depends on, compared by value.
        objects: likewise, compared by identity.
    """

    def __init__(self, modules: Iterable[nn.Module | None], facts: Iterable[Hashable] = (), objects: Iterable = ()):
        found = [part for module in modules if module is not None for part in parts(module)]
        tuned = [part for part in found if isinstance(part, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
        attributes = [
            part.__dict__ for part in found if not isinstance(part, (BaseTunerLayer, AuxiliaryTrainingWrapper))
        ]
        configs = {id(own["config"]): own["config"].__dict__ for own in attributes if "config" in own}
        self.tensors = [
            tensor
            for part in found
            for tensor in (*part._parameters.values(), *part._buffers.values())
            if tensor is not None
        ]
        self.facts = (*facts, *map(switches, tuned))
        # They are held on to, so that no other object gets the address of one that is gone.
        self.objects = [
            *objects,
            *found,
            *map(type, found),
            *chain.from_iterable(own.values() for own in (*attributes, *configs.values())),
        ]
        self._contents: Hashable = None

    @property
    def contents(self) -> Hashable:
        """A digest of all numbers, with their types, shapes and devices; read once."""
        if self._contents is None:
            self._contents = digest(self.tensors)
        return self._contents

    @property
    def versions(self) -> list[tuple]:
        """Address and version counter of each tensor."""
        return [
            (tensor.data_ptr(), tensor.dtype, tensor.device, -1 if tensor.is_inference() else tensor._version)
            for tensor in self.tensors
        ]

    def freeze(self) -> ModuleState:
        """Read what later writes would change; returns itself."""
        self.contents  # noqa: B018 - read now
        self.before = self.versions
        self.tensors = []  # they may be gone long before what was made of them
        return self

    def follows(self, other: ModuleState) -> bool:
        """Tell whether nothing has changed since `other`, which was frozen."""
        if self.facts != other.facts or list(map(id, self.objects)) != list(map(id, other.objects)):
            return False
        return self.versions == other.before if _fixed.get() else self.contents == other.contents


def digest(tensors: Iterable[Tensor]) -> Hashable:
    """Return a value that differs where any number, type, shape or device of the tensors does.

    On the CPU it is a hash of 128 bits. On an accelerator it is made of sums over columns, for which the call has to wait
    for the device: any single change is seen, and so are rows that change places.
    """
    content = xxh3_128()
    layout = []
    elsewhere: dict[tuple, list[Tensor]] = {}
    for tensor in tensors:
        layout.append((tensor.dtype, tensor.device, tensor.shape))
        flat = tensor.detach().reshape(-1).view(INTEGERS.get(tensor.element_size(), torch.uint8))
        if tensor.device.type == "cpu":
            content.update(flat.numpy().data)
        else:
            elsewhere.setdefault((tensor.device, flat.dtype), []).append(flat)
    for numbers in elsewhere.values():
        content.update(column_sums(torch.cat(numbers)).cpu().numpy().data)
    return content.digest(), *layout


def column_sums(numbers: Tensor) -> Tensor:
    """Sum up integers [n], laid out in rows of `COLUMNS`: [COLUMNS + those of the last row]."""
    whole = len(numbers) // COLUMNS * COLUMNS
    return torch.cat([numbers[:whole].view(-1, COLUMNS).sum(0, dtype=torch.int64), numbers[whole:].long()])


def switches(layer: BaseTunerLayer | AuxiliaryTrainingWrapper) -> Hashable:
    """Return what decides a tuner layer's answer beside its tensors."""
    scaling = getattr(layer, "scaling", None)
    scales = tuple(scaling.items()) if isinstance(scaling, dict) else scaling
    return layer.disable_adapters, tuple(layer.active_adapters), tuple(layer.merged_adapters), scales


def may_keep(*modules: nn.Module | None) -> bool:
    """Tell whether what the modules compute may be kept for a later call: nothing but their state decides it.

    It may not where dropout makes each pass another; where a module has hooks, a replaced `forward` or a class of the
    user's or of another library, which may do what they like; where tensors have no numbers that can be read; while a
    call is only traced; nor in a replica that `nn.DataParallel` made, which shares its cache with those on other devices.
    """
    if detect_fake_mode() is not None or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    if torch.jit.is_tracing():
        return False
    return all(module is None or is_still(module) for module in modules)


def is_still(module: nn.Module) -> bool:
    """Tell whether `module` gives the same answer again for as long as its state is the same."""
    return not getattr(module, "_is_replica", False) and all_plain(module) and not any(map(wavers, parts(module)))


def wavers(module: nn.Module) -> bool:
    """Tell whether a module itself drops something out at present, or holds a tensor that cannot be read."""
    if module.training and any(rate > 0 for rate in map(module.__dict__.get, DROPOUT_RATES) if is_rate(rate)):
        return True
    tensors = (*module._parameters.values(), *module._buffers.values())
    return not all(tensor is None or is_readable(tensor) for tensor in tensors)


def is_readable(tensor: Tensor) -> bool:
    """Tell whether a tensor is nothing but numbers in memory: none on the meta device, sharded, sparse or quantised one."""
    plain = type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta
    return plain and tensor.layout is torch.strided and not tensor.is_quantized


def is_rate(value: object) -> bool:
    """Tell whether an attribute is a number, as rates of dropout are."""
    return isinstance(value, (int, float))


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype that autocast computes in on `device` at present; None when it is off."""
    enabled = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if enabled else None
