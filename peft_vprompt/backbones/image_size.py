"""Images of another size than a model was trained with: position embeddings that are interpolated once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from ..utils.validation import require_int
from .supported import find_backbone, view
from .vision import VisionView


#: Largest edge of images in pixels.
MAX_IMAGE_SIZE = 16_384

#: Positions may take as many numbers as the model has, and these beside.
SPARE_NUMBERS = 2**22


@torch.no_grad()
def set_image_size(model: PreTrainedModel, size: int) -> None:
    """Let a model take square images of another size, in place.

    Positions become those that the model's own `interpolate_pos_encoding` (bicubic) gives images of that size, so that no
    call has to ask for them, and prompts of pixels fit them.

    Args:
        model: the base model.
        size: edge in pixels, a multiple of the patch's.

    Raises:
        ValueError: a size that is no multiple of the patch's edge, or that would need more positions than the model has
            parameters.
        UnsupportedModelError: positions that cannot be interpolated, or images of any shape.
    """
    tower: Any = view(model.get_submodule(find_backbone(model).vision))
    if tower.num_tokens is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} takes images of any shape, in patches, so there is no image size to set. Leave it out."
        )
    if tower.no_layers:
        raise UnsupportedModelError(
            f"Expected no image size for {type(tower.module).__name__}, whose inside is not looked at. Received: {size}. Leave it "
            "out, or resize the positions in the model itself, if it has some."
        )
    require_int("image_size", size, 1, MAX_IMAGE_SIZE)
    patch = tower.patch_size
    if size < patch or size % patch:
        nearest = max(1, round(size / patch)) * patch
        raise ValueError(
            f"Expected an image size that is a multiple of the patch size {patch}. Received: {size}. The nearest is "
            f"{nearest}."
        )
    if tower.image_size == (size, size):
        return
    embeddings: Any = tower.module.embeddings
    interpolates = hasattr(embeddings, "interpolate_pos_encoding")
    if tower.fixed_size or (interpolates and getattr(embeddings, "position_embeddings", None) is not None):
        numbers = (size // patch) ** 2 * tower.width
        most = sum(parameter.numel() for parameter in model.parameters()) + SPARE_NUMBERS
        if numbers > most:
            raise ValueError(
                f"Expected an image size whose positions take at most {most:,} numbers, about as many as the whole model. "
                f"Received: image_size={size}, which takes {numbers:,}. Use a smaller one."
            )
        _interpolate(tower, size)
    else:
        _set_sizes([tower.module.config], {"image_size": size})  # what prompts of pixels are made for


def _interpolate(tower: VisionView, size: int) -> None:
    """Put the interpolated positions into the embeddings, and the new sizes beside them."""
    embeddings: Any = tower.module.embeddings
    if not hasattr(embeddings, "interpolate_pos_encoding"):
        raise UnsupportedModelError(
            f"The positions of {type(tower.module).__name__} cannot be interpolated, so it takes images of "
            f"{tower.image_size[0]} pixels only. Leave the image size out, or use a model such as CLIP, SigLIP, ViT or DINOv2."
        )
    patches = (size // tower.patch_size) ** 2
    rows = patches + tower.num_prefix_tokens
    old = getattr(embeddings, "position_embedding", None)
    reference = embeddings.position_embeddings if old is None else old.weight
    tokens = reference.new_zeros(1, rows, reference.shape[-1])
    positions = embeddings.interpolate_pos_encoding(tokens, size, size).detach().clone()
    if old is None:
        embeddings.position_embeddings = nn.Parameter(positions, requires_grad=reference.requires_grad)
    else:
        embeddings.position_embedding = nn.Embedding.from_pretrained(positions[0], freeze=not reference.requires_grad)
        embeddings.position_ids = torch.arange(rows, device=reference.device).expand(1, -1)
    new = {"image_size": size, "num_patches": patches, "num_positions": rows}
    _set_sizes([embeddings, getattr(embeddings, "patch_embeddings", None), tower.module.config], new)


def _set_sizes(parts: Iterable[Any], new: Mapping[str, int]) -> None:
    for part in parts:
        for name, value in new.items():
            if hasattr(part, name):
                pair = name == "image_size" and isinstance(getattr(part, name), (tuple, list))
                setattr(part, name, (value, value) if pair else value)
