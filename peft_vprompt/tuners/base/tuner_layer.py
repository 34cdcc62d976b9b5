"""`WrapperLayer`: a tuner layer around a module of the model, before it knows any adapter."""

from __future__ import annotations

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ...core.offloading import computing_device


class WrapperLayer(nn.Module, BaseTunerLayer):
    """Stands in the place of a module and answers for it."""

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        self.adapter_layer_names = ()
        self._active_adapter = []
        self._disable_adapters = False
        self.merged_adapters = []

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
