"""Free vectors: contexts, prompts of many layers, contexts of single classes, learned class names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..core.tokenization import encode_text, num_start_tokens
from .base import PromptModule


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..backbones.text import TextView


#: Standard deviation of randomly initialised contexts and prompts in the CLIP methods (CoOp section 3, MaPLe).
CLIP_PROMPT_STD = 0.02


class TokenPrompts(PromptModule):
    """Free vectors `tokens` [j, n, d], started as N(0, 0.02 ** 2)."""

    def __init__(
        self, depth: int, num_tokens: int, width: int, *, dtype: torch.dtype, device: torch.device, **options
    ):
        super().__init__(**options)
        self.tokens = nn.Parameter(torch.empty(depth, num_tokens, width, dtype=dtype, device=device))
        nn.init.normal_(self.tokens, std=CLIP_PROMPT_STD)

    def forward(self, **inputs) -> Tensor:
        """Return `tokens` as they are."""
        return self.tokens


@torch.no_grad()
def start_from_words(tokens: Tensor, view: TextView, tokenizer: PreTrainedTokenizerBase, words: str) -> None:
    """Set prompts [..., n, d] to the embeddings of the first n tokens of `words` and the end token; any others stay."""
    ids = encode_text(tokenizer, words)
    ids = ids[num_start_tokens(tokenizer, ids) :][: tokens.shape[-2]]
    tokens[..., : len(ids), :] = view.word_vectors(ids)


class ClassContexts(PromptModule):
    """One context per class: `tokens` [c, n, d], read as c * n rows of the first layer (CoOp's class-specific)."""

    def __init__(
        self, num_classes: int, num_tokens: int, width: int, *, dtype: torch.dtype, device: torch.device, **options
    ):
        super().__init__(**options)
        self.tokens = nn.Parameter(torch.empty(num_classes, num_tokens, width, dtype=dtype, device=device))
        nn.init.normal_(self.tokens, std=CLIP_PROMPT_STD)

    def forward(self, **inputs) -> Tensor:
        """Return all contexts one after another, [1, c * n, d]."""
        return self.tokens.flatten(0, 1).unsqueeze(0)


class ClassNameTokens(PromptModule):
    """Class-name tokens [m, d], the m tokens of all names one after another, behind a context or without one (PTNL).

    The rows of the first layer are those of the context, then those of the names.
    """

    def __init__(self, context: PromptModule | None, names: Tensor):
        super().__init__()
        self.tokens = None if context is None else context.tokens
        self.name_tokens = nn.Parameter(names)

    def forward(self, **inputs) -> Tensor:
        """Return all rows, [1, rows, d]."""
        context = [] if self.tokens is None else [self.tokens.flatten(0, 1)]
        return torch.cat([*context, self.name_tokens]).unsqueeze(0)
