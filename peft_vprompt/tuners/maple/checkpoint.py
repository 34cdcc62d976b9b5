"""MaPLe's checkpoints."""

from __future__ import annotations

import torch

from ..base.checkpoint_layout import Layout, State, numbered, require
from .config import MaPLeConfig


def read(state: State) -> Layout:
    """Read muzairkhattak/multimodal-prompt-learning `trainers/maple.py`."""
    first = require(state, "prompt_learner.ctx", "maple")
    deep = numbered(state, "prompt_learner.compound_prompts_text.{}")
    weights = [require(state, "prompt_learner.proj.weight", "maple")]
    weights += numbered(state, "prompt_learner.compound_prompt_projections.{}.weight")
    biases = [require(state, "prompt_learner.proj.bias", "maple")]
    biases += numbered(state, "prompt_learner.compound_prompt_projections.{}.bias")
    values = {"num_virtual_tokens": first.shape[0], "prompt_depth": 1 + len(deep), "coupling": "linear"}
    if values["prompt_depth"] != len(weights):
        values["vision_prompt_depth"] = len(weights)
    tensors = {
        ("text", "tokens"): torch.stack([first, *deep]),
        ("vision", "weight"): torch.stack(weights),
        ("vision", "bias"): torch.stack(biases),
    }
    return Layout(MaPLeConfig, values, tensors)
