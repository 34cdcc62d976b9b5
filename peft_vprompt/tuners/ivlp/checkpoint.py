"""IVLP's checkpoints."""

from __future__ import annotations

import torch

from ..base.checkpoint_layout import Layout, State, free_visual_prompts, numbered, refuse, require
from ..maple.config import MaPLeConfig


def read(state: State, method: str = "ivlp") -> Layout:
    """Read muzairkhattak/multimodal-prompt-learning `trainers/independentVL.py`; either side may be missing.

    `method` is the name that messages say: other methods keep their prompts under the same names.
    """
    refuse(state, ("prompt_learner.proj.weight",), method, "maple")
    text = [state["prompt_learner.ctx"]] if "prompt_learner.ctx" in state else []
    if text:
        text += numbered(state, "text_encoder.transformer.resblocks.{}.VPT_shallow", 1)
    vision = free_visual_prompts(state)
    if not text and not vision:
        require(state, "prompt_learner.ctx", method)
    values = {"coupling": "none", "text_prompt_depth": len(text), "vision_prompt_depth": len(vision)}
    tensors = {}
    if text:
        values["text_num_virtual_tokens"] = text[0].shape[0]
        tensors["text", "tokens"] = torch.stack(text)
    if vision:
        values["vision_num_virtual_tokens"] = vision[0].shape[0]
        tensors["vision", "tokens"] = torch.stack(vision)
    return Layout(MaPLeConfig, values, tensors)
