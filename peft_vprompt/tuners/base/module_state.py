"""`ModuleState`: what the answer of some modules depends on, so that an answer is kept for as long as it holds.

What a version counter counts is not enough: libraries for averaged weights, LoRA tools and numpy views write into
`parameter.data`, which moves none. So the contents of all parameters and buffers are read, to the last bit, and the modules'
attributes, parts and classes are compared, and the functions of `torch.nn.functional` and of transformers' attention, which
somebody may have replaced; functions replaced elsewhere (`torch.matmul`) are not seen. On one core of an EPYC the text
encoder of CLIP ViT-B/16 is compared in 25 ms (253 MB at 10 GB/s, the most that memory gives), a classification of one image
takes 320 ms there and computing the features of 100 classes more than a second. Where nobody writes, `fixed_weights` makes
do with addresses and version counters.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from xxhash import xxh3_128

from ...core.plain_modules import has_global_hook, is_plain, parts


#: Attributes in which modules of torch and transformers keep a rate of dropout.
DROPOUT_RATES = ("p", "dropout", "attention_dropout", "drop_prob")

#: Types of integers as wide as the numbers of a tensor, by their bytes.
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

#: Numbers on an accelerator are summed up in so many columns: a prime number, so that moved rows change columns.
COLUMNS = 8191

#: Types of tensors that are nothing but numbers in memory: no shards, no packed integers.
READABLE = (Tensor, nn.Parameter)

#: Types of numbers that numpy has, too.
NUMPY = (torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8, torch.int8, torch.bool)

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
    """The state of some modules at this moment: made by `state_of`.

    Attributes:
        facts: what is compared by value.
        objects: what is compared by identity: modules, their classes, attributes and parts.
        tensors: parameters and buffers.
    """

    def __init__(self, facts: list[Hashable], objects: list, tensors: list[Tensor]):
        self.facts = facts
        self.objects = objects  # held on to, so that no other object gets the address of one that is gone
        self.identities = list(map(id, objects))
        self.tensors = tensors
        self._contents: Hashable = None
        self._versions: list[tuple] | None = None

    @property
    def contents(self) -> Hashable:
        """A digest of all numbers, with their types, shapes and devices; read once."""
        if self._contents is None:
            self._contents = digest(self.tensors)
        return self._contents

    @property
    def versions(self) -> list[tuple]:
        """Address, type and version counter of each tensor; read once."""
        if self._versions is None:
            self._versions = [(tensor.data_ptr(), tensor.dtype, version(tensor)) for tensor in self.tensors]
        return self._versions

    def freeze(self) -> ModuleState:
        """Read what later writes would change; returns itself."""
        self.contents  # noqa: B018 - read now
        self.versions  # noqa: B018 - likewise
        self.tensors = []  # they may be gone long before what was made of them
        return self

    def follows(self, other: ModuleState) -> bool:
        """Tell whether nothing has changed since `other`, which was frozen."""
        if self.facts != other.facts or self.identities != other.identities:
            return False
        return self.versions == other.versions if _fixed.get() else self.contents == other.contents


def version(tensor: Tensor) -> int:
    """Return autograd's count of writes; tensors made under `inference_mode` have none."""
    return -1 if tensor.is_inference() else tensor._version


def state_of(
    modules: Iterable[nn.Module | None], facts: Iterable[Hashable] = (), objects: Iterable = ()
) -> ModuleState | None:
    """Return the state of some modules; None where more than it decides what they compute.

    So it is where dropout makes each pass another; where a module has hooks, a replaced `forward` or a class of the user's
    or of another library, which may do what they like; where tensors have no numbers that can be read; while a call is
    only traced; and in a replica that `nn.DataParallel` made, which shares its cache with those on other devices.

    Args:
        modules: the modules; None stands for none.
        facts: what else the answer depends on, compared by value.
        objects: likewise, compared by identity.
    """
    if is_traced() or has_global_hook():
        return None
    values = list(facts)
    things = [*objects, *functional.__dict__.values(), *ALL_ATTENTION_FUNCTIONS.values()]
    tensors: list[Tensor | None] = []
    configs: dict[int, dict] = {}
    for part in (part for module in modules if module is not None for part in parts(module)):
        own = part.__dict__
        if not is_plain(part) or "_is_replica" in own or (own["training"] and drops_out(own)):
            return None
        things += (part, type(part), type(part).forward)
        tensors += own["_parameters"].values()
        tensors += own["_buffers"].values()
        if isinstance(part, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            values.append(switches(part))
            continue
        things += own.values()
        if "config" in own:
            configs[id(own["config"])] = own["config"].__dict__
    for config in configs.values():
        things += config.values()
    found = [tensor for tensor in tensors if tensor is not None]
    if any(type(tensor) not in READABLE or tensor.is_meta for tensor in found):
        return None
    return ModuleState(values, things, found)


def is_traced() -> bool:
    """Tell whether tensors have no values at present, or ones that belong to a transformation."""
    functional = torch._C._functorch.peek_interpreter_stack() is not None
    return functional or torch.jit.is_tracing() or detect_fake_mode() is not None


def drops_out(own: dict) -> bool:
    """Tell whether a module with these attributes, in training, drops something out itself."""
    rates = map(own.get, DROPOUT_RATES)
    return any(isinstance(rate, (int, float)) and rate > 0 for rate in rates)


def digest(tensors: Iterable[Tensor]) -> Hashable:
    """Return a value that differs where any number, type, shape or device of the tensors does.

    On the CPU it is a hash of 128 bits. On an accelerator it is made of sums over columns, for which the call has to wait
    for the device: any single change is seen, and so are rows that change places.
    """
    content = xxh3_128()
    layout: list[Hashable] = []
    elsewhere: dict[tuple, list[Tensor]] = {}
    for tensor in tensors:
        tensor = tensor.detach()
        if tensor.is_cpu:
            layout.append((tensor.dtype, tensor.shape))
            content.update(memory_of(tensor))
        else:
            layout.append((tensor.dtype, tensor.shape, tensor.device))
            flat = tensor.reshape(-1).view(INTEGERS.get(tensor.element_size(), torch.uint8))
            elsewhere.setdefault((tensor.device, flat.dtype), []).append(flat)
    for numbers in elsewhere.values():
        content.update(column_sums(torch.cat(numbers)).cpu().numpy().data)
    return content.digest(), *layout


def memory_of(tensor: Tensor) -> memoryview:
    """Return the numbers of a tensor on the CPU as bytes."""
    if not tensor.is_contiguous():
        tensor = tensor.contiguous()
    if tensor.dtype not in NUMPY:
        tensor = tensor.reshape(-1).view(torch.uint8)
    return tensor.numpy().data


def column_sums(numbers: Tensor) -> Tensor:
    """Sum up integers [n], laid out in rows of `COLUMNS`: [COLUMNS + those of the last row]."""
    whole = len(numbers) // COLUMNS * COLUMNS
    return torch.cat([numbers[:whole].view(-1, COLUMNS).sum(0, dtype=torch.int64), numbers[whole:].long()])


def switches(layer: BaseTunerLayer | AuxiliaryTrainingWrapper) -> Hashable:
    """Return what decides a tuner layer's answer beside its tensors."""
    scaling = getattr(layer, "scaling", None)
    scales = tuple(scaling.items()) if isinstance(scaling, dict) else scaling
    return layer.disable_adapters, tuple(layer.active_adapters), tuple(layer.merged_adapters), scales


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype that autocast computes in on `device` at present; None when it is off."""
    enabled = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if enabled else None
