"""ViT, bare (`ViTModel`) or inside a classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .base import VisionTower, resize_positions


class ViTTower(VisionTower):
    """`ViTModel`: prompts stand between the class token and the patches, without positions."""

    prompts_first = True
    embed_options = ("bool_masked_pos",)

    @property
    def layers(self) -> nn.ModuleList:
        """`ViTLayer`s; older transformers releases keep them in an encoder module."""
        return self.module.layers if hasattr(self.module, "layers") else self.module.encoder.layer

    @property
    def reference_weight(self) -> Tensor:
        """The patch embedding."""
        return self.module.embeddings.patch_embeddings.projection.weight

    def attention(self, layer: nn.Module) -> nn.Module:
        """`ViTAttention`, whose second output are the weights."""
        attention = layer.attention
        return getattr(attention, "attention", attention)

    def run_layer(self, layer: nn.Module, hidden: Tensor, **kwargs) -> Tensor:
        """One `ViTLayer`; prompts leave every token visible to every other, so there is no mask to hand over."""
        output = layer(hidden, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    @property
    def patch_size(self) -> int:
        """Edge of a patch in pixels."""
        size = self.module.config.patch_size
        return size if isinstance(size, int) else size[0]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width."""
        return tuple(self.module.embeddings.patch_embeddings.image_size)

    def embed(
        self,
        pixel_values: Tensor,
        interpolate_pos_encoding: bool | None = None,
        bool_masked_pos: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """`[CLS, patches]` with positions."""
        return self.module.embeddings(
            pixel_values.to(self.reference_weight.dtype),
            bool_masked_pos=bool_masked_pos,
            interpolate_pos_encoding=bool(interpolate_pos_encoding),
        )

    @property
    def patch_embedding(self) -> nn.Module:
        """`projection`."""
        return self.module.embeddings.patch_embeddings.projection

    def embed_grid(self, grid: Tensor) -> Tensor:
        """`[CLS, patches]` with positions."""
        embeddings = self.module.embeddings
        original = tuple(edge // self.patch_size for edge in self.image_size)
        positions = resize_positions(embeddings.position_embeddings, tuple(grid.shape[-2:]), original)
        class_token = embeddings.cls_token.expand(grid.shape[0], -1, -1)
        tokens = torch.cat([class_token, grid.flatten(2).transpose(1, 2)], dim=1)
        return embeddings.dropout(tokens + positions)

    def class_vector(self) -> Tensor:
        """`cls_token`."""
        return self.module.embeddings.cls_token.detach()[0, 0]

    def final_norm(self, hidden: Tensor) -> Tensor:
        """`layernorm`."""
        return self.module.layernorm(hidden)

    def finish(self, hidden: Tensor) -> BaseModelOutputWithPooling:
        """Final norm of all tokens, and the pooler where the model has one."""
        hidden = self.final_norm(hidden)
        pooled = None if self.module.pooler is None else self.module.pooler(hidden)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)

    def pooled_output(self, feature: Tensor) -> Tensor:
        """The pooler, where the model has one."""
        return feature if self.module.pooler is None else self.module.pooler(feature.unsqueeze(1))
