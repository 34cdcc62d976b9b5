"""Visual prompts whose image feature goes through a learned projector to another model's joint space (PromptKD)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .tokens import TokenPrompts


class ProjectedPrompts(TokenPrompts):
    """Free vectors `tokens` [j, n, d], and a `projector` of image features: Linear - BatchNorm - ReLU - Linear.

    The batch norm takes the batch's statistics in training and its running ones else; these are saved with the adapter.

    Args:
        depth: j.
        num_tokens: n.
        width: d.
        feature_dim: size of the model's joint space.
        teacher_dim: size of the other model's.
    """

    def __init__(
        self,
        depth: int,
        num_tokens: int,
        width: int,
        feature_dim: int,
        teacher_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ):
        made = {"dtype": dtype, "device": device}
        super().__init__(depth, num_tokens, width, **made)
        norm = nn.BatchNorm1d(teacher_dim, **made)
        norm.num_batches_tracked = None  # only a mean over all batches counts them, and the authors' is a running one
        self.projector = nn.Sequential(
            nn.Linear(feature_dim, teacher_dim, **made), norm, nn.ReLU(), nn.Linear(teacher_dim, teacher_dim, **made)
        )

    def image_feature(self, pooled: Tensor, project: Callable[..., Tensor]) -> Tensor:
        """Return the L2-normalised feature [b, e] in the other model's joint space."""
        projected = project(pooled, normalize=False)
        return F.normalize(self.projector(projected.to(self.tokens.dtype)), dim=-1)
