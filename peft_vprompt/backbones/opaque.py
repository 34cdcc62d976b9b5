"""Image encoders whose inside is not looked at: they give one vector for each image, and take no tokens.

Methods on the side of the texts, readouts and cached features need no more. Prompts that are pixels work, too: a border
makes the image larger, and further channels enter by the first convolution.

Shapes: b = images, c = channels, h, w = height and width, e = size of the feature.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .vision import VisionView, pair


class OpaqueVisionView(VisionView):
    """Any image encoder whose output has a `pooler_output` [b, e]; its "tokens" are the pixels."""

    num_prefix_tokens = 0
    prompts_first = True
    keeps_prompts = True
    no_layers: str = "gives one vector for each image, and shows no layers whose tokens a prompt could stand beside"
    no_read_only = "it shows no layers whose tokens they could read"

    @property
    def layers(self) -> Sequence[nn.Module]:
        """None that are known."""
        return ()

    @property
    def reference_weight(self) -> Tensor:
        """The first weight of floating-point numbers."""
        return next(parameter for parameter in self.module.parameters() if parameter.is_floating_point())

    @property
    def width(self) -> int:
        """Channels that leave the first convolution, for the first values of pixels."""
        convolution = self.patch_embedding
        return 1 if convolution is None else convolution.out_channels

    @property
    def patch_size(self) -> int:
        """Edge of the first convolution's kernel."""
        convolution = self.patch_embedding
        return 1 if convolution is None else pair(convolution.kernel_size)[0]

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width that the config names, None where it names none."""
        size = getattr(self.module.config, "image_size", None)
        return None if size is None else pair(size)

    @property
    def fixed_size(self) -> bool:
        """Whether images of another size need `interpolate_pos_encoding`: where the encoder takes it."""
        return self.resizes_positions and self.image_size is not None

    @property
    def resizes_positions(self) -> bool:
        """Whether the encoder has positions, which it can resize."""
        return "interpolate_pos_encoding" in inspect.signature(self.module.forward).parameters

    @property
    def num_tokens(self) -> int:
        """No token is known; the number says that images are [b, c, h, w]."""
        return 0

    @property
    def patch_embedding(self) -> Any:
        """The first convolution, where it is the only one that reads as many channels as an image has."""
        channels = self.num_channels
        reading = [m for m in self.module.modules() if isinstance(m, nn.Conv2d) and m.in_channels == channels]
        return reading[0] if len(reading) == 1 and reading[0].out_channels != channels else None

    @property
    def patch_stride(self) -> tuple[int, int]:
        """The first convolution's stride."""
        return self.patch_embedding.stride

    @property
    def patch_padding(self) -> tuple[int, int]:
        """The first convolution's padding."""
        return self.patch_embedding.padding

    def embed(self, pixel_values: Tensor, **kwargs) -> Tensor:
        """Return the images as they are."""
        return pixel_values

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Return the images [b, c, h, w] as they are."""
        return pixels

    def embed_grid(self, grid: Tensor) -> Tensor:
        """Return what has left the first convolution [b, c', h', w'] as it is."""
        return grid

    def encode(
        self,
        hidden: Tensor,
        prompts: Any = None,
        rule: Any = None,
        first_layer: int = 0,
        states: list[Tensor] | None = None,
        output_rows: Any = None,
        **layer_options,
    ) -> Any:
        """Run the encoder on images of any size, or on what its first convolution would make of one: its own output."""
        options: dict[str, Any] = {"output_hidden_states": True} if states is not None else {}
        if self.resizes_positions:
            options["interpolate_pos_encoding"] = True
        if hidden.shape[1] == self.num_channels:
            output = self.module(hidden, **options)
        else:
            # pyrefly: ignore[not-iterable]  # prompts in further channels know the size
            pixels = hidden.new_zeros(hidden.shape[0], self.num_channels, *self.image_size)
            # Threads share the modules, and each has images of its own. A compiler knows of no threads.
            me = None if torch.compiler.is_compiling() else threading.get_ident()
            handle = self.patch_embedding.register_forward_hook(
                lambda *call: hidden if me is None or threading.get_ident() == me else None
            )
            try:
                output = self.module(pixels, **options)
            finally:
                handle.remove()
        if states is not None:
            states.extend(output.hidden_states)
        return output

    def finish(self, hidden: Any, **kwargs) -> BaseModelOutputWithPooling:
        """Return the encoder's own output."""
        return hidden

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Return what is read out as it is: nothing is normalised."""
        return hidden


class ResNetCLIPVisionView(OpaqueVisionView):
    """`ResNetCLIPVisionModel`: CLIP's ResNet, whose attention pool has positions."""

    pixel_mean, pixel_std = OPENAI_CLIP_MEAN, OPENAI_CLIP_STD


class GroupViTVisionView(OpaqueVisionView):
    """Image encoder of `GroupViTModel`, which resizes its positions, but has no option that says so."""

    pixel_mean, pixel_std = OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    def encode(self, hidden: Tensor, *args, **kwargs) -> Any:
        """Run the encoder on images of any size, or on what its first convolution would make of one: its own output."""
        resize = {"interpolate_pos_encoding": True}
        embeddings = self.module.embeddings
        handle = embeddings.register_forward_pre_hook(lambda module, args, kwargs: (args, resize), with_kwargs=True)
        try:
            return super().encode(hidden, *args, **kwargs)
        finally:
            handle.remove()
