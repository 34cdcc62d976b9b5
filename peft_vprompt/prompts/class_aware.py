"""A context that all classes share, and tokens of each class that take its place late in the text tower (TCP)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation

from ..core.class_prompts import ClassPrompts
from ..core.insertion import InsertionRule, ReplaceScattered
from .base import PromptModule
from .tokens import CLIP_PROMPT_STD


class ClassAwareContext(PromptModule):
    """A context `tokens` [1, n, d], and class tokens that a small network makes of frozen class features [c, e].

    Each class has rows of its own, so that its tokens can take their place: row i * n + k is token k of class i.

    Args:
        num_tokens: n.
        width: d.
        feature_dim: e.
        num_class_tokens: how many of the n are replaced, from the first on.
        layer: layer, counted from 0, in front of which they are.
    """

    def __init__(
        self,
        num_tokens: int,
        width: int,
        feature_dim: int,
        num_class_tokens: int,
        layer: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ):
        super().__init__()
        made = {"dtype": dtype, "device": device}
        self.tokens = nn.Parameter(torch.empty(1, num_tokens, width, **made))
        nn.init.normal_(self.tokens, std=CLIP_PROMPT_STD)
        self.num_class_tokens = num_class_tokens
        self.layer = layer
        hidden = max(1, feature_dim // 4)
        self.meta_net = nn.Sequential(
            nn.Linear(feature_dim, hidden, **made),
            QuickGELUActivation(),
            nn.Linear(hidden, num_class_tokens * width, **made),
        )

    def forward(self, *, class_features: Tensor, **inputs) -> list[Tensor | None]:
        """Return the contexts of all classes [c * n, d], and their tokens [c * m, d] for the layer."""
        contexts = self.tokens[0].repeat(len(class_features), 1)
        features = class_features.to(self.tokens.dtype)
        return [
            contexts,
            *[None] * (self.layer - 1),
            self.meta_net(features).view(-1, self.tokens.shape[-1]),
        ]

    def text_rule(self, class_prompts: ClassPrompts) -> InsertionRule:
        """Return where the tokens of each class stand."""
        classes = class_prompts.learned_sources // self.tokens.shape[1]
        places = class_prompts.learned_sources % self.tokens.shape[1]
        replaced = (places < self.num_class_tokens).nonzero().squeeze(1)
        sources = classes * self.num_class_tokens + places
        return ReplaceScattered(class_prompts.learned_rows[replaced], sources[replaced])
