"""`FeatureCache`: what class prompts give is computed once and dropped as soon as anything it depends on changes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn


T = TypeVar("T")

#: Attributes in which modules of torch and transformers keep a rate of dropout.
DROPOUT_RATES = ("p", "dropout", "attention_dropout", "drop_prob")


def fingerprint(module: nn.Module) -> Hashable:
    """Return a value that changes with every weight load, optimiser step, dtype change and device move of `module`.

    It also changes with every switch of an adapter inside, such as a LoRA of the base model or a copy that
    `modules_to_save` made. Each tensor's address and version counter is read, not its contents (less than a millisecond
    for a text tower of twelve layers).
    """
    modules = list(module.modules())
    parameters = [p for m in modules for p in m._parameters.values() if p is not None]  # twice as fast as parameters()
    tensors = [(p.data_ptr(), p.dtype, p.device, -1 if p.is_inference() else p._version) for p in parameters]
    return *tensors, *(switches(m) for m in modules if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper)))


def switches(layer: BaseTunerLayer | AuxiliaryTrainingWrapper) -> Hashable:
    """Return what decides a tuner layer's answer beside its tensors."""
    scaling = getattr(layer, "scaling", None)
    scales = tuple(scaling.items()) if isinstance(scaling, dict) else scaling
    return layer.disable_adapters, tuple(layer.active_adapters), tuple(layer.merged_adapters), scales


def checksum(module: nn.Module | None) -> Hashable:
    """Return a value that changes when other numbers are written into `parameter.data`, which no version counter sees.

    It is sum and norm of each parameter: some microseconds for the prompts of an adapter. Parameters on an accelerator
    are left out, where reading them would make every call wait for the device.
    """
    parameters = [] if module is None else [p.detach() for p in module.parameters() if p.device.type == "cpu"]
    return tuple((p.sum().item(), torch.linalg.vector_norm(p).item()) for p in parameters)


def may_keep(module: nn.Module) -> bool:
    """Tell whether what `module` computes may be kept for a later call.

    It may not where dropout makes each pass another, nor in a replica that `nn.DataParallel` made: a replica shows no
    parameters that could be seen to change, and shares its cache with replicas on other devices.
    """
    return not getattr(module, "_is_replica", False) and not any(map(drops_out, module.modules()))


def drops_out(module: nn.Module) -> bool:
    """Tell whether a module itself drops out hidden states, attention weights or whole paths at present."""
    rates = (getattr(module, name, 0) for name in DROPOUT_RATES)
    return module.training and any(rate > 0 for rate in rates if isinstance(rate, (int, float)))


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype that autocast computes in on `device` at present; None when it is off."""
    enabled = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if enabled else None


class FeatureCache:
    """Keep, for each class list or packed sequence, what was computed from the last state it was asked for.

    An entry goes when its owner does. A copy of a cache starts empty.
    """

    def __init__(self):
        self._entries: WeakKeyDictionary = WeakKeyDictionary()

    def __reduce__(self):
        return FeatureCache, ()

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def get(self, owner: object, key: Hashable, compute: Callable[[], T]) -> T:
        """Return the value of `owner` for `key`, computed without gradients if it is not kept yet."""
        entry = self._entries.get(owner)
        if entry is None or entry[0] != key:
            # A tensor made under inference_mode could not be used in a later backward pass.
            with torch.inference_mode(False), torch.no_grad():
                entry = (key, compute())
            self._entries[owner] = entry
        return entry[1]
