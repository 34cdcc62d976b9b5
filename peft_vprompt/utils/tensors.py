"""Checks of tensors that a user hands over."""

from __future__ import annotations

import torch
from torch import Tensor


def require_dense(tensor: Tensor, name: str) -> None:
    """Refuse a tensor that is no plain table of numbers.

    Raises:
        TypeError: names it and its kind.
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        kind = "nested" if tensor.is_nested else "quantised" if tensor.is_quantized else str(tensor.layout)
        raise TypeError(f"Expected {name} as a dense tensor. Received: {name} of kind {kind}. Use {name}.to_dense().")
