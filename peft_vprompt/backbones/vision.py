"""`VisionView`: what prompts need to know of an image encoder.

Shapes: b = batch, s = rows, r = some of them, c = channels, h, w = rows and columns of a grid, d = width.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..core.insertion import InsertionRule, insert_prompts
from ..core.layer_loop import OutputRows, encode
from ..utils.tensors import require_dense
from .base import EncoderView


class VisionView(EncoderView):
    """An image encoder.

    Attributes:
        num_prefix_tokens: rows in front of the patches (class token, distillation token, registers).
        prompts_first: True where prompts stand right after those, False where they follow the patches.
        keeps_prompts: whether the prompts' rows stay in `last_hidden_state`. Where they do not, the model's own
            pooling and head see the rows they were made for, and no mean over patches contains a prompt.
        fixed_size: whether images of another size need `interpolate_pos_encoding`.
        resizes_positions: whether the encoder takes that.
        embed_options: further keyword arguments of a call that `embed` and `layer_options` understand.
        pooled_rows: the rows that `pool` needs of the last layer, in a tower with `layer_parts`; None for all.
        head_rows: likewise the rows that a classification head reads; None where all may be.
        gives_attentions: whether attention weights can be had from the layers when there are prompts.
        pixel_mean, pixel_std: how the encoder's images are normalised, for prompts that are pixels from 0 to 1.
        no_read_only: why prompts cannot read this encoder without being read; None where they can.
        no_layers: why neither prompts nor anything else can be put into its layers; None where they can.
    """

    num_prefix_tokens: int = 1
    prompts_first: bool
    keeps_prompts: bool = False
    fixed_size: bool = True
    resizes_positions: bool = True
    embed_options: tuple[str, ...] = ()
    pooled_rows: slice | None = None
    head_rows: slice | None = None
    gives_attentions: bool = True
    pixel_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN
    pixel_std: Sequence[float] = IMAGENET_DEFAULT_STD
    no_read_only: str | None = None
    no_layers: str | None = None

    @property
    def patch_size(self) -> int:
        """Edge of a patch in pixels."""
        return pair(self.module.config.patch_size)[0]

    @property
    def num_channels(self) -> int:
        """Channels of an image."""
        return self.module.config.num_channels

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width the position embeddings are made for."""
        return pair(self.module.config.image_size)

    @abstractmethod
    def embed(self, pixel_values: Tensor, **kwargs) -> Tensor:
        """Make special tokens (class, distillation, registers) and patches with positions, [b, s, d].

        A call of the model hands on keywords that are not for the embeddings (the Trainer's `num_items_in_batch`,
        say); they are ignored.
        """

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches in an image of `image_size`."""
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size

    @property
    @abstractmethod
    def patch_embedding(self) -> nn.Module | None:
        """The convolution that makes patches into tokens, for prompts that are pixels.

        None where `embed_grid` has no meaning; such prompts are refused there.
        """

    @property
    def patch_stride(self) -> tuple[int, int]:
        """Distances in pixels between the patches that `patch_embedding` reads."""
        return self.patch_size, self.patch_size

    @property
    def patch_padding(self) -> tuple[int, int]:
        """Pixels that it adds around the image."""
        return 0, 0

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Make what `embed_grid` does of images [b, c, h, w] that prompts made larger."""
        convolution: Any = self.patch_embedding
        return self.embed_grid(convolution(pixels.to(convolution.weight.dtype)))

    @abstractmethod
    def embed_grid(self, grid: Tensor) -> Tensor:
        """Make class token and patches with positions [b, 1 + h * w, d] of embedded patches `grid` [b, d, h, w].

        Positions are resized to the grid, see `resize_positions`.
        """

    @property
    def num_tokens(self) -> int | None:
        """Special tokens and patches of an image of `image_size`; None where images differ in shape."""
        return self.num_prefix_tokens + math.prod(self.grid_size)

    def layer_options(self, pixel_values: Tensor, **kwargs) -> dict:
        """Return the options of `layer_arguments` that belong to the images at hand: rotations, shapes, masks."""
        return {}

    def attach(self) -> None:
        """Make the layers ready for rows that the model itself does not have. Does nothing the second time."""

    def detach(self) -> None:
        """Undo `attach`."""

    @property
    def num_head_rows(self) -> int | None:
        """Rows in which a classification head finds its class token and one patch; None: as many as it always has."""
        return self.num_prefix_tokens + 1

    @property
    def stages(self) -> list[tuple[int, int]]:
        """Layers and width of each stage; one stage where the width never changes."""
        return [(self.num_layers, self.width)]

    def prepare(self, hidden: Tensor) -> Tensor:
        """Do what the model does between embedding (prompts included) and the first layer; keeps the shape [b, s, d]."""
        return hidden

    def encode(
        self,
        hidden: Tensor,
        prompts: Tensor | Sequence[Tensor] | None,
        rule: InsertionRule | None,
        first_layer: int = 0,
        states: list[Tensor] | None = None,
        output_rows: OutputRows | None = None,
        **layer_options,
    ) -> Tensor:
        """Run image tokens [b, s, d] and prompts through the layers; the arguments are those of `layer_loop.encode`."""
        if first_layer == 0 and not (rule is not None and rule.in_layer):
            hidden = insert_prompts(hidden, prompts, rule, 0)
        return encode(self, self.prepare(hidden), prompts, rule, first_layer, states, output_rows, **layer_options)

    @abstractmethod
    def finish(self, hidden: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Make the model's output of the last layer's [b, s, d]: final norm, pooling.

        `kwargs` are the call's `embed_options`.
        """

    def pool(self, hidden: Tensor) -> Tensor:
        """Reduce what `pooled_rows` leave of the last layer, [b, r, d], to the image's feature [b, d]."""
        return self.finish(hidden).pooler_output  # pyrefly: ignore[bad-return]  # only towers that pool are asked

    @abstractmethod
    def final_norm(self, hidden: Tensor) -> Tensor:
        """Normalise tokens [..., d] that are read out at the end."""

    def summarize(self, tokens: Tensor) -> Tensor:
        """Return the feature [b, d] of the normalised tokens [b, s, d], in a model that pools none: the class token."""
        return tokens[:, 0]

    def pooled_output(self, feature: Tensor) -> Tensor:
        """Return the pooled output [b, d] for a feature [b, d] that is read out in the place of the class token."""
        return feature

    def check_images(self, pixel_values: Any, interpolate_pos_encoding: bool | None) -> None:
        """Refuse what is no batch of images, or of images the position embeddings do not fit.

        Raises:
            TypeError: `pixel_values` are no tensor, or one of whole numbers: pixels that nobody has normalised; or an
                `interpolate_pos_encoding` that the encoder does not take.
            ValueError: the shape does not fit, or there is no image.
        """
        if interpolate_pos_encoding and not self.resizes_positions:
            raise TypeError(
                f"{type(self.module).__name__} does not take interpolate_pos_encoding. Leave it out, and resize the images with "
                "the model's image processor."
            )
        if not isinstance(pixel_values, Tensor) or not pixel_values.is_floating_point():
            received = pixel_values.dtype if isinstance(pixel_values, Tensor) else type(pixel_values).__name__
            raise TypeError(
                "Expected pixel_values as a tensor of normalised pixels, as the model's image processor gives it with "
                f"return_tensors='pt'. Received: {received}."
            )
        require_dense(pixel_values, "pixel_values")
        if pixel_values.is_meta and not next(self.module.parameters()).is_meta:
            raise TypeError("Expected pixel_values with values. Received: a tensor on the device meta.")
        shape = list(pixel_values.shape)
        channels = self.num_channels
        if self.num_tokens is not None and (len(shape) != 4 or shape[1] != channels):
            raise ValueError(
                f"Expected pixel_values [batch, channels, height, width] with {channels} channels. Received: "
                f"pixel_values of shape {shape}. Stack single images into a batch, and make grey ones RGB (Pillow's "
                "image.convert('RGB'))."
            )
        if not shape[0]:
            raise ValueError(f"Expected at least one image. Received: pixel_values of shape {shape}.")
        size = tuple(shape[-2:])
        if self.fixed_size and size != self.image_size and not interpolate_pos_encoding:
            other = ", or pass interpolate_pos_encoding=True" if self.resizes_positions else ""
            raise ValueError(
                f"Expected images of {self.image_size[0]}x{self.image_size[1]} pixels. Received: pixel_values of shape "
                f"{shape}. Resize them with the model's image processor{other}."
            )


def pair(size: int | Iterable[int]) -> tuple[int, int]:
    """Return height and width, also where a config gives one number for both."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def resize_positions(positions: Tensor, size: tuple[int, ...], original: tuple[int, int], prefix: int = 1) -> Tensor:
    """Resize position embeddings [1, prefix + patches, d] from the grid `original` to `size`.

    Only those of the patches change: bilinear, corners aligned, as VPT's authors do for images with a border; `interpolate_pos_encoding` of transformers
    (bicubic) is another thing.
    """
    if size == original:
        return positions
    grid = positions[:, prefix:].unflatten(1, original).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=size, mode="bilinear", align_corners=True)
    return torch.cat([positions[:, :prefix], grid.flatten(2).transpose(1, 2)], dim=1)
