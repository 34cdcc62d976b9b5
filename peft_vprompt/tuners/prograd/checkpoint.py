"""ProGrad's checkpoints."""

from __future__ import annotations

from ..base.checkpoint_layout import Layout, State, shared_context
from .config import ProGradConfig


def read(state: State) -> Layout:
    """Read BeierZhu/Prompt-align `trainers/prograd.py`: `ctx` [n, d], as CoOp's."""
    context = shared_context(state, "prograd")
    length = context.shape[0]
    too_short = length < len((ProGradConfig().words or "").split())  # it cannot have started from the default words
    fallbacks = {"prompt_init": "random"} if too_short else {}
    return Layout(ProGradConfig, {"num_virtual_tokens": length}, {("text", "tokens"): context.unsqueeze(0)}, fallbacks)
