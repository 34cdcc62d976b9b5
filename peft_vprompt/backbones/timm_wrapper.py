"""`TimmWrapperModel`: a network of timm, opaque unless it is a plain ViT of timm's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.offloading import tensor_of
from ..core.plain_modules import modeling_file
from .base import EncoderView
from .opaque import OpaqueVisionView
from .vision import VisionView, resize_positions


#: timm's blocks that take tokens and nothing else, and in which every token reads every other.
PLAIN_BLOCKS = ("Block", "ResPostBlock", "ParallelScalingBlock", "ParallelThingsBlock")


class TimmView(OpaqueVisionView):
    """A network that says itself what images it was trained on."""

    @classmethod
    def of(cls, module: nn.Module) -> EncoderView:
        """Return the view of one network: prompts join the tokens of a plain ViT."""
        network: Any = module.timm_model
        blocks = getattr(network, "blocks", ())
        plain = type(network).__name__ == "VisionTransformer" and type(network).__module__.startswith("timm.")
        plain = plain and all(type(block).__name__ in PLAIN_BLOCKS for block in blocks)
        return TimmViTView(module) if plain and hasattr(network.patch_embed, "proj") else cls(module)

    @property
    def num_channels(self) -> int:
        """Channels of the images of timm's configuration."""
        return self.module.timm_model.pretrained_cfg["input_size"][0]

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width that the network was built for, None where it takes any."""
        patches = getattr(self.module.timm_model, "patch_embed", None)
        return getattr(patches, "img_size", None) or tuple(self.module.timm_model.pretrained_cfg["input_size"][1:])


class TimmViTView(VisionView):
    """timm's `VisionTransformer`: `[CLS, registers, prompts, patches]`, some of them or none.

    Its pooling (class token, mean of the patches, attention pool) sees no prompt.
    """

    prompts_first = True
    resizes_positions = False
    gives_attentions = False
    no_read_only = "timm's attention cannot be told who reads whom"

    @property
    def network(self) -> Any:
        """timm's network."""
        return self.module.timm_model

    @property
    def layers(self) -> Sequence[nn.Module]:
        """timm's blocks."""
        return self.network.blocks

    @property
    def width(self) -> int:
        """Size of a token."""
        return self.network.embed_dim

    @property
    def reference_weight(self) -> Tensor:
        """The patch embedding."""
        return self.patch_embedding.weight

    @property
    def patch_embedding(self) -> Any:
        """A convolution."""
        return self.network.patch_embed.proj

    @property
    def patch_size(self) -> int:
        """Edge of a patch in pixels."""
        return self.network.patch_embed.patch_size[0]

    @property
    def num_channels(self) -> int:
        """Channels of an image."""
        return self.patch_embedding.in_channels

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width the position embeddings are made for."""
        return tuple(self.network.patch_embed.img_size)

    @property
    def num_prefix_tokens(self) -> int:
        """Class token and registers."""
        return self.network.num_prefix_tokens

    @property
    def pixel_mean(self) -> Sequence[float]:
        """How images are normalised, as timm's configuration says."""
        return self.network.pretrained_cfg["mean"]

    @property
    def pixel_std(self) -> Sequence[float]:
        """Likewise."""
        return self.network.pretrained_cfg["std"]

    def attention(self, layer: nn.Module) -> nn.Module:
        """Return the layer itself: its attention weights are not available."""
        return layer

    def layer_arguments(self, hidden: Tensor, **options) -> tuple[tuple, dict]:
        """Return nothing: a block takes tokens alone."""
        return (), {}

    def embed(self, pixel_values: Tensor, **kwargs) -> Tensor:
        """Make special tokens and patches with positions, [b, s, d]."""
        return self.embed_pixels(pixel_values)

    def embed_grid(self, grid: Tensor) -> Tensor:
        """Make the same of embedded patches [b, d, h, w]."""
        network = self.network
        tokens = network.patch_embed.norm(grid.flatten(2).transpose(1, 2))
        names = [name for name in ("cls_token", "reg_token") if getattr(network, name) is not None]
        special = [tensor_of(network, name).expand(len(tokens), -1, -1) for name in names]
        prefix = 0 if network.no_embed_class else self.num_prefix_tokens  # rows of special tokens that have positions
        if network.pos_embed is None:
            tokens = torch.cat([*special, tokens], dim=1)
            return network.norm_pre(network.patch_drop(tokens))
        size = tuple(grid.shape[-2:])
        positions = resize_positions(tensor_of(network, "pos_embed"), size, self.grid_size, prefix)
        if prefix:
            tokens = torch.cat([*special, tokens], dim=1) + positions
        else:
            tokens = torch.cat([*special, tokens + positions], dim=1)
        return network.norm_pre(network.patch_drop(network.pos_drop(tokens)))

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Run `norm` on [..., d]."""
        return self.network.norm(hidden)

    def finish(self, hidden: Tensor, **kwargs) -> Any:
        """Normalise all tokens [b, s, d], and pool them as timm does."""
        hidden = self.final_norm(hidden)
        pooled = self.network.forward_head(hidden) if self.module.config.do_pooling else None
        return modeling_file(self.module).TimmWrapperModelOutput(last_hidden_state=hidden, pooler_output=pooled)
