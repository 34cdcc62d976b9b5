"""CoOp's checkpoints."""

from __future__ import annotations

from ..base.checkpoint_layout import Layout, State, context, refuse
from .config import ContextOptConfig


def read(state: State) -> Layout:
    """Read KaiyangZhou/CoOp `trainers/coop.py`: `ctx` [n, d], or [classes, n, d] where class-specific."""
    values, tokens = context(state, "coop")
    refuse(state, ("meta_net.linear1.weight",), "coop", "cocoop")
    return Layout(ContextOptConfig, values, {("text", "tokens"): tokens})
