"""ViT, bare (`ViTModel`) or inside a classifier, and the models built like it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..core.offloading import tensor_of
from .layer_parts import PIXIO_PARTS, VIT_PARTS
from .vision import VisionView, resize_positions


class ViTLikeView(VisionView):
    """A class token and patches, one stack of layers, a final norm: what ViT, DeiT, MAE, DINOv2 and BEiT share.

    Prompts stand between the special tokens and the patches, without positions.
    """

    prompts_first = True
    embed_options = ("bool_masked_pos",)
    #: Names of the special tokens that have positions.
    positioned: tuple[str, ...] = ("cls_token",)

    @property
    def layers(self) -> nn.ModuleList:
        """`...Layer`s."""
        return self.module.layers

    @property
    def reference_weight(self) -> Tensor:
        """The patch embedding."""
        return self.module.embeddings.patch_embeddings.projection.weight

    def attention(self, layer: nn.Module) -> nn.Module:
        """Return the module whose second output are the weights."""
        return layer.attention

    def layer_arguments(self, hidden: Tensor, **options) -> tuple[tuple, dict]:
        """Return `options`; prompts leave every token visible to every other, so there is no mask to hand over."""
        return (), options

    def embed(
        self,
        pixel_values: Tensor,
        interpolate_pos_encoding: bool | None = None,
        bool_masked_pos: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """Make `[CLS, ..., patches]` with positions, [b, s, d]."""
        return self.module.embeddings(
            pixel_values.to(self.reference_weight.dtype),
            bool_masked_pos=bool_masked_pos,
            interpolate_pos_encoding=bool(interpolate_pos_encoding),
        )

    @property
    def patch_embedding(self) -> nn.Module | None:
        """`projection`."""
        return self.module.embeddings.patch_embeddings.projection

    def embed_grid(self, grid: Tensor) -> Tensor:
        """Make `[CLS, ..., patches]` with positions [b, s, d] of embedded patches [b, d, h, w]."""
        embeddings = self.module.embeddings
        special = [tensor_of(embeddings, name).expand(grid.shape[0], -1, -1) for name in self.positioned]
        tokens = torch.cat([*special, grid.flatten(2).transpose(1, 2)], dim=1)
        size = tuple(grid.shape[-2:])
        prefix = sum(token.shape[1] for token in special)
        positions = resize_positions(tensor_of(embeddings, "position_embeddings"), size, self.grid_size, prefix)
        dropout = getattr(embeddings, "dropout", None) or nn.Identity()
        return dropout(tokens + positions)

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Run `layernorm` on [..., d]."""
        return self.module.layernorm(hidden)

    def finish(self, hidden: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Normalise all tokens [b, s, d], and pool them where the model has a pooler."""
        hidden = self.final_norm(hidden)
        pooled = None if self.pooler is None else self.pooler(hidden)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)

    def pooled_output(self, feature: Tensor) -> Tensor:
        """Run the pooler, where the model has one; it finds the feature whether it reads CLS or the mean of the patches."""
        return feature if self.pooler is None else self.pooler(torch.stack([feature, feature], dim=1))

    @property
    def pooler(self) -> nn.Module | None:
        """The module that gives the pooled output, if any."""
        return getattr(self.module, "pooler", None)


class ViTView(ViTLikeView):
    """`ViTModel`. Its prompts stay in `last_hidden_state`, as in the code of VPT's authors; its head reads CLS."""

    layer_parts = VIT_PARTS
    keeps_prompts = True

    @property
    def head_rows(self) -> slice:
        """The special tokens, which come first."""
        return slice(0, self.num_prefix_tokens)


class IJepaView(ViTLikeView):
    """`IJepaModel`: patches and no class token; the head reads their mean."""

    layer_parts = VIT_PARTS
    num_prefix_tokens = 0
    positioned = ()

    def summarize(self, tokens: Tensor) -> Tensor:
        """Return the mean of the patches, as the head reads it."""
        return tokens.mean(dim=1)


class ViTMSNView(ViTView):
    """`ViTMSNModel`: as ViT; its head reads CLS."""

    keeps_prompts = False


class DeiTView(ViTView):
    """`DeiTModel`: `[CLS, distillation token, prompts, patches]`; its heads read the two special tokens."""

    keeps_prompts = False
    num_prefix_tokens = 2
    positioned = ("cls_token", "distillation_token")


class PixioView(ViTLikeView):
    """`PixioModel`: several class tokens, whose mean is the pooled output; positions fit images of any size."""

    layer_parts = PIXIO_PARTS
    fixed_size = False

    @property
    def num_prefix_tokens(self) -> int:
        """The class tokens."""
        return self.module.config.n_cls_tokens

    def embed(self, pixel_values: Tensor, **kwargs) -> Tensor:
        """Make `[CLS, ..., patches]` with positions, [b, s, d]."""
        return self.module.embeddings(pixel_values)

    def finish(self, hidden: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Normalise all tokens [b, s, d]; the mean of the class tokens is the pooled output."""
        hidden = self.final_norm(hidden)
        pooled = hidden[:, : self.num_prefix_tokens].mean(dim=1)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)
