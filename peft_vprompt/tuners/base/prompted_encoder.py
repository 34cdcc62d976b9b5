"""`PromptedEncoder`: what stands in a base model in the place of a tower.

It holds the prompts of every adapter on one tower and answers the tower's own call, so whoever calls the base model (a
pipeline, a contrastive loss) sees the prompts. Without an active prompt it is the tower itself. What images and texts
do with their prompts is in `vision_layer` and `text_layer`.
"""

from __future__ import annotations

from torch import nn

from ...backbones.supported import EncoderView, view
from ...core import attention, quick_gelu
from ...prompts.base import PromptModule
from .tuner_layer import Wrapper


class PromptedEncoder(Wrapper):
    """A tower with prompts.

    Holders live in one `nn.ModuleDict` per method, named `<method prefix>learner`: adapters of several methods may
    share a tower, and PEFT finds each method's weights by its prefix.
    """

    @property
    def tower(self) -> EncoderView:
        """The view of the wrapped tower."""
        return view(self.base_layer)

    def add_prompts(self, prefix: str, adapter_name: str, holder: PromptModule) -> None:
        """Hold the prompts of one more adapter."""
        name = f"{prefix}learner"
        if name not in self.adapter_layer_names:
            self.add_module(name, nn.ModuleDict())
            self.adapter_layer_names = (*self.adapter_layer_names, name)
        getattr(self, name)[adapter_name] = holder

    def patch_layers(self, wanted: bool) -> None:
        """Let the layers understand attention patterns where a prompt needs them, and activate in less memory.

        All copies of the layers, if adapters train some (`modules_to_save`): which copy is in use changes later.
        """
        change_activation = quick_gelu.install if wanted else quick_gelu.uninstall
        change_attention = attention.install if wanted and self.needs_patterns else attention.uninstall
        kinds = tuple({type(self.tower.attention(layer)) for layer in self.tower.layers})
        for module in self.base_layer.modules():
            change_activation(module)
            if isinstance(module, kinds):
                change_attention(module)

    @property
    def needs_patterns(self) -> bool:
        """Whether any adapter here has prompts that not every token reads."""
        return any(holder.read_only for name in self.adapter_layer_names for holder in getattr(self, name).values())

    def enable_adapters(self, enabled: bool) -> None:
        """Switch all adapters on or off; off also gives the layers back as they were, the user's own attention included."""
        super().enable_adapters(enabled)
        self.patch_layers(enabled)

    def holder(self, adapter_name: str) -> PromptModule | None:
        """The holder of an adapter; None if the adapter has no prompts on this tower."""
        for name in self.adapter_layer_names:
            if adapter_name in (holders := getattr(self, name)):
                return holders[adapter_name]
        return None

    @property
    def active_prompts(self) -> PromptModule | None:
        """The holder in use; None while disabled or where the active adapter has no prompts here."""
        if self.disable_adapters or not self.active_adapters:
            return None
        if len(self.active_adapters) > 1:
            raise ValueError(f"Expected one active prompt adapter at a time. Received: {self.active_adapters}.")
        return self.holder(self.active_adapters[0])

    @property
    def is_trained(self) -> bool:
        """Whether a part of the wrapped tower is to learn, which the user has to ask for."""
        return any(parameter.requires_grad for parameter in self.base_layer.parameters())

    @property
    def active_read_only(self) -> PromptModule | None:
        """The holder in use, if its prompts read the plain tokens and nobody reads them."""
        holder = self.active_prompts
        return holder if holder is not None and holder.read_only else None

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter. Which adapter is active afterwards is decided by the tuner, for all layers alike."""
        for name in self.adapter_layer_names:
            getattr(self, name).pop(adapter_name) if adapter_name in getattr(self, name) else None
        self._active_adapter = [name for name in self.active_adapters if name != adapter_name]

    def restore(self) -> nn.Module:
        """The wrapped tower as it was."""
        self.patch_layers(False)
        return self.base_layer
