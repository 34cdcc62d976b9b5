"""Views of the encoders that prompts can be put into, and where a given model keeps them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..errors import UnsupportedModelError
from .base import BidirectionalTextView, CausalTextView, EncoderView, TextView, VisionView
from .beit import BeitView
from .bert import AltCLIPTextView, ChineseCLIPTextView
from .clip import ChineseCLIPVisionView, CLIPTextView, CLIPVisionView, MetaClip2TextView
from .dino import DINOv3View, DINOView
from .dual_encoder import BertDualEncoderView, DualEncoderView, SiglipDualEncoderView
from .mae import MAEView
from .siglip import Siglip2VisionView, SiglipTextView, SiglipVisionView
from .swin import Swinv2View, SwinView
from .vit import DeiTView, ViTView


#: Class name of an encoder module -> its view. Names, so that no modelling file is imported before it is used, and
#: that a release of transformers may lack some. `...Transformer`: releases that keep the encoder one level deeper.
ENCODER_VIEWS: dict[str, type[EncoderView]] = {
    **dict.fromkeys(("CLIPTextModel", "CLIPTextTransformer"), CLIPTextView),
    **dict.fromkeys(("MetaClip2TextModel", "MetaClip2TextTransformer"), MetaClip2TextView),
    **{f"{model}Text{kind}": SiglipTextView for model in ("Siglip", "Siglip2") for kind in ("Model", "Transformer")},
    "ChineseCLIPTextModel": ChineseCLIPTextView,
    "AltCLIPTextModel": AltCLIPTextView,
    **{
        f"{model}Vision{kind}": CLIPVisionView
        for model in ("CLIP", "MetaClip2", "AltCLIP")
        for kind in ("Model", "Transformer")
    },
    **dict.fromkeys(("ChineseCLIPVisionModel", "ChineseCLIPVisionTransformer"), ChineseCLIPVisionView),
    **dict.fromkeys(("SiglipVisionModel", "SiglipVisionTransformer"), SiglipVisionView),
    "Siglip2VisionModel": Siglip2VisionView,
    "ViTModel": ViTView,
    "SwinModel": SwinView,
    "Swinv2Model": Swinv2View,
    "DeiTModel": DeiTView,
    "ViTMAEModel": MAEView,
    **dict.fromkeys(("Dinov2Model", "Dinov2WithRegistersModel"), DINOView),
    "DINOv3ViTModel": DINOv3View,
    **dict.fromkeys(("BeitModel", "Data2VecVisionModel"), BeitView),
}

#: Class name of a model with two towers -> how the two meet.
DUAL_ENCODERS: dict[str, type[DualEncoderView]] = {
    **dict.fromkeys(("CLIPModel", "MetaClip2Model"), DualEncoderView),
    **dict.fromkeys(("SiglipModel", "Siglip2Model"), SiglipDualEncoderView),
    **dict.fromkeys(("ChineseCLIPModel", "AltCLIPModel"), BertDualEncoderView),
}

#: Models with a classification head -> the head's name. It is trained and saved with the adapter.
HEADS: dict[str, str] = dict.fromkeys(
    (
        "ViTForImageClassification",
        "SwinForImageClassification",
        "Swinv2ForImageClassification",
        "DeiTForImageClassification",
        "Dinov2ForImageClassification",
        "Dinov2WithRegistersForImageClassification",
        "BeitForImageClassification",
        "Data2VecVisionForImageClassification",
        "CLIPForImageClassification",
        "SiglipForImageClassification",
        "Siglip2ForImageClassification",
        "MetaClip2ForImageClassification",
    ),
    "classifier",
)

#: Image encoders by themselves, without a head.
ENCODERS: tuple[str, ...] = (
    "ViTModel",
    "SwinModel",
    "Swinv2Model",
    "DeiTModel",
    "ViTMAEModel",
    "Dinov2Model",
    "Dinov2WithRegistersModel",
    "DINOv3ViTModel",
    "BeitModel",
    "Data2VecVisionModel",
    "CLIPVisionModel",
    "CLIPVisionModelWithProjection",
    "SiglipVisionModel",
    "Siglip2VisionModel",
    "MetaClip2VisionModel",
    "MetaClip2VisionModelWithProjection",
    "ChineseCLIPVisionModel",
    "AltCLIPVisionModel",
)


#: Models that look like those above and cannot be prompted -> why.
UNSUPPORTED: dict[str, str] = {
    "ViTMAEForPreTraining": "its decoder rebuilds patches that were dropped at random, and a prompted encoder drops none. "
    "Use its encoder, ViTMAEModel, or load the weights into ViTForImageClassification",
    "Siglip2VisionTransformer": "older transformers releases build Siglip2VisionModel around it, in a way that has no view "
    "here. Use a newer release, see docs/versions.md",
    **dict.fromkeys(
        ("TimmWrapperModel", "TimmWrapperForImageClassification"),
        "timm's layers are not transformers' and have no view here. Use the same network's own class, such as "
        "ViTForImageClassification, Dinov2Model or BeitModel",
    ),
}


@dataclass(frozen=True)
class Backbone:
    """Where a model keeps its towers, as module names ("" is the model itself).

    Attributes:
        vision: name of the image encoder.
        text: name of the text encoder, None without one.
        dual: name of the module that joins the two, None without one.
        head: name of the classification head, None without one.
    """

    vision: str
    text: str | None = None
    dual: str | None = None
    head: str | None = None


def class_name(module: nn.Module) -> str:
    """Class name of a module; of the wrapped one where PEFT put a layer around it."""
    while isinstance(getattr(module, "base_layer", None), nn.Module):
        module = module.base_layer
    return type(module).__name__


def view(module: nn.Module) -> EncoderView:
    """The view of an encoder module."""
    return ENCODER_VIEWS[type(module).__name__](module)


def is_encoder(module: nn.Module) -> bool:
    """Whether `module` is an encoder that keeps its own embeddings (and does not just wrap one that does)."""
    return class_name(module) in ENCODER_VIEWS and hasattr(module, "embeddings")


def supported_models() -> list[str]:
    """The model classes that can be prompted."""
    return sorted([*DUAL_ENCODERS, *HEADS, *ENCODERS])


def find_backbone(model: nn.Module) -> Backbone:
    """Find the towers of `model`, which may be wrapped (a PEFT model with LoRA, say).

    Raises:
        UnsupportedModelError: names the class received and the classes supported.
    """
    modules = {name: module for name, module in model.named_modules() if "base_layer" not in name.split(".")}
    for module in modules.values():
        if class_name(module) in UNSUPPORTED:
            raise UnsupportedModelError(
                f"Cannot put prompts into {class_name(module)}: {UNSUPPORTED[class_name(module)]}."
            )
    for name, module in modules.items():
        if class_name(module) in DUAL_ENCODERS:
            dual, prefix = DUAL_ENCODERS[class_name(module)], f"{name}." if name else ""
            return Backbone(vision=prefix + dual.vision, text=prefix + dual.text, dual=name)
    towers = [name for name, module in modules.items() if is_encoder(module)]
    if len(towers) != 1 or not issubclass(ENCODER_VIEWS[class_name(modules[towers[0]])], VisionView):
        raise UnsupportedModelError(
            f"Cannot put prompts into {type(model).__name__}. Supported models: {', '.join(supported_models())}."
        )
    heads = [f"{n}.{HEADS[class_name(m)]}".lstrip(".") for n, m in modules.items() if class_name(m) in HEADS]
    return Backbone(vision=towers[0], head=heads[0] if heads else None)


__all__ = [
    "Backbone",
    "BidirectionalTextView",
    "CausalTextView",
    "EncoderView",
    "TextView",
    "VisionView",
    "find_backbone",
    "supported_models",
    "view",
]
