"""VPT's checkpoints: on a ViT or a Swin, and on CLIP."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

from ...backbones.vision import VisionView
from ...errors import AdapterMismatchError
from ..base.checkpoint_layout import Layout, State, free_visual_prompts, numbered, of_all_layers, refuse, require
from ..base.config import PromptConfig
from .config import STRIP_LOCATIONS, TOKEN_LOCATIONS, VisualPromptConfig


def read_clip(state: State) -> Layout:
    """Read muzairkhattak/multimodal-prompt-learning `trainers/vpt.py`: prompts in CLIP's image encoder only."""
    require(state, "image_encoder.VPT", "vpt-clip", 2)
    refuse(state, ("prompt_learner.ctx",), "vpt-clip", "ivlp")
    prompts = free_visual_prompts(state, "vpt-clip")
    values = {"num_virtual_tokens": prompts[0].shape[0], "deep": len(prompts) > 1}
    if len(prompts) > 1:
        values["num_deep_layers"] = len(prompts)
    return Layout(VisualPromptConfig, values, {("vision", "tokens"): of_all_layers(prompts, "prompts")})


def read(state: State) -> Layout:
    """Read KMnP/vpt `src/models/vit_prompt/`: prompts of any location on ViT, or tokens on Swin, and the linear head.

    Raises:
        AdapterMismatchError: a tensor is missing or of another shape, or the head has hidden layers.
    """
    swin = any(key.startswith(("enc.prompt_embeddings", "enc.deep_prompt_embeddings")) for key in state)
    prefix = "enc." if swin else "enc.transformer."
    if f"{prefix}prompt_embeddings_tb" in state:
        layout = vpt_border(state, prefix)
    else:
        prompts = require(state, f"{prefix}prompt_embeddings", "vpt", 3, 4)
        tokens, embedding = (vpt_stages, "patch_embed.proj") if swin else (vpt_tokens, "embeddings.patch_embeddings")
        layout = tokens(state, prompts) if prompts.ndim == 3 else vpt_pixels(state, prompts, prefix + embedding)
    layout.architecture = "swin" if swin else "vit"
    if any(key.startswith("head.projection.") for key in state):
        raise AdapterMismatchError(
            "Expected a linear head, 'head.last_layer' alone. Received one with hidden layers, 'head.projection' (MLP_NUM > 0), "
            "which an adapter of VPT does not have."
        )
    for name, rank in (("weight", 2), ("bias", 1)):
        if (key := f"head.last_layer.{name}") in state:
            layout.tensors["head", name] = require(state, key, "vpt", rank)
    return layout


def vpt_tokens(state: State, prompts: Tensor) -> Layout:
    """Read tokens [1, n, d] of the first layer, those of the others [j - 1, n, d], and an optional projection."""
    prefix = "enc.transformer."
    values: dict[str, Any] = {"num_virtual_tokens": prompts.shape[1], "deep": False}
    layout = Layout(VisualPromptConfig, values, choices={"location": TOKEN_LOCATIONS})
    if (key := f"{prefix}deep_prompt_embeddings") in state:
        tokens = with_deep(prompts, require(state, key, "vpt", 3))
        values |= {"deep": True, "num_deep_layers": tokens.shape[0]}
        layout.complete = functools.partial(shared_or_not, prompts, tokens)
    else:
        layout.tensors["vision", "tokens"] = prompts
    if (key := f"{prefix}prompt_proj.weight") in state:
        values["projection_dim"] = prompts.shape[2]
        layout.tensors["vision", "projection_weight"] = require(state, key, "vpt", 2)
        layout.tensors["vision", "projection_bias"] = require(state, f"{prefix}prompt_proj.bias", "vpt", 1)
    return layout


def with_deep(first: Tensor, deep: Tensor) -> Tensor:
    """Return the prompts of all layers, those of the first layer [1, n, d] in front of the others [j, n, d].

    Raises:
        AdapterMismatchError: they differ in number or width.
    """
    if first.shape[1:] != deep.shape[1:]:
        raise AdapterMismatchError(
            f"Expected deep prompts like the first layer's, {tuple(first.shape[1:])}. Received: "
            f"{tuple(deep.shape[1:])}. The checkpoint is damaged, or put together of several."
        )
    return torch.cat([first, deep])


