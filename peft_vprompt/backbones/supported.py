"""Views of the encoders that prompts can be put into, and where a given model keeps them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig

from ..errors import UnsupportedModelError
from .base import EncoderView
from .beit import BeitView, Data2VecVisionView
from .bert import AltCLIPTextView, BertTextView, ChineseCLIPTextView, RobertaTextView
from .clip import CLIPTextView, CLIPVisionView, MetaClip2TextView, MLCDView, OwlViTVisionView
from .dino import DINOv3View, DINOView, RadioView, Tipsv2VisionView
from .dual_encoder import (
    Aimv2DualEncoderView,
    AlignDualEncoderView,
    AnyTwoDualEncoderView,
    BertDualEncoderView,
    DualEncoderView,
    GroupViTDualEncoderView,
    ResNetCLIPDualEncoderView,
    SiglipDualEncoderView,
    Tipsv2DualEncoderView,
)
from .mae import MAEView
from .opaque import GroupViTVisionView, OpaqueVisionView, ResNetCLIPVisionView
from .refused import UNSUPPORTED
from .siglip import Aimv2VisionView, Siglip2VisionView, SiglipTextView, SiglipVisionView
from .swin import Swinv2View, SwinView
from .text import TextView
from .timm_wrapper import TimmView
from .tips import Tipsv2TextView
from .unpacked import Aimv2TextView, UnpackedTextView
from .vision import VisionView
from .vit import DeiTView, IJepaView, PixioView, ViTMSNView, ViTView


#: Class name of an encoder module -> its view. Names, so that no modelling file is imported before it is used. A
#: subclass is what its first base class in a table is, see `class_name`.
ENCODER_VIEWS: dict[str, type[EncoderView]] = {
    **dict.fromkeys(
        ("CLIPTextModel", "CLIPSegTextModel", "OwlViTTextTransformer", "Owlv2TextTransformer"), CLIPTextView
    ),
    "MetaClip2TextModel": MetaClip2TextView,
    **dict.fromkeys(("SiglipTextModel", "Siglip2TextModel"), SiglipTextView),
    **dict.fromkeys(("ChineseCLIPTextModel", "AlignTextModel"), ChineseCLIPTextView),
    "BertModel": BertTextView,
    **dict.fromkeys(("RobertaModel", "XLMRobertaModel"), RobertaTextView),
    "AltCLIPTextModel": AltCLIPTextView,
    "GroupViTTextTransformer": UnpackedTextView,
    "Aimv2TextModel": Aimv2TextView,
    "Tipsv2TextModel": Tipsv2TextView,
    **dict.fromkeys(
        (
            "CLIPVisionModel",
            "MetaClip2VisionModel",
            "AltCLIPVisionModel",
            "ChineseCLIPVisionModel",
            "CLIPSegVisionModel",
        ),
        CLIPVisionView,
    ),
    **dict.fromkeys(("OwlViTVisionTransformer", "Owlv2VisionTransformer"), OwlViTVisionView),
    "MLCDVisionModel": MLCDView,
    "Aimv2VisionModel": Aimv2VisionView,
    "Tipsv2VisionModel": Tipsv2VisionView,
    "RadioModel": RadioView,
    "PixioModel": PixioView,
    "SiglipVisionModel": SiglipVisionView,
    "Siglip2VisionModel": Siglip2VisionView,
    "ViTModel": ViTView,
    "SwinModel": SwinView,
    "Swinv2Model": Swinv2View,
    "DeiTModel": DeiTView,
    "ViTMAEModel": MAEView,
    **dict.fromkeys(("Dinov2Model", "Dinov2WithRegistersModel"), DINOView),
    "DINOv3ViTModel": DINOv3View,
    "BeitModel": BeitView,
    "Data2VecVisionModel": Data2VecVisionView,
    "IJepaModel": IJepaView,
    "ViTMSNModel": ViTMSNView,
    "ResNetCLIPVisionModel": ResNetCLIPVisionView,
    "GroupViTVisionTransformer": GroupViTVisionView,
    **dict.fromkeys(("AlignVisionModel", "OpaqueTower"), OpaqueVisionView),
    **dict.fromkeys(("ConvNextModel", "ConvNextV2Model", "DINOv3ConvNextModel"), OpaqueVisionView),
    "TimmWrapperModel": TimmView,
}

#: Class name of a model with two towers -> how their features are compared.
DUAL_ENCODERS: dict[str, type[DualEncoderView]] = {
    **dict.fromkeys(("CLIPModel", "MetaClip2Model", "CLIPSegModel", "OwlViTModel", "Owlv2Model"), DualEncoderView),
    **dict.fromkeys(("SiglipModel", "Siglip2Model"), SiglipDualEncoderView),
    **dict.fromkeys(("ChineseCLIPModel", "AltCLIPModel"), BertDualEncoderView),
    "Tipsv2Model": Tipsv2DualEncoderView,
    "Aimv2Model": Aimv2DualEncoderView,
    "VisionTextDualEncoderModel": AnyTwoDualEncoderView,
    **dict.fromkeys(("ResNetCLIPModel", "OpaqueCLIPModel"), ResNetCLIPDualEncoderView),
    "AlignModel": AlignDualEncoderView,
    "GroupViTModel": GroupViTDualEncoderView,
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
        "IJepaForImageClassification",
        "ViTMSNForImageClassification",
        "CLIPForImageClassification",
        "SiglipForImageClassification",
        "Siglip2ForImageClassification",
        "MetaClip2ForImageClassification",
        "ConvNextForImageClassification",
        "ConvNextV2ForImageClassification",
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
    "IJepaModel",
    "ViTMSNModel",
    "CLIPVisionModel",
    "CLIPVisionModelWithProjection",
    "SiglipVisionModel",
    "Siglip2VisionModel",
    "MetaClip2VisionModel",
    "MetaClip2VisionModelWithProjection",
    "ChineseCLIPVisionModel",
    "AltCLIPVisionModel",
    "CLIPSegVisionModel",
    "MLCDVisionModel",
    "Aimv2VisionModel",
    "Tipsv2VisionModel",
    "RadioModel",
    "PixioModel",
    "ConvNextModel",
    "ConvNextV2Model",
    "DINOv3ConvNextModel",
)


#: Models whose image encoder is opaque: it gives one vector for each image, and nothing can be put into its layers.
OPAQUE = dict.fromkeys(
    (
        "ResNetCLIPModel",
        "OpaqueCLIPModel",
        "AlignModel",
        "GroupViTModel",
        "ConvNextModel",
        "ConvNextForImageClassification",
        "ConvNextV2Model",
        "ConvNextV2ForImageClassification",
        "DINOv3ConvNextModel",
    ),
    OpaqueVisionView.no_layers,
)


#: Other models of transformers around one of those encoders, which take its output as prompts leave it. A model that is not
#: here may read rows by their number, or hidden states with the prompts among them, and is refused.
READERS: tuple[str, ...] = (
    "DeiTForImageClassificationWithTeacher",
    "DeiTForMaskedImageModeling",
    "PaliGemmaForConditionalGeneration",
    "PaliGemmaModel",
    "VisionEncoderDecoderModel",
)


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


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module itself, or the wrapped one where PEFT put a layer around it."""
    while isinstance(getattr(module, "base_layer", None), nn.Module):
        module = module.base_layer
    return module


