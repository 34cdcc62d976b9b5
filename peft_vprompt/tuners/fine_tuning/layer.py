"""`TransferLayer`: one module of the model with the part that each adapter puts beside it."""

from __future__ import annotations

from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import nn

from ..base.tuner_layer import Wrapper
from .modules import Part


class TransferLayer(Wrapper):
    """Answers with the active adapter's part; without one it is the module itself.

    Parts live in one `nn.ModuleDict` named `<method prefix>parts`, by which PEFT finds them.
    """

    def __init__(self, base_layer: nn.Module, prefix: str):
        super().__init__(base_layer)
        self.adapter_layer_names = (f"{prefix}parts",)
        self.add_module(f"{prefix}parts", nn.ModuleDict())

    @property
    def parts(self) -> nn.ModuleDict:
        """The parts by adapter name."""
        return getattr(self, self.adapter_layer_names[0])

    def add_part(self, adapter_name: str, part: Part) -> None:
        """Hold the part of one more adapter."""
        self.parts[adapter_name] = part

    @property
    def active_part(self) -> Part | None:
        """The part in use."""
        if self.disable_adapters or self.merged or not self.active_adapters:
            return None
        if len(self.active_adapters) > 1:
            raise ValueError(f"Expected one active adapter at a time. Received: {self.active_adapters}.")
        name = self.active_adapters[0]
        return self.parts[name] if name in self.parts else None  # noqa: SIM401 (a ModuleDict has no `get`)

    def forward(self, *args, **kwargs):
        """The module's own call."""
        part = self.active_part
        return self.base_layer(*args, **kwargs) if part is None else part(self.base_layer, *args, **kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Let the module itself compute what it does with the part of one adapter.

        Raises:
            ValueError: more than one adapter, or a part that is no change of weights.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.parts]
        if len(names) > 1:
            raise ValueError(f"Expected one adapter to merge. Received: {names}.")
        for name in names:
            self.base_layer = self.parts[name].merged(self.base_layer)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Not possible: the module's own values are gone.

        Raises:
            ValueError: always.
        """
        raise ValueError("A merged adapter cannot be taken out again. Load the base model anew.")
