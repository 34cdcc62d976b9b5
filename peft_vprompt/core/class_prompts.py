"""`ClassPrompts`: the prompts of several classes, laid out for one pass through a text encoder.

Two layouts: `packed_prompts` for causal encoders, where classes share what they begin with, and `padded_prompts` for
bidirectional ones, where each class is a row of its own. What both do is here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassPrompts(ABC):
    """The prompts of c classes, as index tensors.

    Attributes:
        token_ids: token ids, 0 where a learned vector stands; [s] packed, [c, l] padded.
        learned_rows: [m] rows, counted through all of `token_ids`, that hold learned vectors.
        learned_sources: [m] row of the learned prompts that each of them shows.
        start: number of start tokens, behind which a context at the end position stands; causal encoders have one.
    """

    token_ids: Tensor
    learned_rows: Tensor
    learned_sources: Tensor
    start: int = 1

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes."""

    @property
    def num_rows(self) -> int:
        """Token rows that one pass over all classes takes."""
        return self.token_ids.numel()

    def to(self, device: torch.device) -> Self:
        """Return the same prompts with all tensors on `device`; themselves, if they are there already."""
        if self.token_ids.device == device:
            return self
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in values.items() if hasattr(value, "to")})

    @abstractmethod
    def embed(self, encoder: Any, learned: Tensor | None) -> Tensor:
        """Return the input of the first layer, with the learned vectors in their rows.

        `encoder` is a `core.encoder.TextEmbedding` of the kind that the layout is for.
        `learned` is [n, d], or [b, n, d] where each of b images has vectors of its own; None where nothing is learned.
        The result is [b, s, d] packed (b = 1 without images), [c, l, d] or [b * c, l, d] padded.
        """

    def put_learned(self, vectors: Tensor, learned: Tensor | None) -> Tensor:
        """Return the token vectors [s, d] with the learned ones in their rows, [b, s, d].

        `learned` is [n, d] or [b, n, d]; b is 1 in the first case, and where nothing is learned.
        """
        if not self.learned_rows.numel():
            return vectors.unsqueeze(0)
        # pyrefly: ignore[missing-attribute]  # rows to fill come with vectors
        shown = learned.reshape(-1, *learned.shape[-2:])[:, self.learned_sources].to(vectors.dtype)
        # Repeated, not expanded: Inductor (torch 2.13) writes all items of an expanded batch into one.
        return vectors.repeat(shown.shape[0], 1, 1).index_copy(1, self.learned_rows, shown)
