"""Computations in bounded memory: what is computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


T = TypeVar("T")


def checkpointed_chunks(
    function: Callable[[T], Tensor], pieces: Sequence[T], sizes: Sequence[int], limit: int
) -> list[Tensor]:
    """Return the results of `function` for all pieces, in their order.

    For the backward pass, the last pieces are kept as far as they fit into `limit` together (`sizes` says what each
    takes; one is always kept). Of all pieces before them only the results are kept, and the backward pass computes
    these pieces again one by one. It begins with the last pieces, so these are gone by then, and the memory is that of
    `limit` or of one piece.
    """
    if not torch.is_grad_enabled():
        return [function(piece) for piece in pieces]
    kept = max(1, sum(together <= limit for together in accumulate(reversed(sizes))))
    again = [checkpoint(function, piece, use_reentrant=False) for piece in pieces[:-kept]]
    return again + [function(piece) for piece in pieces[-kept:]]


def recompute(layer: nn.Module, function: Callable[..., Tensor], *args) -> Tensor:
    """Return `function(*args)`, computed again in the backward pass where gradient checkpointing of `layer` is on.

    For computations that take the place of a Hugging Face layer's own call: they are to save memory as that layer does.
    Tensors that gradients flow to go into `args`: reentrant checkpointing sees no others.
    """
    if layer.training and getattr(layer, "gradient_checkpointing", False):
        return layer._gradient_checkpointing_func(function, *args)
    return function(*args)
