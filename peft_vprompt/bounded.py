"""Large computations in bounded memory: piece by piece, each computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


T = TypeVar("T")


def piecewise(function: Callable[[T], Tensor], pieces: Sequence[T], dim: int = 0) -> Tensor:
    """The results of `function` for all pieces, joined along `dim`.

    One piece is simply computed. Of several, only the results are kept for the backward pass, which computes the
    pieces again one by one: the memory is that of the largest piece.
    """
    if len(pieces) == 1:
        return function(pieces[0])
    if not torch.is_grad_enabled():
        return torch.cat([function(piece) for piece in pieces], dim)
    return torch.cat([checkpoint(function, piece, use_reentrant=False) for piece in pieces], dim)
