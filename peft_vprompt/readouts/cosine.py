"""The cosine readout."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CosineReadout(nn.Module):
    """Cosines of L2-normalised features; b = images, c = classes, k = read-only prompts, e = size of the joint space.

    Attributes:
        belongs_to_classes: whether it holds something for each class, so that it says nothing of other texts.
    """

    belongs_to_classes = False

    def forward(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Return the cosines [b, c].

        Args:
            image_features: [b, e], or [b, k, e] of k read-only prompts, whose cosines are averaged.
            text_features: [c, e], or [b, c, e] where the text of each image is its own (CoCoOp).
        """
        if image_features.ndim == 3:
            return image_features.mean(dim=1) @ text_features.t()
        if text_features.ndim == 3:
            return torch.einsum("be,bce->bc", image_features, text_features)
        return image_features @ text_features.t()
