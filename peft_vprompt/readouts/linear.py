"""The linear readout: one learned vector per class in the joint space."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LinearReadout(nn.Module):
    """A linear head `weight` [c, e] on L2-normalised image features, started as N(0, 1 / e).

    Its rows stand for the class features, which no text encoder computes then; they are not normalised.
    """

    def __init__(self, num_classes: int, feature_dim: int, *, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, feature_dim, dtype=dtype, device=device))
        nn.init.normal_(self.weight, std=feature_dim**-0.5)

    @property
    def class_features(self) -> Tensor:
        """The rows, [c, e]."""
        return self.weight

    def forward(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Return the products [b, c] of image features [b, e] with the rows, given as `text_features` [c, e]."""
        return image_features @ text_features.t()
