"""ProGrad's checkpoints."""

from __future__ import annotations

from ..base.checkpoint_layout import Layout, State, context
from .config import ProGradConfig


def read(state: State) -> Layout:
    """Read BeierZhu/Prompt-align `trainers/prograd.py`: `ctx` [n, d], as CoOp's."""
    values, tokens = context(state, "prograd")
    # Contexts of single classes start at random, and one shorter than the default words cannot have started from them.
    words = not values["class_specific"] and values["num_virtual_tokens"] >= len((ProGradConfig().words or "").split())
    return Layout(ProGradConfig, values, {("text", "tokens"): tokens}, {} if words else {"prompt_init": "random"})
