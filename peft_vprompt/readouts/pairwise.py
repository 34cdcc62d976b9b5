"""The pairwise readout of read-only prompts."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PairwiseReadout(nn.Module):
    """The mean over k pairs of read-only prompts of each pair's cosine (RPO, equation 7)."""

    def forward(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Return the mean cosines [b, c] of L2-normalised features [b, k, e] and [c, k, e]."""
        return torch.einsum("bke,cke->bc", image_features, text_features) / image_features.shape[1]
