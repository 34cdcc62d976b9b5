"""Prompts that are pixels: patches of their own, a border, or further channels of the image.

Source: VPT, section 4.3 ("prompt location") and appendix; KMnP/vpt `src/models/vit_prompt/vit_ablations.py`. They
belong to the first layer only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.vision import VisionView
from ..core.offloading import tensor_of
from .base import PromptModule, placed_like
from .visual import vpt_bound


class PixelPrompts(PromptModule):
    """What the prompts made of pixels share.

    Args:
        view: the view of the image encoder.
        **options: as for `PromptModule`.
    """

    def __init__(self, view: VisionView, **options):
        super().__init__(**options)
        self.factory = placed_like(view)
        self.bound = vpt_bound(view.patch_size, view.width)
        self.image_channels = view.num_channels

    def uniform(self, *shape: int, low: float, high: float) -> nn.Parameter:
        """Return a parameter that starts as U(low, high)."""
        return nn.Parameter(torch.empty(*shape, **self.factory).uniform_(low, high))

    def forward(self, **inputs) -> Tensor | None:
        """Return None: no token is added."""
        return None


class PixelStrip(PixelPrompts):
    """n patches of learned pixels: `pixels` [1, channels, P, n * P], embedded like the image's, without positions.

    `start` is "uniform" (U(-v, v), see `vpt_bound`), "gaussian" (N(0, 1)) or "imgnettransform" (U(0, 1), normalised
    like the tower's images in every forward).
    """

    def __init__(self, view: VisionView, num_tokens: int, start: str, **options):
        super().__init__(view, **options)
        shape = (1, self.image_channels, view.patch_size, num_tokens * view.patch_size)
        low, high = (0.0, 1.0) if start == "imgnettransform" else (-self.bound, self.bound)
        self.pixels = self.uniform(*shape, low=low, high=high)
        if start == "gaussian":
            nn.init.normal_(self.pixels)
        self.normalized = start == "imgnettransform"

    def forward(self, *, view: VisionView, **inputs) -> Tensor:
        """Return the patches as tokens of the image view, [1, n, d]."""
        pixels = normalize(self.pixels, view) if self.normalized else self.pixels
        return embed_patches(view, pixels).flatten(2).transpose(1, 2)


class PixelBorder(PixelPrompts):
    """A border of p learned pixels: `left_right` [1, channels, H, 2p], then `top_bottom` [1, channels, 2p, W + 2p].

    They start as U(0, 1) and are normalised like the tower's images in every forward.
    """

    def __init__(self, view: VisionView, width: int, **options):
        super().__init__(view, **options)
        height, length = view.image_size
        self.width = width
        channels = self.image_channels
        self.left_right = self.uniform(1, channels, height, 2 * width, low=0.0, high=1.0)
        self.top_bottom = self.uniform(1, channels, 2 * width, length + 2 * width, low=0.0, high=1.0)

    def embed(self, view: VisionView, pixel_values: Tensor, **options) -> Tensor:
        """Return the tokens of the larger image."""
        refuse_options(options)
        refuse_size(pixel_values, self.left_right.shape[-2])
        sides = normalize(self.left_right, view).to(pixel_values.dtype).expand(pixel_values.shape[0], -1, -1, -1)
        ends = normalize(self.top_bottom, view).to(pixel_values.dtype).expand(pixel_values.shape[0], -1, -1, -1)
        p = self.width
        framed = torch.cat([sides[..., :p], pixel_values, sides[..., p:]], dim=-1)
        framed = torch.cat([ends[..., :p, :], framed, ends[..., p:, :]], dim=-2)
        return view.embed_pixels(framed)


class PixelChannels(PixelPrompts):
    """n learned channels after the image's: `pixels` [1, n, H, W].

    The whole patch embedding is trained: `patch_weight` [d, channels + n, P, P] and `patch_bias` [d] start from the
    tower's, the weights of new channels as U(-v, v) like the pixels.
    """

    def __init__(self, view: VisionView, num_channels: int, **options):
        super().__init__(view, **options)
        bounds = {"low": -self.bound, "high": self.bound}
        self.pixels = self.uniform(1, num_channels, *view.image_size, **bounds)
        convolution = convolution_of(view)
        weight = tensor_of(convolution, "weight").detach()
        extra = torch.empty(weight.shape[0], num_channels, *weight.shape[2:], **self.factory).uniform_(
            -self.bound, self.bound
        )
        self.patch_weight = nn.Parameter(torch.cat([weight, extra], dim=1))
        self.patch_bias = (
            None if convolution.bias is None else nn.Parameter(tensor_of(convolution, "bias").detach().clone())
        )

    def embed(self, view: VisionView, pixel_values: Tensor, **options) -> Tensor:
        """Return the tokens of the image with all channels."""
        refuse_options(options)
        refuse_size(pixel_values, self.pixels.shape[-2])
        dtype = convolution_of(view).weight.dtype  # prompts are kept in float32, also where the encoder is not
        pixels = self.pixels.expand(pixel_values.shape[0], -1, -1, -1)
        image = torch.cat([pixel_values.to(dtype), pixels.to(dtype)], dim=1)
        bias = None if self.patch_bias is None else self.patch_bias.to(dtype)
        grid = F.conv2d(image, self.patch_weight.to(dtype), bias, view.patch_stride, view.patch_padding)
        return view.embed_grid(grid)


def convolution_of(view: VisionView) -> nn.Module:
    """Return what makes patches into tokens; VPT refuses encoders without it."""
    return view.patch_embedding


def embed_patches(view: VisionView, pixels: Tensor) -> Tensor:
    """Return the patches of `pixels` [b, channels, H, W] as tokens in a grid, [b, d, h, w]."""
    convolution = convolution_of(view)
    return convolution(pixels.to(convolution.weight.dtype))


def normalize(pixels: Tensor, view: VisionView) -> Tensor:
    """Return pixels from 0 to 1, normalised like the images of `view`."""
    mean, std = (pixels.new_tensor(values).view(-1, 1, 1) for values in (view.pixel_mean, view.pixel_std))
    return (pixels - mean) / std


def refuse_size(pixel_values: Tensor, height: int) -> None:
    """Refuse images of another size than the pixels were made for, where the encoder itself takes any.

    Raises:
        ValueError: names both sizes.
    """
    if pixel_values.shape[-2] != height:
        raise ValueError(
            f"Expected images of {height} pixels, which these prompts were made for. Received: pixel_values of shape "
            f"{list(pixel_values.shape)}. Resize them with the model's image processor."
        )


def refuse_options(options: dict) -> None:
    """Refuse calls that prompts of a fixed size in pixels cannot answer.

    Raises:
        ValueError: names the options that were given.
    """
    given = [name for name, value in options.items() if value is not None and value is not False]
    if given:
        raise ValueError(
            f"Prompts made of pixels fit images of one size, and all of them are seen. Received: {', '.join(given)}. "
            "Leave it out, or use location='prepend'."
        )
