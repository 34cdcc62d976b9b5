"""IVLP's checkpoints."""

from __future__ import annotations

from ..base.checkpoint_layout import Layout, State, free_visual_prompts, numbered, of_all_layers, refuse, require
from ..maple.config import MaPLeConfig


def read(state: State, method: str = "ivlp") -> Layout:
    """Read muzairkhattak/multimodal-prompt-learning `trainers/independentVL.py`; either side may be missing.

    `method` is the name that messages say: other methods keep their prompts under the same names.
    """
    refuse(state, ("prompt_learner.proj.weight",), method, "maple")
    vision = free_visual_prompts(state, method)
    text = []
    if "prompt_learner.ctx" in state or not vision:
        text = [require(state, "prompt_learner.ctx", method, 2)]
        text += numbered(state, "text_encoder.transformer.resblocks.{}.VPT_shallow", method, 2, start=1)
    values = {"coupling": "none", "text_prompt_depth": len(text), "vision_prompt_depth": len(vision)}
    tensors = {}
    if text:
        values["text_num_virtual_tokens"] = text[0].shape[0]
        tensors["text", "tokens"] = of_all_layers(text, "text prompts")
    if vision:
        values["vision_num_virtual_tokens"] = vision[0].shape[0]
        tensors["vision", "tokens"] = of_all_layers(vision, "visual prompts")
    return Layout(MaPLeConfig, values, tensors)
