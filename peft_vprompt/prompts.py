"""Prompt holders: the trainable tensors of one adapter on one tower, and the vectors they stand for.

A holder is called with what its prompts depend on (`source`: the text prompts for a coupling, image features for a
conditional context, the tower's view for pixels; free prompts look at none) and gives prompts [j, n, d] or, where each
image has its own, [j, b, n, d]: j = prompted layers, n = prompts, d = width, b = batch. All parameters are direct
attributes, so that PEFT finds the adapter's name at the same place in each key.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .encode import Place, Rows, Sum
from .tokenization import text_tokens


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .towers import TextTower, VisionTower


#: Standard deviation of randomly initialised contexts and prompts in the CLIP methods (CoOp section 3, MaPLe).
CLIP_PROMPT_STD = 0.02


class PromptHolder(nn.Module, ABC):
    """Base of all holders.

    Attributes:
        text_placement: how a call with `input_ids` shows the prompts on the text tower: "insert" (after the start
            token), "replace" (in place of the first tokens after it), or None where the place of the class name
            would have to be known.
        reads_only: the prompts read the plain tokens and nobody reads them.
        first_layer: layer in front of which the prompts come in.
        pooling: what is read out of an image encoder, see `readout.pool`; "original" is the encoder's own way.
    """

    text_placement: str | None = None
    reads_only: bool = False
    first_layer: int = 0
    pooling: str = "original"

    @abstractmethod
    def forward(self, source: Tensor | None = None, batch_size: int | None = None) -> Tensor | None:
        """The prompts of each layer; see the module's docstring for shapes. None where images alone are changed."""

    def embed(self, tower: VisionTower, pixel_values: Tensor, **options) -> Tensor:
        """Image tokens [b, s, d] that the prompts are to meet; `options` are those of `VisionTower.embed`."""
        return tower.embed(pixel_values, **options)

    def place(self, tower: VisionTower, length: int) -> Place:
        """How the prompts meet `length` image tokens."""
        return Rows(tower.num_prefix_tokens if tower.prompts_first else length)


class TokenPrompts(PromptHolder):
    """Free vectors: `tokens` [j, n, d]."""

    def __init__(self, depth: int, num_tokens: int, width: int, *, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(depth, num_tokens, width, dtype=dtype, device=device))
        nn.init.normal_(self.tokens, std=CLIP_PROMPT_STD)

    def forward(self, source: Tensor | None = None, batch_size: int | None = None) -> Tensor:
        """`tokens` as they are."""
        return self.tokens


@torch.no_grad()
def start_from_words(tokens: Tensor, tower: TextTower, tokenizer: PreTrainedTokenizerBase, words: str) -> None:
    """Set prompts [..., n, d] to the embeddings of the first n tokens of `words`."""
    tokens.copy_(tower.word_vectors(text_tokens(tokenizer, words)[: tokens.shape[-2]]))


class ClassPrompts(PromptHolder):
    """One context per class: `tokens` [c, n, d], read as c * n rows of the first layer (CoOp's class-specific)."""

    def __init__(self, num_classes: int, num_tokens: int, width: int, *, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(num_classes, num_tokens, width, dtype=dtype, device=device))
        nn.init.normal_(self.tokens, std=CLIP_PROMPT_STD)

    def forward(self, source: Tensor | None = None, batch_size: int | None = None) -> Tensor:
        """All contexts one after another, [1, c * n, d]."""
        return self.tokens.flatten(0, 1).unsqueeze(0)


class NamedPrompts(PromptHolder):
    """Class-name tokens [m, d], the m tokens of all names one after another, behind a context or without one (PTNL).

    The rows of the first layer are those of the context, then those of the names.
    """

    def __init__(self, context: PromptHolder | None, names: Tensor):
        super().__init__()
        self.tokens = None if context is None else context.tokens
        self.name_tokens = nn.Parameter(names)

    def forward(self, source: Tensor | None = None, batch_size: int | None = None) -> Tensor:
        """All rows, [1, rows, d]."""
        context = [] if self.tokens is None else [self.tokens.flatten(0, 1)]
        return torch.cat([*context, self.name_tokens]).unsqueeze(0)


