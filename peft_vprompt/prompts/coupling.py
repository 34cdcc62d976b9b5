"""Visual prompts that are made of the text prompts."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .base import PromptModule


class LinearCoupling(PromptModule):
    """Visual prompts as a linear image of the text prompts, one map per layer (MaPLe, equation 6).

    `weight` [j, d, text width] and `bias` [j, d] start like `nn.Linear`'s.
    """

    def __init__(
        self, depth: int, text_width: int, width: int, *, dtype: torch.dtype, device: torch.device, **options
    ):
        super().__init__(**options)
        self.weight = nn.Parameter(torch.empty(depth, width, text_width, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.empty(depth, width, dtype=dtype, device=device))
        bound = 1 / math.sqrt(text_width)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, *, text_prompts: Tensor, **inputs) -> Tensor:
        """Map the text prompts [>= j, n, text width] of the first j layers to [j, n, d]."""
        depth = self.weight.shape[0]
        return torch.baddbmm(self.bias[:, None], text_prompts[:depth], self.weight.transpose(1, 2))
