"""TCP's checkpoints."""

from __future__ import annotations

from ..base.checkpoint_layout import Layout, State, require
from .config import TCPConfig


def read(state: State) -> Layout:
    """Read htyao89/Textual-based_Class-aware_prompt_tuning `trainers/tcp.py`: `ctx` [n, d] and a network."""
    context = require(state, "ctx", "tcp", 2)
    tensors = {("text", "tokens"): context.unsqueeze(0)}
    for ours, theirs in {0: "linear1", 2: "linear2"}.items():
        for kind, rank in {"weight": 2, "bias": 1}.items():
            tensors["text", f"meta_net.{ours}.{kind}"] = require(state, f"meta_net.{theirs}.{kind}", "tcp", rank)
    num_class_tokens = state["meta_net.linear2.bias"].shape[0] // context.shape[1]
    return Layout(TCPConfig, {"num_virtual_tokens": context.shape[0], "num_class_tokens": num_class_tokens}, tensors)