def class_name(module: nn.Module) -> str:
    """Return the name by which the tables know the class of a module, or of the one that PEFT wrapped.

    For a subclass it is the name of its first base class in a table; for a class that no table knows, its own name.
    """
    names = [base.__name__ for base in type(unwrapped(module)).__mro__]
    tables = (ENCODER_VIEWS, DUAL_ENCODERS, HEADS, ENCODERS, UNSUPPORTED)
    return next((name for name in names if any(name in table for table in tables)), names[0])


def view(module: nn.Module) -> EncoderView:
    """Return the view of an encoder module; an image encoder of transformers that no table knows is opaque.

    Raises:
        KeyError: there is none for its class.
    """
    module = unwrapped(module)
    name = type(module).__name__  # the common case, which a compiler follows
    name = name if name in ENCODER_VIEWS else class_name(module)
    if name not in ENCODER_VIEWS and getattr(module, "main_input_name", None) == "pixel_values":
        return OpaqueVisionView(module)
    return ENCODER_VIEWS[name].of(module)


def dual_encoder_view(model: nn.Module) -> DualEncoderView | None:
    """Return the view of the module that joins both towers, `model` or one inside it; None where there is none."""
    for module in model.modules():
        if (name := class_name(module)) in DUAL_ENCODERS:
            return DUAL_ENCODERS[name](unwrapped(module))
    return None


