"""ProGrad's checkpoints."""

from __future__ import annotations

from ..base.checkpoint_layout import Layout, State, require
from .config import ProGradConfig


def read(state: State) -> Layout:
    """Read BeierZhu/Prompt-align `trainers/prograd.py`: `ctx` [n, d], as CoOp's."""
    context = require(state, "ctx", "prograd", 2)
    values = {"num_virtual_tokens": context.shape[0]}
    return Layout(ProGradConfig, values, {("text", "tokens"): context.unsqueeze(0)})
