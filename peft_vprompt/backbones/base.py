"""`EncoderView`: the thin, per-architecture view of one encoder.

A view holds no state: it is made on the fly around the module it looks at. A new backbone is one more view.

Shapes: b = batch, s = rows, r = some of them, h = heads or rows of a grid, c = classes, l = tokens of a text, d = width,
e = size of the joint space.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..core.attention import KVCache
from ..core.insertion import InsertionRule, insert_prompts
from ..core.layer_loop import OutputRows, encode
from ..core.offloading import tensor_of
from ..utils.tensors import require_dense
from .layer_parts import LayerParts


class EncoderView(ABC):
    """What the layer loop and the prompt modules need to know of an encoder; fulfils `core.encoder.LayerStack`.

    Attributes:
        layer_parts: what the parts of its layers are called; None where layers are built in another way.
    """

    layer_parts: LayerParts | None = None

    def __init__(self, module: nn.Module):
        self.module = module

    @classmethod
    def of(cls, module: nn.Module) -> EncoderView:
        """Return the view of one module of this class; another where modules of the class differ."""
        return cls(module)

    @property
    @abstractmethod
    def layers(self) -> Sequence[nn.Module]:
        """The Hugging Face layers in order."""

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def width(self) -> int:
        """Size of a token."""
        return self.module.config.hidden_size

    @property
    @abstractmethod
    def reference_weight(self) -> Tensor:
        """A weight whose dtype and device new prompts take."""

    def attention(self, layer: nn.Module) -> nn.Module:
        """Return the attention module of one layer, whose second output are the weights."""
        return layer.self_attn

    def layer_arguments(self, hidden: Tensor, **options) -> tuple[tuple, dict]:
        """Return what every layer takes after its input `hidden` [b, s, d], by position and by keyword.

        Here no mask, and all `options` as keywords for the attention function.
        """
        return (None,), options

    def run_layer(self, layer: nn.Module, hidden: Tensor, **options) -> Tensor:
        """Run one layer on [b, s, d]; `options` are those of `layer_arguments`."""
        args, kwargs = self.layer_arguments(hidden, **options)
        output = layer(hidden, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    def parts_of(self, layer: nn.Module) -> LayerParts | None:
        """Return the names of one layer's parts, where they may be called one by one: they are known, and plain modules.

        Where they are not (hooks, sharded or offloaded weights, quantised or replaced parts), the layer's own call is made.
        """
        return self.layer_parts if self.layer_parts is not None and self.layer_parts.fit(layer) else None

    def runs_in_parts(self, layer: nn.Module) -> bool:
        """Tell whether some rows of a layer can be computed alone, without the layer's own call."""
        return self.parts_of(layer) is not None

    def keys_values(self, layer: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [b, h, s, head size] that the layer's attention reads, from the layer's input [b, s, d].

        Where the layer runs in parts, nothing else is computed.
        """
        if (parts := self.parts_of(layer)) is not None:
            return parts.keys_values(layer, hidden)
        kv_cache = KVCache()
        self.run_layer(layer, hidden, kv_cache=kv_cache)
        return kv_cache.layers[0]

    def run_queries(self, layer: nn.Module, rows: Tensor, pattern: Callable) -> Tensor:
        """Run one layer on rows [b, r, d] that read other rows by `pattern`: their own keys and values are not read.

        Where the layer runs in parts, these are not computed.
        """
        if (parts := self.parts_of(layer)) is not None:
            return parts.run_queries(layer, rows, pattern)
        return self.run_layer(layer, rows, pattern=pattern)


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


class TextView(EncoderView):
    """A text encoder.

    Attributes:
        parts: the modules that make up the encoder, for training it whole; PEFT takes all whose names end so.
    """

    parts: tuple[str, ...] = ("embeddings", "encoder", "final_layer_norm")

    @property
    @abstractmethod
    def token_embedding(self) -> nn.Module:
        """Token ids -> vectors."""

    @property
    def reference_weight(self) -> Tensor:
        """The token embedding."""
        return self.token_embedding.weight

    @property
    def max_positions(self) -> int:
        """Longest text, start and end token included."""
        return self.module.config.max_position_embeddings

    @torch.no_grad()
    def word_vectors(self, token_ids: list[int]) -> Tensor:
        """Return the token embeddings [len(token_ids), d] to start prompts from."""
        weight = tensor_of(self.token_embedding, "weight")
        return weight[torch.tensor(token_ids, device=weight.device)].clone()


class CausalTextView(TextView):
    """A text encoder whose tokens read what stands before them: class prompts share their prefix."""

    @property
    @abstractmethod
    def position_embedding(self) -> nn.Module:
        """Positions -> vectors."""

    @property
    @abstractmethod
    def end_token_id(self) -> int:
        """Id of the end token, where the text's feature is read."""

    @abstractmethod
    def final_norm(self, hidden: Tensor) -> Tensor:
        """Normalise tokens [..., d] after the last layer."""


class PaddedTextView(TextView):
    """A text encoder whose class prompts are rows of their own, padded: its tokens read each other, say.

    Attributes:
        fills_up: texts are padded to `max_positions`; else to the longest.
        reads_padding: padding is read like any token; else it is masked.
        ends_texts: its tokenizer puts an end token behind each text.
    """

    fills_up: bool = False
    reads_padding: bool = False
    ends_texts: bool = True

    def embed(self, vectors: Tensor) -> Tensor:
        """Make the first layer's input [c, l, d] from token vectors of the same shape."""
        return self.module.embeddings(inputs_embeds=vectors)

    def layer_mask(self, mask: Tensor, hidden: Tensor) -> Any:
        """Make what the layers take for the mask [c, l] of real tokens in `hidden` [c, l, d]."""
        if self.reads_padding:
            return None
        return create_bidirectional_mask(config=self.module.config, inputs_embeds=hidden, attention_mask=mask)

    def layer_arguments(self, hidden: Tensor, mask: Tensor | None = None) -> tuple[tuple, dict]:
        """Return the mask, as `layer_mask` makes it."""
        return (mask,), {}

    @abstractmethod
    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Reduce the last layer's output [c, l, d] to the text's feature [c, e], as the model pools it.

        `mask` [c, l] is True for real tokens.
        """

    @abstractmethod
    def plain_features(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the text's feature [c, e] by the model's own call, without prompts, from [c, l] ids and mask."""
