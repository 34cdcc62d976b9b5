"""Large computations in bounded memory: piece by piece, most of them computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


T = TypeVar("T")


def checkpointed_chunks(
    function: Callable[[T], Tensor], pieces: Sequence[T], sizes: Sequence[int], limit: int
) -> list[Tensor]:
    """The results of `function` for all pieces.

    For the backward pass, the last pieces are kept as far as they fit into `limit` together (`sizes` says what each
    takes; one is always kept). Of the others only the results are, and the backward pass computes them again one by
    one. It begins with the last pieces, so these are gone by then, and the memory is that of `limit` or of one piece.
    """
    if not torch.is_grad_enabled():
        return [function(piece) for piece in pieces]
    kept = max(1, sum(together <= limit for together in accumulate(reversed(sizes))))
    again = [checkpoint(function, piece, use_reentrant=False) for piece in pieces[:-kept]]
    return again + [function(piece) for piece in pieces[-kept:]]
