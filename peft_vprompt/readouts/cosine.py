"""Readouts: how tokens become the feature of an image, and features of images and classes one number for each pair.

Shapes: b = images, c = classes, k = pairs of readers, e = size of the joint space, s = rows, d = width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cosines(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Cosines [b, c] of L2-normalised features.

    * images [b, e], classes [c, e]: one feature each (CoOp, MaPLe, VPT, ...);
    * images [b, e], classes [b, c, e]: class features of each image's own (CoCoOp);
    * images [b, k, e], classes [c, k, e]: mean over the k pairs of readers (RPO, equation 7);
    * images [b, k, e], classes [c, e]: mean over the k readers of the image.
    """
    if image_features.ndim == 3 and text_features.ndim == 2:
        return image_features.mean(dim=1) @ text_features.t()
    if image_features.ndim == 3:
        return torch.einsum("bke,cke->bc", image_features, text_features) / image_features.shape[1]
    if text_features.ndim == 3:
        return torch.einsum("be,bce->bc", image_features, text_features)
    return image_features @ text_features.t()
