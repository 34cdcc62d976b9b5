"""`ModuleTunerLayer`: one module of the model with the module that each adapter trains beside it."""

from __future__ import annotations

from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import nn

from .tuned_module import TunedModule
from .tuner_layer import WrapperLayer


class ModuleTunerLayer(WrapperLayer):
    """Answers with the active adapter's trained module; without one it is the module itself.

    Trained modules live in one `nn.ModuleDict` named `<method prefix>modules`, by which PEFT finds them.
    """

    def __init__(self, base_layer: nn.Module, prefix: str):
        super().__init__(base_layer)
        self.adapter_layer_names = (f"{prefix}modules",)
        self.add_module(f"{prefix}modules", nn.ModuleDict())

    @property
    def trained(self) -> nn.ModuleDict:
        """The trained modules by adapter name."""
        return getattr(self, self.adapter_layer_names[0])

    def add_trained(self, adapter_name: str, module: TunedModule) -> None:
        """Hold the trained module of one more adapter."""
        self.trained[adapter_name] = module.train(self.training)

    @property
    def active_trained(self) -> TunedModule | None:
        """The trained module in use.

        Raises:
            ValueError: several adapters are active.
        """
        if self.disable_adapters or self.merged or not self.active_adapters:
            return None
        if len(self.active_adapters) > 1:
            raise ValueError(f"Expected one active adapter at a time. Received: {self.active_adapters}.")
        name = self.active_adapters[0]
        return self.trained[name] if name in self.trained else None  # noqa: SIM401 (a ModuleDict has no `get`)

    def forward(self, *args, **kwargs):
        """Make the module's own call, with the trained module of the active adapter."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        trained = self.active_trained
        return self.base_layer(*args, **kwargs) if trained is None else trained(self.base_layer, *args, **kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Let the module itself compute what it does with the trained module of one adapter.

        Raises:
            ValueError: more than one adapter, one that is no change of weights, or, with `safe_merge`, one whose values
                are not finite.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.trained]
        if len(names) + len(self.merged_adapters) > 1:
            raise ValueError(f"Expected one adapter to merge. Received: {self.merged_adapters + names}.")
        for name in names:
            merged = self.trained[name].merged(self.base_layer)
            if safe_merge:
                check_finite(merged, name)
            # No child: it is part neither of the model's parameters nor of its saved state.
            self.__dict__["unmerged"] = self.base_layer
            self.base_layer = merged
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Put the module itself back."""
        if self.merged:
            weight = next(self.base_layer.parameters(), None)
            self.base_layer = self.__dict__.pop("unmerged")
            if weight is not None:
                self.base_layer.to(device=weight.device, dtype=weight.dtype)
            self.merged_adapters.clear()


def check_finite(module: nn.Module, adapter_name: str) -> None:
    """Refuse merged values that are not finite.

    Raises:
        ValueError: names the adapter.
    """
    if not all(bool(parameter.isfinite().all()) for parameter in module.parameters()):
        raise ValueError(
            f"NaNs detected in the merged weights: the adapter {adapter_name!r} has NaN or infinite values and is broken, "
            "so it is not merged. Train it again with a lower learning rate."
        )
