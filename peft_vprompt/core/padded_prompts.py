"""`PaddedPrompts`: the prompts of all classes as a batch of padded rows, for text encoders that read both ways.

Where every token reads every other nothing can be shared between classes (see `class_prompts` for those that read
backwards only): each class is a text of its own, with the learned vectors in their places.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from .tokenization import TokenSequence


@dataclass(frozen=True)
class PaddedPrompts:
    """Index tensors that describe the batch; c = classes, l = longest text, m = places with learned vectors.

    Attributes:
        token_ids: [c, l] token ids, padding on the right; 0 where a learned vector stands.
        mask: [c, l] True for real tokens.
        learned_places: [m] places of the flattened batch that hold learned vectors.
        learned_sources: [m] row of the learned prompts that each of them shows.
        start: number of start tokens, behind which a context at the end position stands.
    """

    token_ids: Tensor
    mask: Tensor
    learned_places: Tensor
    learned_sources: Tensor
    start: int

    @property
    def num_classes(self) -> int:
        """Number of classes in the batch."""
        return self.token_ids.shape[0]

    @property
    def num_rows(self) -> int:
        """Token rows that one pass over all classes takes."""
        return self.token_ids.numel()

    def to(self, device: torch.device) -> PaddedPrompts:
        """The same prompts with all tensors on `device` (themselves, if they are there already)."""
        if self.token_ids.device == device:
            return self
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "start"}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})

    def embed(self, token_embedding: nn.Module, learned: Tensor | None) -> Tensor:
        """Token vectors [c, l, d]; for learned vectors of b images, [b, rows, d], all classes of each: [b * c, l, d]."""
        vectors = token_embedding(self.token_ids)
        if not self.learned_places.numel():
            return vectors
        learned = learned.reshape(-1, *learned.shape[-2:])[:, self.learned_sources].to(vectors.dtype)
        # Repeated, not expanded: Inductor (torch 2.13) writes all items of an expanded batch into one.
        flat = vectors.flatten(0, 1).repeat(learned.shape[0], 1, 1)
        return flat.index_copy(1, self.learned_places, learned).reshape(-1, *vectors.shape[1:])


def pad_bounded(
    sequences: list[TokenSequence],
    max_rows: int,
    read_only: int = 0,
    *,
    start: int,
    pad_token_id: int,
    length: int | None,
) -> list[PaddedPrompts]:
    """`pad`, in as many batches as it takes to keep each within `max_rows`; read-only prompts do not exist here."""
    size = max(1, max_rows // (length or max(map(len, sequences))))
    parts = [sequences[first : first + size] for first in range(0, len(sequences), size)]
    return [pad(part, start, pad_token_id, length) for part in parts]


def pad(sequences: list[TokenSequence], start: int, pad_token_id: int, length: int | None) -> PaddedPrompts:
    """The token sequences of all classes, padded to `length` or, where that is None, to the longest."""
    length = length or max(map(len, sequences))
    entries = torch.tensor([ids + [pad_token_id] * (length - len(ids)) for ids in sequences])
    lengths = torch.tensor([[len(ids)] for ids in sequences])
    places = (entries.flatten() < 0).nonzero().squeeze(1)
    return PaddedPrompts(
        token_ids=entries.clamp(min=0),
        mask=torch.arange(length) < lengths,
        learned_places=places,
        learned_sources=-entries.flatten()[places] - 1,
        start=start,
    )
