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
        self.trained[adapter_name] = module

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
        trained = self.active_trained
        return self.base_layer(*args, **kwargs) if trained is None else trained(self.base_layer, *args, **kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Let the module itself compute what it does with the trained module of one adapter.

        Raises:
            ValueError: more than one adapter, or one that is no change of weights.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.trained]
        if len(names) > 1:
            raise ValueError(f"Expected one adapter to merge. Received: {names}.")
        for name in names:
            self.base_layer = self.trained[name].merged(self.base_layer)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Refuse: the module's own values are gone.

        Raises:
            ValueError: always.
        """
        raise ValueError("A merged adapter cannot be taken out again. Load the base model anew.")
