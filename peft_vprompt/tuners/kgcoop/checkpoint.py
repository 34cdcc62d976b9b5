"""KgCoOp's checkpoints."""

from __future__ import annotations

from ..base.checkpoint_layout import Layout, State, context
from .config import KgCoOpConfig


def read(state: State) -> Layout:
    """Read htyao89/KgCoOp `trainers/kgcoop.py`: `ctx` [n, d], or [classes, n, d] where class-specific.

    The file holds a Meta-Net, bias vectors and an adapter too, which that code creates and never uses.
    """
    values, tokens = context(state, "kgcoop")
    # Contexts of single classes start at random, and the default words are as many as the config's context is long.
    words = not values["class_specific"] and KgCoOpConfig().num_virtual_tokens == values["num_virtual_tokens"]
    return Layout(KgCoOpConfig, values, {("text", "tokens"): tokens}, {} if words else {"prompt_init": "random"})