def is_dual_encoder(model_or_config: nn.Module | PretrainedConfig) -> bool:
    """Tell whether a model compares images with texts; it may be wrapped, or given by its config.

    A saved classifier of a dual encoder's image encoder has the same config, but for its `architectures`.
    """
    if isinstance(model_or_config, nn.Module):
        return dual_encoder_view(model_or_config) is not None
    config = model_or_config
    classifier = any(name.endswith("ForImageClassification") for name in config.architectures or ())
    return hasattr(config, "text_config") and hasattr(config, "vision_config") and not classifier


def unknown_reader(model: nn.Module, backbone: Backbone) -> str | None:
    """Return the class of a model of transformers that reads the image encoder and is in none of the tables.

    A class that somebody else wrote is theirs to answer for.
    """
    path = backbone.vision.split(".")
    for parent in (model.get_submodule(".".join(path[:length])) for length in range(len(path))):
        known = class_name(parent) in {*DUAL_ENCODERS, *HEADS, *ENCODERS, *ENCODER_VIEWS}
        classes = type(unwrapped(parent)).__mro__
        theirs = [c for c in classes if c.__module__.startswith("transformers.models.") and "forward" in vars(c)]
        if theirs and not known and not any(c.__name__ in READERS for c in classes):
            return theirs[0].__name__
    return None


def require_known_towers(model: nn.Module, backbone: Backbone) -> None:
    """Refuse a model that joins an encoder that nothing is known of.

    Raises:
        UnsupportedModelError: names the encoder and those that are known.
    """
    for tower, kind in ((backbone.vision, VisionView), (backbone.text, TextView)):
        module = model.get_submodule(tower)
        module = unwrapped(getattr(module, "original_module", module))  # that of a copy that PEFT trains
        try:
            known = isinstance(view(module), kind)
        except KeyError:
            known = False
        if not known:
            able = [name for name, of in ENCODER_VIEWS.items() if issubclass(of, kind)]
            raise UnsupportedModelError(
                f"Cannot put prompts into {type(model).__name__}: nothing is known of its encoder {type(module).__name__}. "
                f"Known are: {', '.join(able)}."
            )


def supported_models() -> list[str]:
    """List the model classes that can be prompted."""
    return sorted([*DUAL_ENCODERS, *HEADS, *ENCODERS])


def find_backbone(model: nn.Module) -> Backbone:
    """Find the towers of `model`, which may be wrapped (a PEFT model with LoRA, say).

    Raises:
        UnsupportedModelError: names the class received and the classes supported.
    """
    classes = {name: class_name(m) for name, m in model.named_modules() if "base_layer" not in name.split(".")}
    # A BERT beside an image encoder is another model's decoder, say, and takes no part.
    towers = [
        n for n, cls in classes.items() if cls in ENCODER_VIEWS and not issubclass(ENCODER_VIEWS[cls], BertTextView)
    ]
    duals = [name for name, cls in classes.items() if cls in DUAL_ENCODERS]
    found = duals[:1] or (towers if len(towers) == 1 else [])
    for name, cls in classes.items():  # one beside what was found is none of ours
        if cls in UNSUPPORTED and (not found or f"{found[0]}.".startswith(f"{name}." if name else "")):
            raise UnsupportedModelError(f"Cannot put prompts into {cls}: {UNSUPPORTED[cls]}.")
    if duals:
        dual = DUAL_ENCODERS[classes[duals[0]]]
        prefix = f"{duals[0]}." if duals[0] else ""
        backbone = Backbone(vision=prefix + dual.vision, text=prefix + dual.text, dual=duals[0])
        require_known_towers(model, backbone)
        return backbone
    if len(towers) != 1 or not issubclass(ENCODER_VIEWS[classes[towers[0]]], VisionView):
        raise UnsupportedModelError(
            f"Cannot put prompts into {type(model).__name__}. Supported models: {', '.join(supported_models())}."
        )
    heads = [f"{name}.{HEADS[cls]}".lstrip(".") for name, cls in classes.items() if cls in HEADS]
    return Backbone(vision=towers[0], head=heads[0] if heads else None)
