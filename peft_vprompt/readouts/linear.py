"""Linear readouts: one learned vector per class in the joint space."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LinearReadout(nn.Module):
    """A linear head `weight` [c, e] on L2-normalised image features, started as N(0, 1 / e).

    Its rows stand for the class features, which no text encoder computes then; they are not normalised.
    """

    belongs_to_classes = True

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


class PrototypeReadout(LinearReadout):
    """Cosines with learned rows `weight` [c, e], of any length; `start` [c, e] is what they started as."""

    def __init__(self, num_classes: int, feature_dim: int, *, dtype: torch.dtype, device: torch.device):
        super().__init__(num_classes, feature_dim, dtype=dtype, device=device)
        self.register_buffer("start", self.weight.detach().clone())

    def begin_with(self, rows: Tensor) -> None:
        """Set rows and start to `rows` [c, e]."""
        self.weight.copy_(rows)
        self.start.copy_(rows)

    @property
    def class_features(self) -> Tensor:
        """The rows, L2-normalised [c, e]."""
        return F.normalize(self.weight, dim=-1)
