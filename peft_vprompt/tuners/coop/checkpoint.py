"""CoOp's checkpoints."""

from __future__ import annotations

from ..base.checkpoint_layout import Layout, State, refuse, require
from .config import ContextOptConfig


def read(state: State) -> Layout:
    """Read KaiyangZhou/CoOp `trainers/coop.py`: `ctx` [n, d], or [classes, n, d] where class-specific."""
    context = require(state, "ctx", "coop", 2, 3)
    refuse(state, ("meta_net.linear1.weight",), "coop", "cocoop")
    values = {"num_virtual_tokens": context.shape[-2], "class_specific": context.ndim == 3}
    tokens = context if context.ndim == 3 else context.unsqueeze(0)
    return Layout(ContextOptConfig, values, {("text", "tokens"): tokens})
