"""RPO's checkpoints."""

from __future__ import annotations

from ..base.checkpoint_layout import Layout, State, require
from .config import ReadOnlyPromptConfig


def read(state: State) -> Layout:
    """Read mlvlab/RPO `trainers/rpo.py`: `text_prompt` [K, text width], `img_prompt` [K, image width]."""
    text, image = require(state, "text_prompt", "rpo", 2), require(state, "img_prompt", "rpo", 2)
    tensors = {("text", "tokens"): text.unsqueeze(0), ("vision", "tokens"): image.unsqueeze(0)}
    return Layout(ReadOnlyPromptConfig, {"num_virtual_tokens": text.shape[0]}, tensors)
