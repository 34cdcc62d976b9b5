"""The cache readout: cosines with class features, and what labelled images that are like the image add to them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cosine import CosineReadout


class CacheReadout(CosineReadout):
    """Cosines of image and class features, and beside them a cache of n support images.

    The cache has `keys` [n, e], the images' L2-normalised features, and `labels` [n], their one-hot values written short.
    Until `fill` sets them the keys are random and the classes take turns.

    Args:
        num_images: n.
        num_classes: c.
        feature_dim: e.
        trained: whether the keys are parameters; else they are a buffer.
    """

    belongs_to_classes = True

    def __init__(
        self,
        num_images: int,
        num_classes: int,
        feature_dim: int,
        trained: bool,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ):
        super().__init__()
        keys = F.normalize(torch.randn(num_images, feature_dim, dtype=dtype, device=device), dim=-1)
        self.num_classes = num_classes
        if trained:
            self.keys = nn.Parameter(keys)
        else:
            self.register_buffer("keys", keys)
        self.register_buffer("labels", torch.arange(num_images, device=device) % num_classes)

    def fill(self, keys: Tensor, labels: Tensor) -> None:
        """Take features [n, e] and labels [n] of any number of images; an optimizer that has the keys keeps them."""
        self.keys.data = keys.to(self.keys)
        self.labels = labels.to(self.labels)

    def cached(self, image_features: Tensor, beta: float) -> Tensor:
        """Return exp(-beta (1 - cosine)) of image features [b, e] and keys, summed up over each class: [b, c]."""
        affinities = torch.exp(beta * (image_features @ self.keys.to(image_features.dtype).t() - 1))
        return affinities.new_zeros(affinities.shape[0], self.num_classes).index_add(1, self.labels, affinities)
