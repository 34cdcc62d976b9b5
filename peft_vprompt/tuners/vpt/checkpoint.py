"""VPT's checkpoints: on a ViT or a Swin, and on CLIP."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ...backbones.base import VisionView
from ...errors import AdapterMismatchError
from ..base.checkpoint_layout import Layout, State, free_visual_prompts, numbered, refuse, require
from ..base.config import PromptConfig
from .config import STRIP_LOCATIONS, TOKEN_LOCATIONS, VisualPromptConfig


def read_clip(state: State) -> Layout:
    """Read muzairkhattak/multimodal-prompt-learning `trainers/vpt.py`: prompts in CLIP's image encoder only."""
    require(state, "image_encoder.VPT", "vpt-clip")
    refuse(state, ("prompt_learner.ctx",), "vpt-clip", "ivlp")
    prompts = free_visual_prompts(state)
    values = {"num_virtual_tokens": prompts[0].shape[0], "deep": len(prompts) > 1}
    if len(prompts) > 1:
        values["num_deep_layers"] = len(prompts)
    return Layout(VisualPromptConfig, values, {("vision", "tokens"): torch.stack(prompts)})


def read(state: State) -> Layout:
    """Read KMnP/vpt `src/models/vit_prompt/`: prompts of any location on ViT, or tokens on Swin, and the linear head."""
    swin = any(key.startswith(("enc.prompt_embeddings", "enc.deep_prompt_embeddings")) for key in state)
    prefix = "enc." if swin else "enc.transformer."
    if f"{prefix}prompt_embeddings_tb" in state:
        layout = vpt_border(state, prefix)
    else:
        prompts = require(state, f"{prefix}prompt_embeddings", "vpt")
        tokens, embedding = (vpt_stages, "patch_embed.proj") if swin else (vpt_tokens, "embeddings.patch_embeddings")
        layout = tokens(state, prompts) if prompts.ndim == 3 else vpt_pixels(state, prompts, prefix + embedding)
    layout.architecture = "swin" if swin else "vit"
    for name in ("weight", "bias"):
        if (key := f"head.last_layer.{name}") in state:
            layout.tensors["head", name] = state[key]
    return layout


def vpt_tokens(state: State, prompts: Tensor) -> Layout:
    """Read tokens [1, n, d] of the first layer, those of the others [j - 1, n, d], and an optional projection."""
    prefix = "enc.transformer."
    deep = state.get(f"{prefix}deep_prompt_embeddings")
    tokens = prompts if deep is None else torch.cat([prompts, deep])
    values = {"num_virtual_tokens": tokens.shape[1], "deep": deep is not None}
    if deep is not None:
        values["num_deep_layers"] = tokens.shape[0]
    tensors = {("vision", "tokens"): tokens}
    if f"{prefix}prompt_proj.weight" in state:
        values["projection_dim"] = tokens.shape[2]
        tensors["vision", "projection_weight"] = state[f"{prefix}prompt_proj.weight"]
        tensors["vision", "projection_bias"] = require(state, f"{prefix}prompt_proj.bias", "vpt")
    return Layout(VisualPromptConfig, values, tensors, choices={"location": TOKEN_LOCATIONS})


def vpt_pixels(state: State, prompts: Tensor, embedding: str) -> Layout:
    """Read a strip of patches [1, 3, P, n * P], or channels [1, n, H, W] with the patch `embedding` that takes them."""
    weight, extra = state.get(f"{embedding}.weight"), state.get(f"{embedding}.weight.extra_channels")
    tensors: dict[tuple[str, str], Any] = {("vision", "pixels"): prompts}
    if extra is None and (weight is None or weight.shape[1] == prompts.shape[1]):
        values = {"num_virtual_tokens": prompts.shape[3] // prompts.shape[2]}
        fallbacks, choices = {"location": STRIP_LOCATIONS[0]}, {"location": STRIP_LOCATIONS}
        return Layout(VisualPromptConfig, values, tensors, fallbacks, choices)
    layout = Layout(VisualPromptConfig, {"location": "below", "num_virtual_tokens": prompts.shape[1]}, tensors)
    if extra is None:
        tensors["vision", "patch_weight"] = weight
        tensors["vision", "patch_bias"] = require(state, f"{embedding}.bias", "vpt")
    else:
        layout.complete = functools.partial(with_own_channels, extra)
    return layout


def with_own_channels(extra: Tensor, config: PromptConfig, view: VisionView | None) -> dict[tuple[str, str], Tensor]:
    """Return the patch embedding of a base model with the weights `extra` [d, n, P, P] of new channels.

    Raises:
        AdapterMismatchError: there is no base model.
    """
    if view is None:
        raise AdapterMismatchError(
            "This checkpoint holds only what was added to the patch embedding. Pass base_model, which has the rest."
        )
    own: Any = view.patch_embedding
    weight = torch.cat([own.weight.detach().float().cpu(), extra], dim=1)
    return {("vision", "patch_weight"): weight, ("vision", "patch_bias"): own.bias.detach().float().cpu()}


def vpt_border(state: State, prefix: str) -> Layout:
    """Read a border of p pixels: left and right [1, 3, H, 2p], top and bottom [1, 3, 2p, W + 2p]."""
    top_bottom = require(state, f"{prefix}prompt_embeddings_tb", "vpt")
    left_right = require(state, f"{prefix}prompt_embeddings_lr", "vpt")
    values = {"location": "pad", "num_virtual_tokens": left_right.shape[3] // 2}
    tensors = {("vision", "left_right"): left_right, ("vision", "top_bottom"): top_bottom}
    return Layout(VisualPromptConfig, values, tensors)


def vpt_stages(state: State, prompts: Tensor) -> Layout:
    """Read `swin_transformer.py`: tokens [1, n, d] of the first block, and those of each stage's (other) blocks."""
    stages = numbered(state, "enc.deep_prompt_embeddings_{}")
    values = {"num_virtual_tokens": prompts.shape[1], "deep": bool(stages)}
    layout = Layout(VisualPromptConfig, values)
    if stages:
        stages = [torch.cat([prompts, stages[0]]), *stages[1:]]
        values |= {"num_deep_layers": sum(len(stage) for stage in stages), "location": "prepend"}
        layout.tensors = {("vision", f"tokens_{index}"): tokens for index, tokens in enumerate(stages)}
    else:
        layout.choices = {"location": TOKEN_LOCATIONS}
        # Tokens belong to a stage; what is added to the input does not.
        layout.complete = lambda config, view: {
            # pyrefly: ignore[missing-attribute]  # a VisualPromptConfig
            ("vision", "tokens_0" if config.location == "prepend" else "tokens"): prompts
        }
    return layout
