"""The base model that prompts are put into: where its towers are, what it carries already, and what is refused of it."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...backbones.supported import (
    DUAL_ENCODERS,
    READERS,
    Backbone,
    class_name,
    find_backbone,
    supported_models,
    unknown_reader,
    view,
)
from ...errors import UnsupportedModelError
from . import in_place, registry
from .config import PromptConfig
from .prompted_encoder import PromptedEncoder
from .prompted_text_encoder import PromptedTextEncoder
from .prompted_vision_encoder import PromptedVisionEncoder


def check_model(config: PromptConfig, model: nn.Module, backbone: Backbone) -> None:
    """Refuse a base model that the method does not work on.

    Raises:
        UnsupportedModelError: says why.
        ValueError: modules to save that are not there or cannot be.
    """
    base = class_name(model if backbone.dual is None else model.get_submodule(backbone.dual))
    bare = backbone.vision == in_place.LAYER and not isinstance(model, in_place.CarriesPrompts)
    tower: Any = view(model if bare else model.get_submodule(backbone.vision))
    if (reason := registry.unsupported(config.peft_type, base, config, tower.no_layers)) is not None:
        raise UnsupportedModelError(reason)
    if (reader := unknown_reader(model, backbone)) is not None:
        raise UnsupportedModelError(
            f"Cannot put prompts into the image encoder of {reader}, which may count its rows or read the prompts among "
            f"them. Supported models: {', '.join(supported_models())}; and, around one of their encoders, "
            f"{', '.join(READERS)}."
        )
    check_modules_to_save(config, model, backbone)


def backbone_of(model: nn.Module) -> Backbone:
    """Return where the towers of `model` are, or will be when it carries prompts: a bare encoder's inside it.

    Raises:
        UnsupportedModelError: there is no tower that can be prompted.
    """
    if isinstance(model, in_place.CarriesPrompts):
        return Backbone(vision=in_place.LAYER)
    backbone = find_backbone(model)
    return Backbone(vision=in_place.LAYER) if backbone.vision == "" else backbone


def prompted_encoders(model: nn.Module) -> list[PromptedEncoder]:
    """Return the tuner layers that a model has already."""
    return [module for module in model.modules() if isinstance(module, PromptedEncoder)]


def trainable(model: nn.Module) -> dict[str, bool]:
    """Return which parameters are trained, by name."""
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def wrap_encoders(model: nn.Module, backbone: Backbone) -> tuple[PromptedVisionEncoder, PromptedTextEncoder | None]:
    """Return the tuner layers of the model, or new ones around its towers (not put in place yet)."""
    if carried := prompted_encoders(model):
        by_kind = {type(layer): layer for layer in carried}
        return by_kind[PromptedVisionEncoder], by_kind.get(PromptedTextEncoder)
    text = None if backbone.text is None else PromptedTextEncoder(model.get_submodule(backbone.text))
    bare = backbone.vision == in_place.LAYER
    tower = in_place.inner_copy(model) if bare else model.get_submodule(backbone.vision)
    return PromptedVisionEncoder(tower, text), text


def check_modules_to_save(config: PromptConfig, model: nn.Module, backbone: Backbone) -> None:
    """Refuse modules that are not there, and modules of the encoders, of which PEFT cannot keep copies beside prompts.

    Raises:
        ValueError: names the module.
    """
    vision = "" if backbone.vision == in_place.LAYER else backbone.vision
    towers = [name for name in (vision, backbone.text) if name is not None]
    modules = [name for name, _ in model.named_modules() if name]
    inside = {name for name in modules for tower in towers if f"{name}.".startswith(tower and f"{tower}.")}
    for wanted in config.modules_to_save or []:
        found = {name for name in modules if name.endswith(wanted)}
        if not found or found & inside:
            raise ValueError(
                "Expected modules_to_save to name modules outside the encoders, such as a projection or a head. "
                f"Received: {wanted!r}, which is {'inside an encoder' if found else 'no module of this model'}."
            )


def feature_dim(model: nn.Module, backbone: Backbone) -> int:
    """Return the size of the space that images and texts share."""
    module = model.get_submodule(backbone.dual)
    return DUAL_ENCODERS[class_name(module)](module).feature_dim
