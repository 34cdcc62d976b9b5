"""The text encoder of TIPSv2."""

from __future__ import annotations

from torch import Tensor, nn

from .clip import CLIPView
from .text import PaddedTextView


class Tipsv2TextView(CLIPView, PaddedTextView):
    """`Tipsv2TextModel`: tokens read each other, and a text's feature is their mean; no token starts or ends a text."""

    ends_texts = False

    @property
    def token_embedding(self) -> nn.Module:
        """`nn.Embedding` over the vocabulary."""
        return self.module.embeddings.token_embedding

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Normalise [c, l, d] and average the real tokens: [c, d]."""
        kept = mask.to(hidden.dtype).unsqueeze(-1)
        total = (self.module.final_layer_norm(hidden) * kept).sum(dim=1)
        return total / (kept.sum(dim=1) + self.module.config.pooling_epsilon)

    def plain_features(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the mean state [c, d] for ids and mask [c, l]."""
        return self.module(input_ids=token_ids, attention_mask=mask.long()).pooler_output
