"""Which adapter answers: switching for the length of a block, whatever the tuner is, with what is trained left as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ...core.offloading import bring


#: PEFT's name for the base model without any adapter, where names of adapters are asked for.
BASE = "__base__"


def adapter_layers(tuner: BaseTuner) -> list[BaseTunerLayer | AuxiliaryTrainingWrapper]:
    """Return whatever is switched with the adapters of a tuner.

    A LoRA that the base model of one of our tuners carries is part of the base model, and is not.
    """
    kinds = (tuner.tuner_layer_cls, AuxiliaryTrainingWrapper)
    return [module for module in tuner.model.modules() if isinstance(module, kinds)]


def adapter_parameters(layers: Iterable[BaseTunerLayer | AuxiliaryTrainingWrapper]) -> Iterator[nn.Parameter]:
    """Return the parameters of all adapters in layers."""
    for layer in layers:
        for name in layer.adapter_layer_names:
            yield from getattr(layer, name).parameters()


def merged_adapters(model: nn.Module) -> set[str]:
    """Return the names of the adapters that are merged into the weights of a model."""
    return {
        name for module in model.modules() if isinstance(module, BaseTunerLayer) for name in module.merged_adapters
    }


def require_unmerged(model: nn.Module, adapter_name: str) -> None:
    """Refuse to change the values of an adapter that is merged: those that are in the weights could not be taken out again.

    Raises:
        ValueError: names the adapter.
    """
    if adapter_name in merged_adapters(model):
        raise ValueError(
            f"Expected an adapter that is not merged, to give it other values. Received {adapter_name!r}, which is. Call "
            "unmerge_adapter() first."
        )


def forget_copies(tuner: BaseTuner, adapter_name: str, active: list[str]) -> None:
    """Take an adapter out of PEFT's wrappers around trained copies of whole modules; `active` are active from now on."""
    for layer in adapter_layers(tuner):
        if isinstance(layer, AuxiliaryTrainingWrapper):
            layer.delete_adapter(adapter_name, new_active_adapters=active)


def switch_copies(tuner: BaseTuner, adapter_name: str) -> None:
    """Let the copies of a new adapter answer if it is active, and switch all copies together with the tuner's layers.

    PEFT leaves a wrapper that has lost its last copy without an active one, and the copy of an offloaded module without
    weights of its own.
    """
    layers: list[Any] = adapter_layers(tuner)
    copies = tuple(layer for layer in layers if isinstance(layer, AuxiliaryTrainingWrapper))
    for wrapper in copies:
        if adapter_name in wrapper._adapters:
            bring(wrapper.modules_to_save[adapter_name])
        if adapter_name in wrapper._adapters and adapter_name in tuner.active_adapters:
            wrapper.set_adapter(adapter_name, inference_mode=tuner.peft_config[adapter_name].inference_mode)
    for layer in layers:
        if layer not in copies:
            layer.copies = copies


@contextmanager
def answering_for(tuner: BaseTuner) -> Iterator[Callable[[str], None]]:
    """Give a function that lets the model answer for another adapter, or for `BASE`, until the block ends.

    The switch is seen by all threads, so call from one.
    """
    layers: list[Any] = adapter_layers(tuner)
    active = tuner.active_adapter
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]

    def answer_for(adapter_name: str) -> None:
        plain = adapter_name == BASE
        tuner.active_adapter = active if plain else [adapter_name]
        for layer, (was_active, was_disabled) in zip(layers, before, strict=True):
            copied = not isinstance(layer, AuxiliaryTrainingWrapper) or adapter_name in layer._adapters
            layer._active_adapter = was_active if plain else [adapter_name] if copied else []
            layer._disable_adapters = was_disabled or plain

    try:
        yield answer_for
    finally:
        tuner.active_adapter = active
        for layer, (was_active, was_disabled) in zip(layers, before, strict=True):
            layer._active_adapter = was_active
            layer._disable_adapters = was_disabled
