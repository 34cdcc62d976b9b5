"""TODO prompts/meta_net."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import PromptModule
from .tokens import CLIP_PROMPT_STD


if TYPE_CHECKING:
    pass


class ConditionalContext(PromptModule):
    """A context that each image shifts: `tokens` [1, n, d] plus one vector per image from the Meta-Net (CoCoOp).

    The Meta-Net is Linear(image size, image size // 16) - ReLU - Linear(., d), started like `nn.Linear`.
    """

    def __init__(self, num_tokens: int, width: int, image_dim: int, *, dtype: torch.dtype, device: torch.device):
        super().__init__()
        factory, hidden = {"dtype": dtype, "device": device}, max(1, image_dim // 16)
        self.tokens = nn.Parameter(torch.empty(1, num_tokens, width, **factory))
        nn.init.normal_(self.tokens, std=CLIP_PROMPT_STD)
        for name, outputs, inputs in (("hidden", hidden, image_dim), ("output", width, hidden)):
            bound = 1 / math.sqrt(inputs)
            for part, shape in (("weight", (outputs, inputs)), ("bias", (outputs,))):
                parameter = nn.Parameter(torch.empty(shape, **factory).uniform_(-bound, bound))
                self.register_parameter(f"{name}_{part}", parameter)

    def forward(self, source: Tensor | None = None, batch_size: int | None = None) -> Tensor:
        """The contexts for L2-normalised image features `source` [b, image size]: [1, b, n, d]."""
        hidden = F.relu(F.linear(source.to(self.hidden_weight.dtype), self.hidden_weight, self.hidden_bias))
        shift = F.linear(hidden, self.output_weight, self.output_bias)
        return self.tokens[:, None] + shift[:, None]
