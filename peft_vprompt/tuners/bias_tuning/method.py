"""Bias tuning (BitFit)."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from ...core.offloading import is_brought, tensor_of
from ...core.plain_modules import in_place_of
from ..base.classifier_parts import ClassifierParts
from ..base.config import BaselineConfig
from ..base.module_tuner import ModuleTuner
from ..base.tuned_module import TunedModule


class Bias(TunedModule):
    """Another bias for a module that has one; starts from the module's."""

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.bias = nn.Parameter(tensor_of(base_layer, "bias").detach().clone())

    def forward(self, base_layer: nn.Module, *args, **kwargs) -> Tensor:
        """Return the module's own computation with this bias."""
        if is_brought(base_layer.bias):  # it would be put into the place of this one
            return in_place_of(base_layer, functools.partial(self._run, base_layer), *args, **kwargs)
        return functional_call(base_layer, {"bias": self.bias.to(base_layer.bias.dtype)}, args, kwargs)

    def _run(self, base_layer: nn.Module, *args, **kwargs) -> Tensor:
        """Do so inside the module's call."""
        return type(base_layer).forward(with_bias(base_layer, self.bias.to(base_layer.bias.dtype)), *args, **kwargs)

    def merged(self, base_layer: nn.Module) -> nn.Module:
        """Return the module with this bias: another object, which shares all that is not changed."""
        value = self.bias.detach().to(base_layer.bias.dtype, copy=True)
        return with_bias(base_layer, nn.Parameter(value, base_layer.bias.requires_grad))


def with_bias(base_layer: nn.Module, bias: Any) -> nn.Module:
    """Return another object that shares everything with a module but its bias."""
    other = object.__new__(type(base_layer))  # FSDP's classes refuse to be copied
    other.__dict__ = base_layer.__dict__ | {"_parameters": base_layer._parameters | {"bias": bias}}
    return other


class BiasTuningModel(ModuleTuner):
    """A trained bias for every module of the encoder that has one. Source: KMnP/vpt `src/models/vit_models.py`."""

    peft_name = "bias_tuning"
    prefix = "bias_tuning_"
    module_class = Bias

    @classmethod
    def targets(cls, config: BaselineConfig, classifier: ClassifierParts) -> list[str]:
        """Return every module with a bias of its own, the head aside."""
        return [
            name
            for name, module in classifier.own_modules.items()
            if isinstance(getattr(module, "bias", None), nn.Parameter) and name != classifier.head
        ]
