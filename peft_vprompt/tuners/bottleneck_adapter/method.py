"""Pfeiffer adapters."""

from __future__ import annotations

from torch import Tensor, nn

from ..base.classifier_parts import ClassifierParts
from ..base.config import BaselineConfig
from ..base.module_tuner import ModuleTuner
from ..base.tuned_module import TunedModule, placed_beside


class Bottleneck(TunedModule):
    """x + up(GELU(down(x))) on the output x [b, s, d] of a linear layer.

    Source: KMnP/vpt `src/models/vit_adapter/adapter_block.py`, style "Pfeiffer".

    Raises:
        ValueError: the bottleneck would have no unit.
    """

    def __init__(self, base_layer: nn.Linear, reduction_factor: int, init_weights: str):
        super().__init__()
        width = base_layer.out_features
        if width < reduction_factor:
            raise ValueError(
                f"Expected reduction_factor <= {width}, the width of the model. "
                f"Received: reduction_factor={reduction_factor}."
            )
        factory = placed_beside(base_layer)
        self.down = nn.Linear(width, width // reduction_factor, **factory)
        self.up = nn.Linear(width // reduction_factor, width, **factory)
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)
        if init_weights == "zero":
            nn.init.zeros_(self.down.weight)

    def forward(self, base_layer: nn.Module, *args, **kwargs) -> Tensor:
        """Return [b, s, d]."""
        hidden = base_layer(*args, **kwargs)
        change = self.up(nn.functional.gelu(self.down(hidden.to(self.down.weight.dtype))))
        return hidden + change.to(hidden.dtype)


class BottleneckAdapterModel(ModuleTuner):
    """A Pfeiffer adapter after the feed-forward part of every layer, before its residual connection."""

    peft_name = "bottleneck_adapter"
    prefix = "bottleneck_adapter_"
    module_class = Bottleneck
    module_options = ("reduction_factor", "init_weights")

    @classmethod
    def targets(cls, config: BaselineConfig, classifier: ClassifierParts) -> list[str]:
        """Return the last linear layer of every layer."""
        return [classifier.last_linear(layer) for layer in classifier.layers]
