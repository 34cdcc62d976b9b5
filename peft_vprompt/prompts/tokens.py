"""TODO prompts/tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..core.tokenization import text_tokens
from .base import PromptModule


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..backbones.supported import TextView


#: Standard deviation of randomly initialised contexts and prompts in the CLIP methods (CoOp section 3, MaPLe).
CLIP_PROMPT_STD = 0.02


class TokenPrompts(PromptModule):
    """Free vectors: `tokens` [j, n, d]."""

    def __init__(self, depth: int, num_tokens: int, width: int, *, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(depth, num_tokens, width, dtype=dtype, device=device))
        nn.init.normal_(self.tokens, std=CLIP_PROMPT_STD)

    def forward(self, source: Tensor | None = None, batch_size: int | None = None) -> Tensor:
        """`tokens` as they are."""
        return self.tokens


@torch.no_grad()
def start_from_words(tokens: Tensor, tower: TextView, tokenizer: PreTrainedTokenizerBase, words: str) -> None:
    """Set prompts [..., n, d] to the embeddings of the first n tokens of `words`."""
    tokens.copy_(tower.word_vectors(text_tokens(tokenizer, words)[: tokens.shape[-2]]))


class ClassPrompts(PromptModule):
    """One context per class: `tokens` [c, n, d], read as c * n rows of the first layer (CoOp's class-specific)."""

    def __init__(self, num_classes: int, num_tokens: int, width: int, *, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(num_classes, num_tokens, width, dtype=dtype, device=device))
        nn.init.normal_(self.tokens, std=CLIP_PROMPT_STD)

    def forward(self, source: Tensor | None = None, batch_size: int | None = None) -> Tensor:
        """All contexts one after another, [1, c * n, d]."""
        return self.tokens.flatten(0, 1).unsqueeze(0)


class NamedPrompts(PromptModule):
    """Class-name tokens [m, d], the m tokens of all names one after another, behind a context or without one (PTNL).

    The rows of the first layer are those of the context, then those of the names.
    """

    def __init__(self, context: PromptModule | None, names: Tensor):
        super().__init__()
        self.tokens = None if context is None else context.tokens
        self.name_tokens = nn.Parameter(names)

    def forward(self, source: Tensor | None = None, batch_size: int | None = None) -> Tensor:
        """All rows, [1, rows, d]."""
        context = [] if self.tokens is None else [self.tokens.flatten(0, 1)]
        return torch.cat([*context, self.name_tokens]).unsqueeze(0)


class ClassFeatures(PromptModule):
    """Class features themselves, `weight` [c, e]: a linear head in the joint space of size e, N(0, 1 / e)."""

    def __init__(self, num_classes: int, feature_dim: int, *, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, feature_dim, dtype=dtype, device=device))
        nn.init.normal_(self.weight, std=feature_dim**-0.5)

    def forward(self, source: Tensor | None = None, batch_size: int | None = None) -> Tensor:
        """The head, [c, e]."""
        return self.weight
