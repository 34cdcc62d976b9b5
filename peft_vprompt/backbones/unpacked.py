"""Causal text encoders that cannot be packed: their attention modules hand no keyword down to say who reads whom.

Each class prompt is a row of its own, with a causal mask; its feature is read at the last token that is no padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core.layer_loop import encode
from ..core.plain_modules import in_place_of
from .clip import CLIPView
from .text import PaddedTextView


class UnpackedTextView(CLIPView, PaddedTextView):
    """Text encoder of `GroupViTModel`: CLIP's, with attention of its own."""

    layer_parts = None  # its parts are CLIP's, its attention is not called as CLIP's

    @property
    def token_embedding(self) -> nn.Module:
        """`nn.Embedding` over the vocabulary."""
        return self.module.embeddings.token_embedding

    def layer_mask(self, mask: Tensor, hidden: Tensor) -> Tensor:
        """Return what is added to scores [c, 1, l, l], for the mask [c, l] of real tokens: a token reads none behind it.

        Made here, as transformers leaves it out where a flag of the attention function would say the same.
        """
        length = mask.shape[1]
        visible = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril() & mask[:, None, None]
        visible = visible | torch.eye(length, dtype=torch.bool, device=mask.device)
        return hidden.new_zeros(visible.shape).masked_fill(~visible, torch.finfo(hidden.dtype).min)

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Run `final_layer_norm` on [..., d]."""
        return self.module.final_layer_norm(hidden)

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Normalise the state of the last real token of [c, l, d]: [c, d]."""
        rows = torch.arange(len(hidden), device=hidden.device)
        return self.final_norm(hidden[rows, mask.sum(1) - 1])

    def plain_features(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the end token's state [c, d] for ids and mask [c, l]."""
        return self.module(input_ids=token_ids, attention_mask=mask.long()).pooler_output


class Aimv2TextView(UnpackedTextView):
    """`Aimv2TextModel`."""

    parts = ("embeddings", "encoder", "rms_norm")

    def attention(self, layer: nn.Module) -> nn.Module:
        """Return the layer's `Aimv2Attention`."""
        return layer.attention

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Run `rms_norm` on [..., d]."""
        return self.module.rms_norm(hidden)

    def plain_features(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the end token's state [c, d] for ids and mask [c, l].

        Not by the model's own call, which with sdpa reads texts both ways where none of them is padded; AIMv2's own code
        never does.
        """
        return in_place_of(self.module, self._causal_features, token_ids, mask)

    def _causal_features(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        layers: Any = self
        hidden = self.embed(self.token_embedding(token_ids))
        return self.pool(encode(layers, hidden, mask=self.layer_mask(mask, hidden)), mask)
