"""What the authors' checkpoints are called inside, one function per method.

Each takes the checkpoint's tensors by name and gives the config values that can be read off them, and the tensors of
our holders by the tower ("text", "vision", "head") and their name there.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..backbones.supported import VisionView
from ..errors import AdapterMismatchError
from ..tuners.base.config import PromptConfig
from ..tuners.cocoop import CoCoOpConfig
from ..tuners.coop import ContextOptConfig
from ..tuners.maple import MaPLeConfig
from ..tuners.rpo import ReadOnlyPromptConfig
from ..tuners.vpt import VisualPromptConfig
from ..tuners.vpt.config import STRIP_LOCATIONS, TOKEN_LOCATIONS


State = dict[str, Tensor]


@dataclass
class Layout:
    """A checkpoint as we understand it.

    Attributes:
        config_class: class of the adapter's config.
        values: config values read off the tensors.
        tensors: the adapter's tensors, by (place, name).
        fallbacks: config values that tensors make likely, unless they are given.
        choices: config values that tensors leave open, and what they may be.
        architecture: what the checkpoint belongs to: "clip", "vit" or "swin".
        complete: makes the tensors that also depend on the config, or on the view of the base model's image encoder
            (None without a base model).
    """

    config_class: type[PromptConfig]
    values: dict = field(default_factory=dict)
    tensors: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    fallbacks: dict = field(default_factory=dict)
    choices: dict[str, tuple] = field(default_factory=dict)
    architecture: str = "clip"
    complete: Callable[[PromptConfig, VisionView | None], dict[tuple[str, str], Tensor]] | None = None


def require(state: State, key: str, method: str) -> Tensor:
    """The tensor `key`.

    Raises:
        AdapterMismatchError: it is not there; the message lists what is.
    """
    if key not in state:
        held = ", ".join(sorted(state)[:8]) or "nothing"
        raise AdapterMismatchError(
            f"Expected {key!r} in a checkpoint of method {method!r}. Received one with {held}"
            f"{', ...' if len(state) > 8 else ''}. Name the method it was trained with."
        )
    return state[key]


def numbered(state: State, pattern: str, start: int = 0) -> list[Tensor]:
    """The tensors `pattern` with {} = start, start + 1, ... as far as they go without a gap."""
    found = []
    while (key := pattern.format(start + len(found))) in state:
        found.append(state[key])
    present = sum(bool(re.fullmatch(re.escape(pattern).replace(r"\{\}", r"\d+"), key)) for key in state)
    if present != len(found):
        raise AdapterMismatchError(
            f"Expected {pattern!r} to count up from {start} without gaps. Received {present} tensors of that name, "
            f"{len(found)} of them in a row."
        )
    return found


def coop(state: State) -> Layout:
    """KaiyangZhou/CoOp `trainers/coop.py`: `ctx` [n, d], or [classes, n, d] where class-specific."""
    context = require(state, "ctx", "coop")
    refuse(state, ("meta_net.linear1.weight",), "coop", "cocoop")
    values = {"num_virtual_tokens": context.shape[-2], "class_specific": context.ndim == 3}
    tokens = context if context.ndim == 3 else context.unsqueeze(0)
    return Layout(ContextOptConfig, values, {("text", "tokens"): tokens})


def cocoop(state: State) -> Layout:
    """KaiyangZhou/CoOp `trainers/cocoop.py`."""
    context = require(state, "ctx", "cocoop")
    tensors = {("text", "tokens"): context.unsqueeze(0)}
    for ours, theirs in (("hidden", "linear1"), ("output", "linear2")):
        for part in ("weight", "bias"):
            tensors["text", f"{ours}_{part}"] = require(state, f"meta_net.{theirs}.{part}", "cocoop")
    length = context.shape[0]
    words = CoCoOpConfig().num_virtual_tokens == length  # else it cannot have started from the default words
    return Layout(CoCoOpConfig, {"num_virtual_tokens": length}, tensors, {} if words else {"prompt_init": "random"})


def rpo(state: State) -> Layout:
    """mlvlab/RPO `trainers/rpo.py`: `text_prompt` [K, text width], `img_prompt` [K, image width]."""
    text, image = require(state, "text_prompt", "rpo"), require(state, "img_prompt", "rpo")
    tensors = {("text", "tokens"): text.unsqueeze(0), ("vision", "tokens"): image.unsqueeze(0)}
    return Layout(ReadOnlyPromptConfig, {"num_virtual_tokens": text.shape[0]}, tensors)


def maple(state: State) -> Layout:
    """muzairkhattak/multimodal-prompt-learning `trainers/maple.py`."""
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


def ivlp(state: State) -> Layout:
    """muzairkhattak/multimodal-prompt-learning `trainers/independentVL.py`; either side may be missing."""
    refuse(state, ("prompt_learner.proj.weight",), "ivlp", "maple")
    text = [state["prompt_learner.ctx"]] if "prompt_learner.ctx" in state else []
    if text:
        text += numbered(state, "text_encoder.transformer.resblocks.{}.VPT_shallow", 1)
    vision = visual_prompts(state)
    if not text and not vision:
        require(state, "prompt_learner.ctx", "ivlp")
    values = {"coupling": "none", "text_prompt_depth": len(text), "vision_prompt_depth": len(vision)}
    tensors = {}
    if text:
        values["text_num_virtual_tokens"] = text[0].shape[0]
        tensors["text", "tokens"] = torch.stack(text)
    if vision:
        values["vision_num_virtual_tokens"] = vision[0].shape[0]
        tensors["vision", "tokens"] = torch.stack(vision)
    return Layout(MaPLeConfig, values, tensors)


def vpt_clip(state: State) -> Layout:
    """muzairkhattak/multimodal-prompt-learning `trainers/vpt.py`: prompts in CLIP's image encoder only."""
    require(state, "image_encoder.VPT", "vpt-clip")
    refuse(state, ("prompt_learner.ctx",), "vpt-clip", "ivlp")
    prompts = visual_prompts(state)
    values = {"num_virtual_tokens": prompts[0].shape[0], "deep": len(prompts) > 1}
    if len(prompts) > 1:
        values["num_deep_layers"] = len(prompts)
    return Layout(VisualPromptConfig, values, {("vision", "tokens"): torch.stack(prompts)})


