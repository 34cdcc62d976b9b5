"""Where prompts stand among the tokens: rows of their own, or added to those there are.

Shapes: b = batch, s = rows, n = prompts, d = width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


def insert(hidden: Tensor, prompts: Tensor, start: int) -> Tensor:
    """Put prompts [n, d] or [b, n, d] between the rows of `hidden` [b, s, d], before row `start`: [b, s + n, d]."""
    return torch.cat([hidden[:, :start], expand(prompts, hidden), hidden[:, start:]], dim=1)


def replace(hidden: Tensor, prompts: Tensor, start: int) -> Tensor:
    """Put prompts [n, d] or [b, n, d] in the place of the rows `start ...` of `hidden` [b, s, d]: [b, s, d]."""
    return torch.cat([hidden[:, :start], expand(prompts, hidden), hidden[:, start + prompts.shape[-2] :]], dim=1)


def remove(hidden: Tensor, rows: slice) -> Tensor:
    """Take the n rows `rows` out of `hidden` [b, s, d]: [b, s - n, d]."""
    return torch.cat([hidden[:, : rows.start], hidden[:, rows.stop :]], dim=1)


def expand(prompts: Tensor, hidden: Tensor) -> Tensor:
    """Give each item of the batch `hidden` [b, s, d] its prompts, [n, d] or [b, n, d], in the dtype of `hidden`: [b, n, d]."""
    return prompts.to(hidden.dtype).expand(hidden.shape[0], -1, -1)


class InsertionRule(Protocol):
    """How prompts [n, d] or [b, n, d] are put among the tokens [b, s, d]."""

    @property
    def in_layer(self) -> bool:
        """Whether the prompts of layer 0 come in right in front of it, and not among the embedded tokens."""
        ...

    def insert(self, hidden: Tensor, prompts: Tensor) -> Tensor:
        """Put the first prompts to tokens that have none yet."""

    def replace(self, hidden: Tensor, prompts: Tensor) -> Tensor:
        """Put the prompts of this layer into tokens that carry those of an earlier one."""

    def prompt_rows(self, num_prompts: int) -> slice:
        """Return the rows that are prompts and nothing else."""


@dataclass(frozen=True)
class InsertRows:
    """Prompts are rows of their own from row `start`; each layer's take the place of those before.

    Attributes:
        start: the first of these rows.
        in_layer: those of layer 0 come in right in front of it, too, and not among the embedded tokens (MMRL).
    """

    start: int
    in_layer: bool = field(default=False, kw_only=True)

    def insert(self, hidden: Tensor, prompts: Tensor) -> Tensor:
        """Insert the prompts as new rows: [b, s + n, d]."""
        return insert(hidden, prompts, self.start)

    def replace(self, hidden: Tensor, prompts: Tensor) -> Tensor:
        """Replace the rows of the prompts before: [b, s, d]."""
        return replace(hidden, prompts, self.start)

    def prompt_rows(self, num_prompts: int) -> slice:
        """Return the n rows from `start` on."""
        return slice(self.start, self.start + num_prompts)


@dataclass(frozen=True)
class BlendRows(InsertRows):
    """As `InsertRows`, but each layer's prompts are mixed with what has become of those before.

    Attributes:
        share: share of the new prompts.
    """

    share: float

    def replace(self, hidden: Tensor, prompts: Tensor) -> Tensor:
        """Replace the rows of the prompts before by share * prompts + (1 - share) * rows: [b, s, d]."""
        before = hidden[:, self.prompt_rows(prompts.shape[-2])]
        return super().replace(hidden, self.share * expand(prompts, hidden) + (1 - self.share) * before)


@dataclass(frozen=True)
class ReplaceScattered:
    """Prompts take the place of rows anywhere in the batch; those of the first layer are in it already.

    Attributes:
        rows: [m] rows of the batch [b, s, d], counted through all of its items.
        sources: [m] which of the prompts [n, d] each of them shows.
    """

    rows: Tensor
    sources: Tensor
    in_layer = False

    def insert(self, hidden: Tensor, prompts: Tensor) -> Tensor:
        """Return the tokens as they are."""
        return hidden

    def replace(self, hidden: Tensor, prompts: Tensor) -> Tensor:
        """Put the prompts into their rows: [b, s, d]."""
        shown = prompts.index_select(0, self.sources).to(hidden.dtype)
        return hidden.flatten(0, 1).index_copy(0, self.rows, shown).reshape(hidden.shape)

    def prompt_rows(self, num_prompts: int) -> slice:
        """Return no rows: they do not stand together."""
        return slice(0, 0)


@dataclass(frozen=True)
class AddToTokens:
    """Prompts are added to the tokens: one to each of them, or the same one to all."""

    in_layer = False

    def insert(self, hidden: Tensor, prompts: Tensor) -> Tensor:
        """Add the prompts to the tokens: [b, s, d].

        Raises:
            ValueError: there is one prompt per token, and these images have another number of tokens.
        """
        if prompts.shape[-2] not in (1, hidden.shape[1]):
            raise ValueError(
                f"There is one prompt for each of {prompts.shape[-2]} tokens. Received: {hidden.shape[1]} tokens. "
                "Resize the images, or use location='add-1' or 'prepend'."
            )
        return hidden + expand(prompts, hidden)

    replace = insert

    def prompt_rows(self, num_prompts: int) -> slice:
        """Return no rows: every row is a token."""
        return slice(0, 0)


def insert_prompts(
    hidden: Tensor, prompts: Tensor | Sequence[Tensor | None] | None, rule: InsertionRule | None, step: int
) -> Tensor:
    """Put the prompts of the `step`-th layer from the first prompted one on, if there are any, to its input [b, s, d]."""
    if prompts is None or not 0 <= step < len(prompts) or prompts[step] is None:
        return hidden
    # pyrefly: ignore[missing-attribute]  # prompts come with their rule
    return (rule.replace if step else rule.insert)(hidden, prompts[step])
