"""A perceptron in the place of the head."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from ..base.classifier_parts import ClassifierParts
from ..base.config import BaselineConfig
from ..base.module_tuner import ModuleTuner
from ..base.tuned_module import TunedModule, full_precision, placed_beside


class MLPHead(TunedModule):
    """Linear - BatchNorm - ReLU - Dropout, `num_layers` - 1 times, then the layer to the classes.

    Source: KMnP/vpt `src/models/mlp.py`; the last layer starts as theirs (kaiming fan-out).
    """

    def __init__(self, base_layer: nn.Linear, num_layers: int, dropout: float):
        super().__init__()
        width = base_layer.in_features
        factory = placed_beside(base_layer) | {"dtype": full_precision(base_layer.weight.dtype)}
        layers = []
        for _ in range(num_layers - 1):
            layers += [nn.Linear(width, width, **factory), nn.BatchNorm1d(width, **factory)]
            layers += [nn.ReLU(), nn.Dropout(dropout)]
        last = nn.Linear(width, base_layer.out_features, **factory)
        nn.init.kaiming_normal_(last.weight, a=0, mode="fan_out")
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, base_layer: nn.Module, features: Tensor) -> Tensor:
        """Map features [b, d] to logits [b, c]; the base model's head is not used."""
        return self.layers(features.to(self.layers[-1].weight.dtype)).to(features.dtype)

    def merged(self, base_layer: nn.Module) -> nn.Module:
        """Return a copy of the perceptron, in the base model's precision: the trained one keeps its own."""
        merged = copy.deepcopy(self.layers).to(base_layer.weight.dtype)
        return merged.requires_grad_(base_layer.weight.requires_grad)


class MLPHeadModel(ModuleTuner):
    """A perceptron in the place of the head."""

    peft_name = "mlp_head"
    prefix = "mlp_head_"
    module_class = MLPHead
    module_options = ("num_layers", "dropout")
    trains_head = False

    @classmethod
    def targets(cls, config: BaselineConfig, classifier: ClassifierParts) -> list[str]:
        """Return the head."""
        return [classifier.head]