def shared_or_not(first: Tensor, tokens: Tensor, config: PromptConfig, view: VisionView | None) -> dict:
    """Return the prompts of all layers; with `deep_shared` the first layer's alone, which every layer reads then.

    With `DEEP_SHARED` the authors' code creates and saves prompts of the other layers and never uses them.
    """
    if not config.deep_shared:  # pyrefly: ignore[missing-attribute]  # a VisualPromptConfig
        return {("vision", "tokens"): tokens}
    warnings.warn(
        f"deep_shared=True: the prompts of {len(tokens) - 1} deeper layers in the checkpoint are left out. The authors' code "
        "trained with DEEP_SHARED saves them and reads the first layer's in every layer.",
        stacklevel=3,
    )
    return {("vision", "tokens"): first}


def vpt_pixels(state: State, prompts: Tensor, embedding: str) -> Layout:
    """Read a strip of patches [1, 3, P, n * P], or channels [1, n, H, W] with the patch `embedding` that takes them."""
    weight, extra = (
        require(state, key, "vpt", 4) if key in state else None
        for key in (f"{embedding}.weight", f"{embedding}.weight.extra_channels")
    )
    tensors: dict[tuple[str, str], Any] = {("vision", "pixels"): prompts}
    if extra is None and (weight is None or weight.shape[1] == prompts.shape[1]):
        values = {"num_virtual_tokens": prompts.shape[3] // prompts.shape[2]}
        fallbacks, choices = {"location": STRIP_LOCATIONS[0]}, {"location": STRIP_LOCATIONS}
        return Layout(VisualPromptConfig, values, tensors, fallbacks, choices)
    layout = Layout(VisualPromptConfig, {"location": "below", "num_virtual_tokens": prompts.shape[1]}, tensors)
    if extra is None:
        tensors["vision", "patch_weight"] = weight
        tensors["vision", "patch_bias"] = require(state, f"{embedding}.bias", "vpt", 1)
    else:
        layout.complete = functools.partial(with_own_channels, extra)
    return layout


def with_own_channels(extra: Tensor, config: PromptConfig, view: VisionView | None) -> dict[tuple[str, str], Tensor]:
    """Return the patch embedding of a base model with the weights `extra` [d, n, P, P] of new channels.

    Raises:
        AdapterMismatchError: there is no base model, or its patches are of another size.
    """
    if view is None:
        raise AdapterMismatchError(
            "This checkpoint holds only what was added to the patch embedding. Pass base_model, which has the rest."
        )
    own: Any = view.patch_embedding
    if (extra.shape[0], *extra.shape[2:]) != (own.weight.shape[0], *own.weight.shape[2:]):
        raise AdapterMismatchError(
            f"Expected weights of new channels for a patch embedding of shape {tuple(own.weight.shape)}. Received: "
            f"{tuple(extra.shape)}. Pass the base model that the checkpoint was trained on."
        )
    weight = torch.cat([own.weight.detach().float().cpu(), extra], dim=1)
    return {("vision", "patch_weight"): weight, ("vision", "patch_bias"): own.bias.detach().float().cpu()}


def vpt_border(state: State, prefix: str) -> Layout:
    """Read a border of p pixels: left and right [1, 3, H, 2p], top and bottom [1, 3, 2p, W + 2p]."""
    top_bottom = require(state, f"{prefix}prompt_embeddings_tb", "vpt", 4)
    left_right = require(state, f"{prefix}prompt_embeddings_lr", "vpt", 4)
    values = {"location": "pad", "num_virtual_tokens": left_right.shape[3] // 2}
    tensors = {("vision", "left_right"): left_right, ("vision", "top_bottom"): top_bottom}
    return Layout(VisualPromptConfig, values, tensors)


def vpt_stages(state: State, prompts: Tensor) -> Layout:
    """Read `swin_transformer.py`: tokens [1, n, d] of the first block, and those of each stage's (other) blocks."""
    stages = numbered(state, "enc.deep_prompt_embeddings_{}", "vpt", 3)
    values = {"num_virtual_tokens": prompts.shape[1], "deep": bool(stages)}
    layout = Layout(VisualPromptConfig, values)
    if stages:
        stages = [with_deep(prompts, stages[0]), *stages[1:]]
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