class ClassFeatures(PromptHolder):
    """Class features themselves, `weight` [c, e]: a linear head in the joint space of size e, N(0, 1 / e)."""

    def __init__(self, num_classes: int, feature_dim: int, *, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, feature_dim, dtype=dtype, device=device))
        nn.init.normal_(self.weight, std=feature_dim**-0.5)

    def forward(self, source: Tensor | None = None, batch_size: int | None = None) -> Tensor:
        """The head, [c, e]."""
        return self.weight


class LinearCoupling(PromptHolder):
    """Visual prompts as a linear image of the text prompts, one map per layer (MaPLe, equation 6).

    `weight` [j, d, text width] and `bias` [j, d] start like `nn.Linear`'s.
    """

    def __init__(self, depth: int, text_width: int, width: int, *, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(depth, width, text_width, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.empty(depth, width, dtype=dtype, device=device))
        bound = 1 / math.sqrt(text_width)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, source: Tensor | None = None, batch_size: int | None = None) -> Tensor:
        """Map the text prompts [>= j, n, text width] of the first j layers."""
        depth = self.weight.shape[0]
        return torch.baddbmm(self.bias[:, None], source[:depth], self.weight.transpose(1, 2))


class ConditionalContext(PromptHolder):
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


def vpt_bound(patch_size: int, size: int) -> float:
    """VPT's prompts of `size` numbers start as U(-v, v) with this v (Xavier's for a patch embedding)."""
    return math.sqrt(6 / (3 * patch_size**2 + size))


class VisualPrompts(PromptHolder):
    """VPT's prompts: `tokens` [j, n, p], optionally projected from p to the tower's width, with dropout per image.

    Started as U(-v, v), v = sqrt(6 / (3 * patch size ** 2 + p)); the projection with kaiming_normal (fan out).
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
        dtype: torch.dtype,
        device: torch.device,
    ):
        super().__init__()
        self.depth, self.dropout, self.added = depth, dropout, added
        size = projection_dim or width
        bound = vpt_bound(patch_size, size)
        factory = {"dtype": dtype, "device": device}
        self.tokens = nn.Parameter(torch.empty(1 if shared else depth, num_tokens, size, **factory))
        nn.init.uniform_(self.tokens, -bound, bound)
        self.projection_weight = self.projection_bias = None
        if projection_dim is not None:
            self.projection_weight = nn.Parameter(torch.empty(width, size, **factory))
            self.projection_bias = nn.Parameter(torch.zeros(width, **factory))
            nn.init.kaiming_normal_(self.projection_weight, mode="fan_out")

    def forward(self, source: Tensor | None = None, batch_size: int | None = None) -> Tensor:
        """[j, n, d]; [j, b, n, d] while dropout is active."""
        tokens = self.tokens
        if self.projection_weight is not None:
            tokens = F.linear(tokens, self.projection_weight, self.projection_bias)
        tokens = tokens.expand(self.depth, -1, -1)
        if self.training and self.dropout and batch_size is not None:
            tokens = F.dropout(tokens[:, None].expand(-1, batch_size, -1, -1), self.dropout)
        return tokens

    def place(self, tower: VisionTower, length: int) -> Place:
        """Beside the tokens, or added to them."""
        return Sum() if self.added else super().place(tower, length)


class StagedPrompts(PromptHolder):
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
        first_layer: int = 0,
        patch_size: int,
        dropout: float = 0.0,
        dtype: torch.dtype,
        device: torch.device,
    ):
        super().__init__()
        self.dropout, self.num_stages = dropout, len(stages)
        bound, start = vpt_bound(patch_size, stages[0][1]), 0
        for index, (layers, width) in enumerate(stages):
            count = min(start + layers, first_layer + depth) - max(start, first_layer)
            start += layers
            tokens = None
            if count > 0:
                shape = (count, num_tokens, width)
                tokens = nn.Parameter(torch.empty(shape, dtype=dtype, device=device).uniform_(-bound, bound))
            self.register_parameter(f"tokens_{index}", tokens)

    def forward(self, source: Tensor | None = None, batch_size: int | None = None) -> list[Tensor]:
        """The prompts of each layer, [n, d] or, while dropout is active, [b, n, d]."""
        stages = [getattr(self, f"tokens_{index}") for index in range(self.num_stages)]
        prompts = [layer for tokens in stages if tokens is not None for layer in tokens]
        if self.training and self.dropout and batch_size is not None:
            return [F.dropout(layer.expand(batch_size, -1, -1), self.dropout) for layer in prompts]
        return prompts