def visual_prompts(state: State) -> list[Tensor]:
    """The free visual prompts of each layer, none where there are none."""
    if "image_encoder.VPT" not in state:
        return []
    deep = numbered(state, "image_encoder.transformer.resblocks.{}.VPT_shallow", 1)
    return [state["image_encoder.VPT"], *deep]


def vpt(state: State) -> Layout:
    """KMnP/vpt `src/models/vit_prompt/`: prompts of any location on ViT, or tokens on Swin, and the linear head."""
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
    """Tokens [1, n, d] of the first layer, those of the others [j - 1, n, d], and an optional projection."""
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
    """A strip of patches [1, 3, P, n * P], or channels [1, n, H, W] with the patch `embedding` that takes them."""
    weight, extra = state.get(f"{embedding}.weight"), state.get(f"{embedding}.weight.extra_channels")
    tensors = {("vision", "pixels"): prompts}
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


def with_own_channels(extra: Tensor, config: PromptConfig, tower: VisionView | None) -> dict[tuple[str, str], Tensor]:
    """The patch embedding of a base model with the weights `extra` [d, n, P, P] of new channels."""
    if tower is None:
        raise AdapterMismatchError(
            "This checkpoint holds only what was added to the patch embedding. Pass base_model, which has the rest."
        )
    own = tower.patch_embedding
    weight = torch.cat([own.weight.detach().float().cpu(), extra], dim=1)
    return {("vision", "patch_weight"): weight, ("vision", "patch_bias"): own.bias.detach().float().cpu()}


def vpt_border(state: State, prefix: str) -> Layout:
    """A border of p pixels: left and right [1, 3, H, 2p], top and bottom [1, 3, 2p, W + 2p]."""
    top_bottom = require(state, f"{prefix}prompt_embeddings_tb", "vpt")
    left_right = require(state, f"{prefix}prompt_embeddings_lr", "vpt")
    values = {"location": "pad", "num_virtual_tokens": left_right.shape[3] // 2}
    tensors = {("vision", "left_right"): left_right, ("vision", "top_bottom"): top_bottom}
    return Layout(VisualPromptConfig, values, tensors)


def vpt_stages(state: State, prompts: Tensor) -> Layout:
    """`swin_transformer.py`: tokens [1, n, d] of the first block, and those of each stage's (other) blocks."""
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
        layout.complete = lambda config, tower: {
            ("vision", "tokens_0" if config.location == "prepend" else "tokens"): prompts
        }
    return layout


def refuse(state: State, keys: tuple[str, ...], method: str, right_method: str) -> None:
    """Raise an AdapterMismatchError where a tensor shows that the checkpoint is of another method."""
    found = [key for key in keys if key in state]
    if found:
        raise AdapterMismatchError(
            f"A checkpoint of method {method!r} has no {found[0]!r}, and this one has. Use method={right_method!r}."
        )


#: Reader of each method's checkpoints, by the name `convert_checkpoint` takes.
LAYOUTS = {
    "coop": coop,
    "cocoop": cocoop,
    "maple": maple,
    "ivlp": ivlp,
    "vpt-clip": vpt_clip,
    "rpo": rpo,
    "vpt": vpt,
}
