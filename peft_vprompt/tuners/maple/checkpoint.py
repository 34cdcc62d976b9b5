"""MaPLe's checkpoints."""

from __future__ import annotations

from ..base.checkpoint_layout import Layout, State, numbered, of_all_layers, require
from .config import MaPLeConfig


def read(state: State) -> Layout:
    """Read muzairkhattak/multimodal-prompt-learning `trainers/maple.py`."""
    first = require(state, "prompt_learner.ctx", "maple", 2)
    deep = numbered(state, "prompt_learner.compound_prompts_text.{}", "maple", 2)
    weights = [require(state, "prompt_learner.proj.weight", "maple", 2)]
    weights += numbered(state, "prompt_learner.compound_prompt_projections.{}.weight", "maple", 2)
    biases = [require(state, "prompt_learner.proj.bias", "maple", 1)]
    biases += numbered(state, "prompt_learner.compound_prompt_projections.{}.bias", "maple", 1)
    values = {"num_virtual_tokens": first.shape[0], "prompt_depth": 1 + len(deep), "coupling": "linear"}
    if values["prompt_depth"] != len(weights):
        values["vision_prompt_depth"] = len(weights)
    tensors = {
        ("text", "tokens"): of_all_layers([first, *deep], "text prompts"),
        ("vision", "weight"): of_all_layers(weights, "projections"),
        ("vision", "bias"): of_all_layers(biases, "projections' biases"),
    }
    return Layout(MaPLeConfig, values, tensors)
