"""CLAP's checkpoints."""

from __future__ import annotations

from ..base.checkpoint_layout import Layout, State, require
from .config import CLAPConfig


def read(state: State) -> Layout:
    """Read jusiro/CLAP `trainers/adapters.py`: `prototypes` [c, e] and what they started as, `base_text_features`.

    How strongly each class was held is not in it; the adapter says nothing of it until its `set_support` is called.
    """
    tensors = {"weight": "prototypes", "start": "base_text_features"}
    return Layout(
        CLAPConfig, {}, {("readout", ours): require(state, theirs, "clap", 2) for ours, theirs in tensors.items()}
    )
