"""How a bare encoder carries prompts: the model that a user holds becomes the prompted one itself.

A tower inside a model is replaced by its tuner layer. A bare encoder (`ViTModel`) has no parent that would hold the
layer in its place, and transformers' `load_adapter` goes on with the object it was called on. So its parts move into an
inner copy of it, a tuner layer is put around that copy, and the encoder itself gets a class that calls the layer.
`give_back` undoes it.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections import OrderedDict
from typing import Any

from accelerate.hooks import add_hook_to_module, remove_hook_from_module
from torch import nn

from ...errors import UnsupportedModelError
from .mixed_class import Mixed, mixed_class


#: Name of the tuner layer in a bare encoder that carries prompts.
LAYER = "prompted_encoder"

#: What of a module its parts are in.
PARTS = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")


#: Attribute of a model in which transformers notes that its layers have the hooks that collect states.
HOOKED = "_output_capturing_hooks_installed"


class CarriesPrompts(Mixed):
    """Mixin for the class of a bare encoder that carries prompts: its call is that of the tuner layer inside.

    Attributes:
        inputs: names of what the plain class's `forward` takes by position.
    """

    inputs: tuple[str, ...]

    def forward(self, *args, **kwargs):
        """Call the tuner layer."""
        given = dict(zip(self.inputs, args, strict=False))
        return self._modules[LAYER](**given, **kwargs)

    def __getattr__(self, name: str):
        """Look for the encoder's parts in the inner copy."""
        try:
            return super().__getattr__(name)  # pyrefly: ignore[missing-attribute]  # likewise
        except AttributeError:
            layer = vars(self).get("_modules", {}).get(LAYER)
            if layer is None:
                raise
            return getattr(layer.base_layer, name)


@functools.cache
def carrier_class(plain_class: type[nn.Module]) -> type[nn.Module]:
    """Return `plain_class` with the mixin `CarriesPrompts`; always the same."""
    parameters = list(inspect.signature(plain_class.forward).parameters.values())[1:]
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    inputs = tuple(parameter.name for parameter in parameters if parameter.kind in by_position)
    return mixed_class(CarriesPrompts, plain_class, inputs=inputs, mixed_by=staticmethod(carrier_class))


def inner_copy(encoder: nn.Module) -> nn.Module:
    """Return another object of the encoder's class with the same parts and without its hooks; it stays as it is.

    Raises:
        UnsupportedModelError: somebody has put another `forward` on the encoder, which would go on answering.
    """
    inner = copy.copy(encoder)
    state = vars(inner)
    hook = state.get("_hf_hook")
    if "forward" in state and hook is None:
        raise UnsupportedModelError(
            f"Expected a {type(encoder).__name__} whose forward is that of its class. Received one whose forward was "
            "replaced. Put the prompts in first, and replace it then."
        )
    for name in ("forward", "_old_forward", "_hf_hook", "_compiled_call_impl"):
        state.pop(name, None)
    for name in PARTS:
        state[name] = copy.copy(state[name])
    for name, value in state.items():
        if name.endswith("_hooks") or "_hooks_" in name:
            state[name] = OrderedDict() if isinstance(value, dict) else value
    return inner


def carry(encoder: nn.Module, layer: nn.Module) -> None:
    """Let a bare encoder answer with `layer`, a tuner layer around its `inner_copy`.

    * Reason: transformers' `load_adapter` and `from_pretrained` return the object that they put the adapter into.
    * Undo: `give_back`.
    * Goes when an adapter can ask transformers to go on with another object.
    """
    hook = take_hook(encoder)
    for name in PARTS:
        vars(encoder)[name] = type(vars(encoder)[name])()
    encoder.__class__ = carrier_class(type(encoder))
    encoder.add_module(LAYER, layer)
    if hook is not None:
        add_hook_to_module(encoder, hook)


def give_back(encoder: nn.Module, inner: nn.Module) -> None:
    """Undo `carry`: the encoder gets its class and its parts back from its inner copy."""
    hook = take_hook(encoder)
    encoder.__class__ = type(inner)
    for name in PARTS:
        vars(encoder)[name] = vars(inner)[name]
    if getattr(inner, HOOKED, False):
        setattr(encoder, HOOKED, True)
    if hook is not None:
        add_hook_to_module(encoder, hook)


def take_hook(encoder: nn.Module) -> Any:
    """Take off the hook by which accelerate places a module, if there is one, with the `forward` that it leaves behind."""
    hook = vars(encoder).get("_hf_hook")
    if hook is not None:
        remove_hook_from_module(encoder)
        vars(encoder).pop("forward", None)
    return hook
