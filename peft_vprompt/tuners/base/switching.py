"""Which adapter answers: switching for the length of a block, whatever the tuner is, with what is trained left as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper


#: PEFT's name for the base model without any adapter, where names of adapters are asked for.
BASE = "__base__"


def adapter_layers(tuner: BaseTuner) -> list[BaseTunerLayer | AuxiliaryTrainingWrapper]:
    """Return whatever is switched with the adapters of a tuner.

    A LoRA that the base model of one of our tuners carries is part of the base model, and is not.
    """
    kinds = (tuner.tuner_layer_cls, AuxiliaryTrainingWrapper)
    return [module for module in tuner.model.modules() if isinstance(module, kinds)]


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
