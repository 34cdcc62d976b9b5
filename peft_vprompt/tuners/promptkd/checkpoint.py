"""PromptKD's checkpoints."""

from __future__ import annotations

from ..base.checkpoint_layout import Layout, State, free_visual_prompts, of_all_layers, refuse, require
from .config import PromptKDConfig


#: Tensors of the projector, and their dimensions: convolutions of one pixel, and a batch norm between them.
PROJECTOR = {"0.weight": 4, "0.bias": 1, "3.weight": 4, "3.bias": 1}
PROJECTOR |= {f"1.{name}": 1 for name in ("weight", "bias", "running_mean", "running_var")}


def read(state: State) -> Layout:
    """Read a student of zhengli97/PromptKD `trainers/promptkd.py`; the frozen image encoder beside it is left.

    The class features are the teacher's, which has a checkpoint of its own: PromptSRC's.
    """
    refuse(state, ("prompt_learner.ctx",), "promptkd", "promptsrc")
    require(state, "image_encoder.VPT", "promptkd", 2)
    prompts = of_all_layers(free_visual_prompts(state, "promptkd"), "visual prompts")
    tensors = {("vision", "tokens"): prompts}
    for name, rank in PROJECTOR.items():
        tensor = require(state, f"VPT_image_trans.conv1.{name}", "promptkd", rank)
        tensors["vision", f"projector.{name}"] = tensor.flatten(1) if rank == 4 else tensor
    size = tensors["vision", "projector.0.bias"].shape[0]
    values = {"prompt_depth": prompts.shape[0], "num_virtual_tokens": prompts.shape[1], "teacher_dim": size}
    return Layout(PromptKDConfig, values, tensors, needs_teacher=True)
