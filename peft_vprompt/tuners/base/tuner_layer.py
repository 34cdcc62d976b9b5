"""`WrapperLayer`: a tuner layer around a module of the model, before it knows any adapter."""

from __future__ import annotations

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ...core.offloading import computing_device


class WrapperLayer(nn.Module, BaseTunerLayer):
    """Stands in the place of a module and answers for it.

    Attributes:
        configs: the adapters of the model by name, this layer's and others: the tuner's own dictionary.
        copies: PEFT's wrappers around trained copies of whole modules (a head), which are switched with the layer. A
            tuple, so that they are no children of it.
        was_trainable: what of the model was trainable before it got its first adapter, by name.
    """

    configs: dict[str, PeftConfig]
    copies: tuple[AuxiliaryTrainingWrapper, ...]
    was_trainable: dict[str, bool]

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        self.adapter_layer_names = ()
        self._active_adapter = []
        self._disable_adapters = False
        self.merged_adapters = []
        self.configs = {}
        self.copies = ()
        self.was_trainable = {}

    def enable_adapters(self, enabled: bool) -> None:
        """Switch all adapters on or off, the copies with them: transformers' `enable_adapters` asks the layers alone."""
        super().enable_adapters(enabled)
        for wrapper in self.copies:
            wrapper.enable_adapters(enabled)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter; if it was the active one, the first that is left becomes active."""
        for name in self.adapter_layer_names:
            modules = getattr(self, name)
            if adapter_name in modules:
                del modules[adapter_name]
        if adapter_name in self.active_adapters:
            left = [name for name in self.configs if name != adapter_name]
            self.set_adapter(left[:1], inference_mode=bool(left) and self.configs[left[0]].inference_mode)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device | None, None]:
        """Return where PEFT moves an adapter's weights to. A whole encoder has no `weight` of its own that says it."""
        weight = next(base_layer.parameters(), None)
        return None if weight is None else computing_device(base_layer, weight), None

    def __getattr__(self, name: str):
        """Look up in the wrapped module whatever is not here."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)
