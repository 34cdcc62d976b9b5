"""Visual prompts whose image feature goes through a learned projector to another model's joint space (PromptKD)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .tokens import TokenPrompts


class BatchNorm(nn.Module):
    """`nn.BatchNorm1d` of features [b, e], in float32 at least, whatever precision the model has, without a count of batches.

    Raises:
        ValueError: a single image in training, of which its own statistics would leave nothing.
    """

    def __init__(self, num_features: int, *, dtype: torch.dtype, device: torch.device):
        super().__init__()
        made = {"dtype": dtype, "device": device}
        self.weight = nn.Parameter(torch.ones(num_features, **made))
        self.bias = nn.Parameter(torch.zeros(num_features, **made))
        self.register_buffer("running_mean", torch.zeros(num_features, **made))
        self.register_buffer("running_var", torch.ones(num_features, **made))

    def forward(self, features: Tensor) -> Tensor:
        """Normalise features [b, d] by the batch's statistics in training, by the running ones else.

        Raises:
            ValueError: a training batch of one image.
        """
        if self.training and len(features) < 2:
            raise ValueError(
                "Expected at least two images in a training batch, by whose statistics PromptKD's projector normalises "
                "features. Received: 1. Use a larger batch, without accumulation of single images."
            )
        precise = torch.promote_types(features.dtype, torch.float32)
        running = (self.running_mean, self.running_var)
        mean, var = (tensor.to(precise) for tensor in running)
        learned = (self.weight.to(precise), self.bias.to(precise))
        normed = F.batch_norm(features.to(precise), mean, var, *learned, training=self.training)
        if self.training and self.running_mean.dtype != precise:
            self.running_mean.copy_(mean)
            self.running_var.copy_(var)
        return normed.to(features.dtype)


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
        norm = BatchNorm(teacher_dim, **made)
        self.projector = nn.Sequential(
            nn.Linear(feature_dim, teacher_dim, **made), norm, nn.ReLU(), nn.Linear(teacher_dim, teacher_dim, **made)
        )

    def image_feature(self, pooled: Tensor, project: Callable[..., Tensor]) -> Tensor:
        """Return the L2-normalised feature [b, e] in the other model's joint space."""
        projected = project(pooled, normalize=False)
        return F.normalize(self.projector(projected.to(self.tokens.dtype)), dim=-1).to(projected.dtype)
