"""VPT's prompts: tokens beside the image tokens or added to them, on towers of one width or of several stages.

Source: KMnP/vpt `src/models/vit_prompt/`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.insertion import AddToTokens, InsertionRule
from .base import PromptModule


if TYPE_CHECKING:
    from ..backbones.vision import VisionView


def vpt_bound(patch_size: int, size: int) -> float:
    """Return v of U(-v, v), by which VPT's prompts of `size` numbers start (Xavier's for a patch embedding)."""
    return math.sqrt(6 / (3 * patch_size**2 + size))


class VisualPrompts(PromptModule):
    """VPT's prompts: `tokens` [j, n, p], optionally projected from p to the tower's width, with dropout per image.

    Started as U(-v, v), v = sqrt(6 / (3 * patch size ** 2 + p)), or as N(0, std ** 2) where there is a `std`; the
    projection as `nn.Linear` but for its weight, which is kaiming_normal (fan out).
    With `shared` all layers read one tensor; with `added` prompts are added to the tokens instead of standing beside
    them. Source: KMnP/vpt `src/models/vit_prompt/vit.py`.
    """

    def __init__(
        self,
        depth: int,
        num_tokens: int,
        width: int,
        *,
        patch_size: int,
        projection_dim: int | None = None,
        dropout: float = 0.0,
        shared: bool = False,
        added: bool = False,
        std: float | None = None,
        dtype: torch.dtype,
        device: torch.device,
        **options,
    ):
        super().__init__(**options)
        self.depth = depth
        self.dropout = dropout
        self.added = added
        size = projection_dim or width
        bound = vpt_bound(patch_size, size)
        factory = {"dtype": dtype, "device": device}
        self.tokens = nn.Parameter(torch.empty(1 if shared else depth, num_tokens, size, **factory))
        if std is None:
            nn.init.uniform_(self.tokens, -bound, bound)
        else:
            nn.init.normal_(self.tokens, std=std)
        self.projection_weight = self.projection_bias = None
        if projection_dim is not None:
            self.projection_weight = nn.Parameter(torch.empty(width, size, **factory))
            self.projection_bias = nn.Parameter(torch.empty(width, **factory))
            nn.init.kaiming_normal_(self.projection_weight, mode="fan_out")
            nn.init.uniform_(self.projection_bias, -(size**-0.5), size**-0.5)

    def forward(self, *, batch_size: int | None = None, **inputs) -> Tensor:
        """Return [j, n, d]; [j, b, n, d] while dropout is active."""
        tokens = self.tokens
        if self.projection_weight is not None:
            tokens = F.linear(tokens, self.projection_weight, self.projection_bias)
        tokens = tokens.expand(self.depth, -1, -1)
        if self.training and self.dropout and batch_size is not None:
            tokens = F.dropout(tokens[:, None].expand(-1, batch_size, -1, -1), self.dropout)
        return tokens

    def insertion_rule(self, view: VisionView, length: int) -> InsertionRule:
        """Insert beside the tokens, or add to them."""
        return AddToTokens() if self.added else super().insertion_rule(view, length)


class StagedPrompts(PromptModule):
    """VPT's prompts on a tower whose width grows from stage to stage.

    `tokens_<i>` [layers of stage i with prompts of their own, n, width of stage i], for the stages that have such
    layers; all start as U(-v, v) with the v of the first stage's width. Source: KMnP/vpt
    `src/models/vit_prompt/swin_transformer.py`.
    """

    def __init__(
        self,
        depth: int,
        num_tokens: int,
        stages: Sequence[tuple[int, int]],
        *,
        patch_size: int,
        dropout: float = 0.0,
        first_layer: int = 0,
        dtype: torch.dtype,
        device: torch.device,
        **options,
    ):
        super().__init__(first_layer=first_layer, **options)
        self.dropout = dropout
        self.num_stages = len(stages)
        bound = vpt_bound(patch_size, stages[0][1])
        start = 0
        for index, (layers, width) in enumerate(stages):
            count = min(start + layers, first_layer + depth) - max(start, first_layer)
            start += layers
            tokens = None
            if count > 0:
                shape = (count, num_tokens, width)
                tokens = nn.Parameter(torch.empty(shape, dtype=dtype, device=device).uniform_(-bound, bound))
            self.register_parameter(f"tokens_{index}", tokens)

    def forward(self, *, batch_size: int | None = None, **inputs) -> list[Tensor]:
        """Return the prompts of each layer, [n, d] or, while dropout is active, [b, n, d]."""
        stages = [getattr(self, f"tokens_{index}") for index in range(self.num_stages)]
        prompts = [layer for tokens in stages if tokens is not None for layer in tokens]
        if self.training and self.dropout and batch_size is not None:
            return [F.dropout(layer.expand(batch_size, -1, -1), self.dropout) for layer in prompts]
        return prompts
