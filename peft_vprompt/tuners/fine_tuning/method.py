"""Fine-tuning of whole modules: all of them, the last layers, or the head alone."""

from __future__ import annotations

from copy import deepcopy

from torch import nn

from ...core.offloading import bring
from ..base.classifier_parts import ClassifierParts
from ..base.module_tuner import ModuleTuner
from ..base.tuned_module import TunedModule, require_floats
from .config import FineTuningConfig


class Copy(TunedModule):
    """A copy of the module, trained in its place and in its precision."""

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        require_floats(base_layer)
        self.module = bring(deepcopy(base_layer))

    def forward(self, base_layer: nn.Module, *args, **kwargs):
        """Return the copy's answer."""
        return self.module(*args, **kwargs)

    def merged(self, base_layer: nn.Module) -> nn.Module:
        """Return the copy."""
        return self.module


class FineTuningModel(ModuleTuner):
    """Copies of whole modules are trained."""

    peft_name = "fine_tuning"
    prefix = "fine_tuning_"
    module_class = Copy
    trains_head = False  # it is one of the modules

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Leave copies in the precision of the model, as PEFT does with `modules_to_save`: other modules read them."""

    @classmethod
    def targets(cls, config: FineTuningConfig, classifier: ClassifierParts) -> list[str]:
        """Return the encoder, or its last layers and final norm; and the head.

        Raises:
            ValueError: more layers than there are.
        """
        if config.num_layers is None:
            return [classifier.encoder, classifier.head]
        if config.num_layers == 0:
            return [classifier.head]
        if config.num_layers > len(classifier.layers):
            raise ValueError(
                f"Expected num_layers <= {len(classifier.layers)}, the layers of the encoder. "
                f"Received: num_layers={config.num_layers}."
            )
        return [*classifier.layers[-config.num_layers :], *classifier.final_norms, classifier.head]
