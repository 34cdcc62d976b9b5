"""Checkpoints of MMRL and its relatives."""

from __future__ import annotations

import torch

from ..base.checkpoint_layout import Layout, State, numbered, refuse, require
from .config import MMRLConfig


LEARNER = "representation_learner."


def read(state: State) -> Layout:
    """Read yunncheng/MMRL `trainers/mmrl.py`: the frozen CLIP beside the learned tensors is left."""
    refuse(state, (f"{LEARNER}srra_r2vproj.weight",), "mmrl", "mmrlpp")
    tokens = require(state, f"{LEARNER}compound_rep_tokens", "mmrl")
    tensors = {("text", "tokens"): tokens}
    for tower, letter in {"text": "t", "vision": "v"}.items():
        maps = LEARNER + f"compound_rep_tokens_r2{letter}proj.{{}}."
        require(state, maps.format(0) + "weight", "mmrl")
        tensors[tower, "maps.weight"] = torch.stack(numbered(state, maps + "weight"))
        tensors[tower, "maps.bias"] = torch.stack(numbered(state, maps + "bias"))
    tensors["vision", "projection"] = require(state, "image_encoder.proj_rep", "mmrl")
    return _layout(tokens, tensors, len(tensors["text", "maps.bias"]), {"low_rank": None})


def read_low_rank(state: State, method: str = "mmrlpp") -> Layout:
    """Read yunncheng/MMRL `trainers/mmrlpp.py`, and QByteM/AlignedNorm, which is built alike."""
    refuse(state, ("image_encoder.proj_rep",), method, "mmrl")
    tokens = require(state, f"{LEARNER}compound_rep_tokens", method)
    tensors = {("text", "tokens"): tokens}
    for tower, letter in {"text": "t", "vision": "v"}.items():
        maps = f"{LEARNER}srra_r2{letter}proj."
        tensors[tower, "maps.weight"] = require(state, f"{maps}weight", method)
        for ours, theirs in {"up": "A", "down": "B", "bias": "bias"}.items():
            require(state, f"{maps}srra.0.{theirs}", method)
            tensors[tower, f"maps.{ours}"] = torch.stack(numbered(state, maps + "srra.{}." + theirs))
    tensors["vision", "projection_up"] = require(state, "image_encoder.A", method)
    tensors["vision", "projection_down"] = require(state, "image_encoder.B", method)
    ranks = {"low_rank": tensors["text", "maps.up"].shape[-1], "readout_rank": state["image_encoder.A"].shape[1]}
    return _layout(tokens, tensors, len(tensors["text", "maps.bias"]), ranks)


def read_aligned(state: State) -> Layout:
    """Read QByteM/AlignedNorm; the weights of its two terms are fallbacks, since no tensor tells them."""
    layout = read_low_rank(state, "alignednorm")
    layout.fallbacks |= {"feature_norm_weight": 0.1, "sequence_norm_weight": 0.1}
    return layout


def _layout(tokens: torch.Tensor, tensors: dict, depth: int, ranks: dict) -> Layout:
    values = {"num_virtual_tokens": tokens.shape[0], "representation_dim": tokens.shape[1], **ranks}
    # The authors prompt the last layers of towers with 12.
    return Layout(MMRLConfig, values, tensors, {"representation_layers": list(range(13 - depth, 13))})
