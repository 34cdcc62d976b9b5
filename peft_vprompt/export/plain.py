"""A plain model of transformers in the place of an adapter: merged weights, and static class features as a matrix.

Possible where the image side has no prompts and class features do not depend on the image.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..backbones.supported import class_name
from ..errors import UnsupportedModelError
from ..readouts import CosineReadout
from ..tuners.base.classifier import text_classifier
from .classifier import Classifier


#: Dual encoders whose image side transformers has as a model of its own -> that model's class.
TOWERS = {
    "CLIPModel": "CLIPVisionModelWithProjection",
    "MetaClip2Model": "MetaClip2VisionModelWithProjection",
    "SiglipModel": "SiglipVisionModel",
}

#: File of the class features, their scale and their bias.
CLASSES = "classes.safetensors"

_REMEDY = "Export it with --format onnx (format='onnx'), which takes every method."


def save_plain(classifier: Classifier, folder: Path, bf16: bool = False) -> str:
    """Write a plain model; return the kind of what was written, as `standalone.LOADERS` knows it.

    Raises:
        UnsupportedModelError: the adapter is no change of weights and of class features alone; says why, and what to do.
    """
    model = classifier.model
    dtype = torch.bfloat16 if bf16 else torch.float32
    known = text_classifier(model)
    if known is None:
        plain = _merged(model, of_head=True)
        _require_own_parts(plain)
        plain.config.id2label = dict(enumerate(classifier.class_names))
        plain.config.label2id = {name: label for label, name in enumerate(classifier.class_names)}
        plain.to(dtype).save_pretrained(folder)
        return "classifier"
    if reason := why_not_plain(classifier):
        raise UnsupportedModelError(f"Cannot make a plain model of this adapter: {reason}. {_REMEDY}")
    save_file(class_matrix(known), folder / CLASSES)
    _image_tower(_merged(model, of_head=False)).to(dtype).save_pretrained(folder)
    return "image-encoder"


def why_not_plain(classifier: Classifier) -> str | None:
    """Return why an adapter on class names cannot become a plain image encoder and a matrix; None where it can."""
    known = classifier.model.class_name_classifier
    adapted = known.adapted
    base = class_name(adapted.tuner.model)
    if base not in TOWERS:
        return f"transformers has no class of its own for the image side of {base}"
    if adapted.vision.active_prompts is not None:
        return "its image side has prompts, which are no weights of a plain model"
    if known.texts.conditional:
        return "its class features depend on the image"
    size = adapted.dual.feature_dim
    one = torch.zeros(1, size, dtype=adapted.dual.dtype, device=adapted.dual.device)
    if adapted.method.added_logits(adapted.config, adapted.readout, one) is not None:
        return "it adds what a cache of images says to the cosines with class features"
    return None


@torch.no_grad()
def class_matrix(known: Any) -> dict[str, Tensor]:
    """Return the class features [c, e] of a `ClassNameClassifier`, their scale and their bias."""
    features = known.encode_classes().float().cpu().contiguous()
    zero, one = known.scaled_by_method(torch.tensor([0.0, 1.0], device=known.adapted.dual.device)).float().cpu()
    return {"class_features": features, "logit_scale": one - zero, "logit_bias": zero.clone()}


def _merged(model: Any, of_head: bool) -> PreTrainedModel:
    """Return the base model with what the adapter changed of its weights; the model given stays as it is."""
    copied = copy.deepcopy(model)
    try:
        if of_head:
            return copied.merge_and_unload()
        adapted = copied.class_name_classifier.adapted
        if not adapted.image_layers():
            return copied.unload()
        if hasattr(adapted.tuner, "put_readout"):  # rows for the classes are in the matrix
            adapted.tuner.put_readout(adapted.adapter_name, CosineReadout())
        return copied.merge_and_unload()
    except (ValueError, NotImplementedError, AttributeError) as error:
        raise UnsupportedModelError(
            f"Cannot make a plain model of this adapter: {str(error).split('. ')[0]}. {_REMEDY}"
        ) from error


def _require_own_parts(plain: PreTrainedModel) -> None:
    """Refuse a classifier with parts that its class does not make, such as a head of several layers."""
    with torch.device("meta"):
        own = type(plain)(plain.config)
    if own.state_dict().keys() != plain.state_dict().keys():
        raise UnsupportedModelError(
            f"Cannot make a plain model of this adapter: {type(plain).__name__} has no place for what it learned. {_REMEDY}"
        )


def _image_tower(base: nn.Module) -> PreTrainedModel:
    """Return the image side of a dual encoder, with its projection, as a model of its own."""
    whole: Any = base
    config = copy.deepcopy(whole.config.vision_config)
    projection = getattr(whole, "visual_projection", None)
    if projection is not None:
        config.projection_dim = whole.config.projection_dim
    tower = getattr(transformers, TOWERS[class_name(base)])(config)
    if projection is not None:
        tower.visual_projection.load_state_dict(projection.state_dict())
    inner = getattr(tower, "vision_model", tower)
    inner.load_state_dict(whole.vision_model.state_dict())
    return tower.eval()
