"""KgCoOp's checkpoints."""

from __future__ import annotations

from ..base.checkpoint_layout import Layout, State, shared_context
from .config import KgCoOpConfig


def read(state: State) -> Layout:
    """Read htyao89/KgCoOp `trainers/kgcoop.py`: `ctx` [n, d].

    The file holds a Meta-Net, bias vectors and an adapter too, which that code creates and never uses.
    """
    context = shared_context(state, "kgcoop")
    length = context.shape[0]
    words = KgCoOpConfig().num_virtual_tokens == length  # else it cannot have started from the default words
    fallbacks = {} if words else {"prompt_init": "random"}
    return Layout(KgCoOpConfig, {"num_virtual_tokens": length}, {("text", "tokens"): context.unsqueeze(0)}, fallbacks)
