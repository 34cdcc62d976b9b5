"""`PromptedEncoder`: what stands in a base model in the place of a tower.

It holds the prompts of every adapter on one tower and answers the tower's own call, so whoever calls the base model (a
pipeline, a contrastive loss) sees the prompts. Without an active prompt it is the tower itself. How images and texts run
with their prompts is in `prompted_vision_encoder` and `prompted_text_encoder`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ...backbones.base import EncoderView
from ...backbones.supported import view as view_of
from ...core import attention, quick_gelu
from ...prompts.base import PromptModule
from ...utils.fields import shown
from .tuner_layer import WrapperLayer


#: Endings of the names of the `nn.ModuleDict`s that hold an adapter's modules, after the method's prefix.
LEARNER = "learner"
READOUT = "readout"


class PromptedEncoder(WrapperLayer):
    """A tower with prompts.

    Modules live in one `nn.ModuleDict` per method and kind, `<method prefix>learner` for prompts and
    `<method prefix>readout`: adapters of several methods may share a tower, and PEFT finds each one's weights by prefix.
    """

    @property
    def view(self) -> EncoderView:
        """The view of the wrapped tower."""
        return view_of(self.base_layer)

    def add_module_of(self, name: str, adapter_name: str, module: nn.Module) -> None:
        """Hold one more module of an adapter in the `nn.ModuleDict` called `name`."""
        if name not in self.adapter_layer_names:
            self.add_module(name, nn.ModuleDict())
            self.adapter_layer_names = (*self.adapter_layer_names, name)
        getattr(self, name)[adapter_name] = module

    def asked_for(self, name: str, given: Any) -> bool:
        """Return whether a call asks for `output_hidden_states`, say, by itself or by the config of the encoder.

        Raises:
            ValueError: it asks for some of them by their numbers.
        """
        wanted = getattr(self.base_layer.config, name, False) if given is None else given
        if not isinstance(wanted, bool):
            raise ValueError(
                f"Expected {name} as True or False of an encoder with prompts. Received: {name}={shown(wanted)}. Pass True, and "
                "take those that you want."
            )
        return wanted

    def module_of(self, adapter_name: str, kind: str) -> nn.Module | None:
        """Return an adapter's prompts (`LEARNER`) or readout (`READOUT`), None if it has none here."""
        for name in self.adapter_layer_names:
            modules = getattr(self, name)
            if name.endswith(kind) and adapter_name in modules:
                return modules[adapter_name]
        return None

    def patch_layers(self, wanted: bool) -> None:
        """Let the layers understand attention patterns where a prompt needs them, and activate in less memory.

        All copies of the layers, if adapters train some (`modules_to_save`): which copy is in use changes later.
        """
        change_activation = quick_gelu.install if wanted else quick_gelu.uninstall
        change_attention = attention.install if wanted and self.needs_patterns else attention.uninstall
        kinds = tuple({type(self.view.attention(layer)) for layer in self.view.layers})
        for module in self.base_layer.modules():
            change_activation(module)
            if isinstance(module, kinds):
                change_attention(module)

    @property
    def reads_patterns(self) -> bool:
        """Whether the layers understand attention patterns at present."""
        return attention.is_installed(self.view.attention(self.view.layers[0]))

    @property
    def needs_patterns(self) -> bool:
        """Whether any adapter here has prompts that not every token reads."""
        names = [name for name in self.adapter_layer_names if name.endswith(LEARNER)]
        return any(prompts.read_only for name in names for prompts in getattr(self, name).values())

    def enable_adapters(self, enabled: bool) -> None:
        """Switch all adapters on or off; off also gives the layers back as they were, the user's attention included."""
        super().enable_adapters(enabled)
        self.patch_layers(enabled)

    def prompts_of(self, adapter_name: str) -> PromptModule | None:
        """Return the prompts of an adapter, None if it has none on this tower."""
        return self.module_of(adapter_name, LEARNER)

    @property
    def active_prompts(self) -> PromptModule | None:
        """The prompts in use; None while disabled or where the active adapter has none here.

        Raises:
            ValueError: several adapters are active.
        """
        if self.disable_adapters or not self.active_adapters:
            return None
        if len(self.active_adapters) > 1:
            raise ValueError(f"Expected one active prompt adapter at a time. Received: {self.active_adapters}.")
        return self.prompts_of(self.active_adapters[0])

    @property
    def active_read_only(self) -> PromptModule | None:
        """The prompts in use, if they read the plain tokens and nobody reads them."""
        prompts = self.active_prompts
        return prompts if prompts is not None and prompts.read_only else None

    @property
    def is_trained(self) -> bool:
        """Whether a part of the wrapped tower is to learn, which the user has to ask for."""
        return any(parameter.requires_grad for parameter in self.base_layer.parameters())

    @staticmethod
    def refuse_names(kwargs: dict) -> None:
        """Refuse `adapter_names`, which transformers' models hand on to their towers and nobody there would honour.

        Raises:
            ValueError: they are among the keyword arguments.
        """
        if kwargs.pop("adapter_names", None) is not None:
            raise ValueError(
                "Expected adapter_names in the PEFT model's call alone. Received them in a call of the base model, which "
                "answers with the active adapter. Call model(pixel_values=..., adapter_names=[...]) on the PEFT model."
            )

    def restore(self) -> nn.Module:
        """Return the wrapped tower as it was."""
        self.patch_layers(False)
        return self.base_layer
