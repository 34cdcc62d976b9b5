"""`ClassPrompts`: the prompts of several classes, laid out for one pass through a text encoder.

Two layouts: `packed_prompts` for causal encoders, where classes share what they begin with, and `padded_prompts` for
bidirectional ones, where each class is a row of its own. What both do is here.
"""

from __future__ import annotations

from dataclasses import Field, fields, replace
from typing import Any, ClassVar, Protocol, Self, TypeVar

import torch
from torch import Tensor


class ClassPrompts(Protocol):
    """The prompts of c classes, as index tensors: a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def token_ids(self) -> Tensor:
        """Token ids, 0 where a learned vector stands; [rows] packed, [c, l] padded."""

    @property
    def learned_rows(self) -> Tensor:
        """[m] rows, counted through all of `token_ids`, that hold learned vectors."""

    @property
    def learned_sources(self) -> Tensor:
        """[m] row of the learned prompts that each of them shows."""

    @property
    def start(self) -> int:
        """Number of start tokens, behind which a context at the end position stands."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""

    @property
    def num_rows(self) -> int:
        """Token rows that one pass over all classes takes."""

    def to(self, device: torch.device) -> Self:
        """Return the same prompts with all tensors on `device`."""

    def embed(self, encoder: Any, learned: Tensor | None) -> Tensor:
        """Return the input of the first layer, with the learned vectors in their rows.

        `encoder` is a `core.encoder.TextEmbedding` of the kind that the layout is for.
        `learned` is [n, d], or [b, n, d] where each of b images has vectors of its own; None where nothing is learned.
        The result is [b, rows, d] packed (b = 1 without images), [c, l, d] or [b * c, l, d] padded.
        """


P = TypeVar("P", bound=ClassPrompts)


def move(prompts: P, device: torch.device) -> P:
    """Return `prompts` with all tensors on `device`; themselves, if they are there already."""
    if prompts.token_ids.device == device:
        return prompts
    values = {field.name: getattr(prompts, field.name) for field in fields(prompts)}
    return replace(prompts, **{name: value.to(device) for name, value in values.items() if hasattr(value, "to")})


def put_learned(prompts: ClassPrompts, vectors: Tensor, learned: Tensor | None) -> Tensor:
    """Return the token vectors [s, d] with the learned ones in their rows, [b, s, d].

    `learned` is [n, d] or [b, n, d]; b is 1 in the first case, and where nothing is learned.
    """
    if not prompts.learned_rows.numel():
        return vectors.unsqueeze(0)
    # pyrefly: ignore[missing-attribute]  # rows to fill come with vectors
    shown = learned.reshape(-1, *learned.shape[-2:])[:, prompts.learned_sources].to(vectors.dtype)
    # Repeated, not expanded: Inductor (torch 2.13) writes all items of an expanded batch into one.
    return vectors.repeat(shown.shape[0], 1, 1).index_copy(1, prompts.learned_rows, shown)
