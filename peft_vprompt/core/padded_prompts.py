"""`PaddedPrompts`: the prompts of all classes as a batch of padded rows, for text encoders that read both ways.

Where every token reads every other nothing can be shared between classes (see `packed_prompts` for those that read
backwards only): each class is a text of its own, with the learned vectors in their places.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .class_prompts import ClassPrompts
from .encoder import PaddedEmbedding
from .tokenization import TokenSequence


@dataclass(frozen=True, eq=False, kw_only=True)
class PaddedPrompts(ClassPrompts):
    """One row for each class; c = classes, l = longest text, d = width.

    Attributes:
        mask: [c, l] True for real tokens; padding is on the right.
    """

    mask: Tensor

    @property
    def num_classes(self) -> int:
        """Number of classes in the batch."""
        return self.token_ids.shape[0]

    def embed(self, encoder: PaddedEmbedding, learned: Tensor | None) -> Tensor:
        """Return the input of the first layer, [c, l, d].

        `learned` are the learned vectors, [n, d]; for those of b images, [b, n, d], all classes of each: [b * c, l, d].
        """
        vectors = encoder.token_embedding(self.token_ids)
        filled = self.put_learned(vectors.flatten(0, 1), learned).reshape(-1, *vectors.shape[1:])
        return encoder.embed(filled)


def pad_bounded(
    sequences: list[TokenSequence],
    max_rows: int,
    read_only: int = 0,
    *,
    start: int,
    pad_token_id: int,
    length: int | None,
) -> list[PaddedPrompts]:
    """Lay out the token sequences of all classes as batches of at most `max_rows` rows each.

    `start`, `pad_token_id` and `length` are those of `pad`. Read-only prompts (`read_only`) do not exist here.
    """
    size = max(1, max_rows // (length or max(map(len, sequences))))
    parts = [sequences[first : first + size] for first in range(0, len(sequences), size)]
    return [pad(part, start, pad_token_id, length) for part in parts]


def pad(sequences: list[TokenSequence], start: int, pad_token_id: int, length: int | None) -> PaddedPrompts:
    """Lay out the token sequences of all classes as one batch, padded to `length` or, where that is None, to the longest.

    `start` is the number of start tokens, `pad_token_id` what fills up.
    """
    length = length or max(map(len, sequences))
    entries = torch.tensor([ids + [pad_token_id] * (length - len(ids)) for ids in sequences])
    lengths = torch.tensor([[len(ids)] for ids in sequences])
    learned_rows = (entries.flatten() < 0).nonzero().squeeze(1)
    return PaddedPrompts(
        token_ids=entries.clamp(min=0),
        mask=torch.arange(length) < lengths,
        learned_rows=learned_rows,
        learned_sources=-entries.flatten()[learned_rows] - 1,
        start=start,
    )
