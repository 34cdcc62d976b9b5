"""CoCoOp's checkpoints."""

from __future__ import annotations

from ..base.checkpoint_layout import Layout, State, require
from .config import CoCoOpConfig


def read(state: State) -> Layout:
    """Read KaiyangZhou/CoOp `trainers/cocoop.py`: `ctx` [n, d] and `meta_net`."""
    context = require(state, "ctx", "cocoop", 2)
    tensors = {("text", "tokens"): context.unsqueeze(0)}
    for ours, theirs in (("meta_net.0", "meta_net.linear1"), ("meta_net.2", "meta_net.linear2")):
        for part, rank in (("weight", 2), ("bias", 1)):
            tensors["text", f"{ours}.{part}"] = require(state, f"{theirs}.{part}", "cocoop", rank)
    length = context.shape[0]
    words = CoCoOpConfig().num_virtual_tokens == length  # else it cannot have started from the default words
    return Layout(CoCoOpConfig, {"num_virtual_tokens": length}, tensors, {} if words else {"prompt_init": "random"})
