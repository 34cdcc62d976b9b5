"""A context that each image shifts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import PromptModule
from .tokens import CLIP_PROMPT_STD


class ConditionalContext(PromptModule):
    """A context `tokens` [1, n, d] plus one vector per image from `meta_net` (CoCoOp, section 3.2).

    The Meta-Net is Linear(image size, image size // 16) - ReLU - Linear(., d).
    """

    def __init__(
        self, num_tokens: int, width: int, image_dim: int, *, dtype: torch.dtype, device: torch.device, **options
    ):
        super().__init__(**options)
        factory = {"dtype": dtype, "device": device}
        hidden = max(1, image_dim // 16)
        self.tokens = nn.Parameter(torch.empty(1, num_tokens, width, **factory))
        nn.init.normal_(self.tokens, std=CLIP_PROMPT_STD)
        self.meta_net = nn.Sequential(
            nn.Linear(image_dim, hidden, **factory), nn.ReLU(), nn.Linear(hidden, width, **factory)
        )

    def forward(self, *, image_features: Tensor, **inputs) -> Tensor:
        """Return the context of each image, [1, b, n, d], for L2-normalised features [b, image size]."""
        shift = self.meta_net(image_features.to(self.meta_net[0].weight.dtype))
        return self.tokens[:, None] + shift[:, None]
