"""Where an image encoder looks: the attention of visual prompts or of its output over the patches of an image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..backbones.supported import find_backbone
from ..backbones.supported import view as view_of
from ..core.attention import kept_weights
from ..errors import UnsupportedModelError
from ..tuners.base.prompted_vision_encoder import PromptedVisionEncoder
from ..utils.plotting import saved_figure


#: Prompts that get a picture of their own.
MOST_PROMPTS = 6


class AttentionMaps(NamedTuple):
    """Attention of visual prompts over one image.

    Attributes:
        image: what the model sees, in [0, 1]: [height, width, 3].
        maps: for each prompt of the last layer that has some, the mean over heads: [prompts, rows, columns] of patches. Each
            prompt's is a share of all that it attends to.
    """

    image: np.ndarray
    maps: np.ndarray


@torch.no_grad()
def attention_maps(model: Any, pixel_values: Tensor) -> AttentionMaps:
    """Return the attention of the active adapter's visual prompts over an image, in the last layer that has prompts.

    Args:
        model: a PEFT model of this package.
        pixel_values: one image as the model takes it, [1, 3, height, width].

    Raises:
        UnsupportedModelError: there are no visual prompts, these are no tokens, or the encoder has no attention over the
            patches of the whole image.
    """
    model.eval()
    vision = next((each for each in model.modules() if isinstance(each, PromptedVisionEncoder)), None)
    prompts: Any = None if vision is None else vision.active_prompts
    vectors = None if prompts is None else vision.prompt_vectors(model.active_adapter, 1)  # pyrefly: ignore
    if vision is None or vectors is None or len(vectors) == 0:
        raise UnsupportedModelError(
            "Expected an adapter with visual prompts to show their attention. Received one that puts no tokens into the "
            "image encoder. Leave the image out."
        )
    view: Any = vision.view
    if not view.gives_attentions:
        raise UnsupportedModelError(
            f"Expected an image encoder whose tokens attend to the whole image. Received: {type(vision.base_layer).__name__}, "
            "whose windows are turned and cut. Leave the image out."
        )
    count = vectors[-1].shape[-2]
    if prompts.read_only:
        with kept_weights() as weights:
            vision.encode_read_only(pixel_values, [model.active_adapter])
        looked = [each for each in weights if each.shape[-2] == count][-1:]
        to_patches = [each[:, :, :, view.num_prefix_tokens :] for each in looked]
    else:
        to_patches = _of_tokens(vision, view, prompts, count, pixel_values)
    grid = _grid(view, pixel_values)
    if not to_patches or to_patches[0].shape[-1] < math.prod(grid):
        raise UnsupportedModelError(
            "Expected prompts that are tokens of their own, with attention over patches. Received prompts that are added to "
            "the image or its tokens, or an encoder that shows no attention. Leave the image out."
        )
    maps = to_patches[0][0, :, :, : math.prod(grid)].mean(0).unflatten(-1, grid)
    return AttentionMaps(_seen(view, pixel_values), maps.float().cpu().numpy())


@torch.no_grad()
def output_attention(model: Any, inputs: Mapping[str, Tensor]) -> AttentionMaps:
    """Return what the image feature attends to in an image, in the last layer: one map, whatever the adapter is.

    It is the class token's attention. Of an encoder without such a token it is the mean of all patches' attention. What
    prompts get is left out of the map.

    Args:
        model: a PEFT model of this package.
        inputs: what the model takes of one image.

    Raises:
        UnsupportedModelError: the encoder has no attention over the patches of the whole image, or prompts change the image.
    """
    model.eval()
    base = model.get_base_model()
    tower: Any = base.get_submodule(find_backbone(base).vision)
    encoder: Any = view_of(tower)
    pixel_values = inputs["pixel_values"]
    if encoder.no_layers or not encoder.gives_attentions or pixel_values.ndim != 4:
        raise UnsupportedModelError(
            "Expected an image encoder whose tokens attend to the patches of a whole image of fixed size. Received: "
            f"{type(encoder.module).__name__}, which has none to show."
        )
    with _eager(encoder.module):
        last = tower(**inputs, output_attentions=True).attentions[-1][0].mean(0)
    grid = _grid(encoder, pixel_values)
    patches = _rows_of_tokens(tower, encoder, pixel_values, last.shape[-1])[encoder.num_prefix_tokens :]
    if len(patches) != math.prod(grid):
        raise UnsupportedModelError(
            "Expected an adapter that leaves the image as it is. Received prompts that are pixels around it, so that patches "
            "are not those of the image."
        )
    readers = last[:1] if encoder.num_prefix_tokens else last[patches]
    shares = readers.mean(0)[patches].unflatten(0, grid)
    return AttentionMaps(_seen(encoder, pixel_values), shares[None].float().cpu().numpy())


def _rows_of_tokens(tower: Any, encoder: Any, pixel_values: Tensor, rows: int) -> list[int]:
    """Return those of the last layer's rows that are no prompts."""
    prompts = tower.active_prompts if isinstance(tower, PromptedVisionEncoder) else None
    length = encoder.num_prefix_tokens + math.prod(_grid(encoder, pixel_values))
    if prompts is None or prompts.read_only or rows <= length:
        return list(range(rows))
    inserted = prompts.insertion_rule(encoder, length).prompt_rows(rows - length)
    return [row for row in range(rows) if not inserted.start <= row < inserted.stop]


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    """Compute attention in the one way that gives weights, while the block runs."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _seen(view: Any, pixel_values: Tensor) -> np.ndarray:
    """Return what the encoder sees of the first image, in [0, 1]: [height, width, 3]."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (view.pixel_mean, view.pixel_std))
    return (pixel_values[0].float().cpu() * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()


def _of_tokens(
    vision: PromptedVisionEncoder, view: Any, prompts: Any, count: int, pixel_values: Tensor
) -> list[Tensor]:
    """Return the weights [b, h, n, patches] of prompts among the tokens; none where they are no rows of their own."""
    length = view.num_prefix_tokens + math.prod(_grid(view, pixel_values))
    rows = prompts.insertion_rule(view, length).prompt_rows(count)
    if rows.stop == rows.start:
        return []
    with _eager(view.module):
        attentions = vision(pixel_values, output_attentions=True).attentions
    with_prompts = [each for each in attentions or () if each is not None and each.shape[-1] == length + count]
    plain = _rows_of_tokens(vision, view, pixel_values, length + count)[view.num_prefix_tokens :]
    return [each[:, :, rows][..., plain] for each in with_prompts[-1:]]


def _grid(view: Any, pixel_values: Tensor) -> tuple[int, int]:
    """Return rows and columns of patches of an image."""
    height, width = pixel_values.shape[-2:]
    return height // view.patch_size, width // view.patch_size


def plot_attention(found: AttentionMaps, path: str | Path, title: str = "") -> None:
    """Draw the image, the mean of all prompts over it, and each of the first prompts, and write them as PNG."""
    height, width = found.image.shape[:2]
    shown = found.maps[:MOST_PROMPTS]
    panels = [(title or "image", None), (f"mean of {len(found.maps)}", found.maps.mean(0))]
    panels += [(f"prompt {place + 1}", each) for place, each in enumerate(shown)]
    with saved_figure(path, len(panels), (2.3 * len(panels), 2.7)) as axes:
        for panel, (name, values) in zip(axes, panels, strict=True):
            panel.imshow(found.image, extent=(0, width, height, 0))
            if values is not None:
                drawn = panel.imshow(values, extent=(0, width, height, 0), cmap="magma", alpha=0.6)
                drawn.set_clim(values.min(), values.max() or 1)
            panel.set_title(name, fontsize=9)
            panel.set_axis_off()
