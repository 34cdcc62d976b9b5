"""Checkpoints of MMRL and its relatives."""

from __future__ import annotations

import torch

from ..base.checkpoint_layout import Layout, State, numbered, of_all_layers, refuse, require
from .config import MMRLConfig


LEARNER = "representation_learner."

#: Letters of the towers in names of tensors.
TOWERS = {"text": "t", "vision": "v"}


def read(state: State) -> Layout:
    """Read yunncheng/MMRL `trainers/mmrl.py`: the frozen CLIP beside the learned tensors is left."""
    refuse(state, (f"{LEARNER}srra_r2vproj.weight",), "mmrl", "mmrlpp")
    tokens = require(state, f"{LEARNER}compound_rep_tokens", "mmrl", 2)
    tensors = {("text", "tokens"): tokens}
    for tower, letter in TOWERS.items():
        maps = LEARNER + f"compound_rep_tokens_r2{letter}proj.{{}}."
        for kind, rank in {"weight": 2, "bias": 1}.items():
            tensors[tower, f"maps.{kind}"] = _of_layers(state, maps + kind, "mmrl", rank)
    tensors["vision", "projection"] = require(state, "image_encoder.proj_rep", "mmrl", 2)
    return _layout(tokens, tensors, {"low_rank": None})


def read_low_rank(state: State, method: str = "mmrlpp") -> Layout:
    """Read yunncheng/MMRL `trainers/mmrlpp.py`, and QByteM/AlignedNorm, which is built alike."""
    refuse(state, ("image_encoder.proj_rep",), method, "mmrl")
    tokens = require(state, f"{LEARNER}compound_rep_tokens", method, 2)
    tensors = {("text", "tokens"): tokens}
    for tower, letter in TOWERS.items():
        maps = f"{LEARNER}srra_r2{letter}proj."
        tensors[tower, "maps.weight"] = require(state, f"{maps}weight", method, 2)
        for ours, theirs, rank in (("up", "A", 2), ("down", "B", 2), ("bias", "bias", 1)):
            tensors[tower, f"maps.{ours}"] = _of_layers(state, f"{maps}srra.{{}}.{theirs}", method, rank)
    tensors["vision", "projection_up"] = up = require(state, "image_encoder.A", method, 2)
    tensors["vision", "projection_down"] = require(state, "image_encoder.B", method, 2)
    return _layout(tokens, tensors, {"low_rank": tensors["text", "maps.up"].shape[-1], "readout_rank": up.shape[1]})


def read_aligned(state: State) -> Layout:
    """Read QByteM/AlignedNorm; the weights of its two terms are fallbacks, since no tensor tells them."""
    layout = read_low_rank(state, "alignednorm")
    layout.fallbacks |= {"feature_norm_weight": 0.1, "sequence_norm_weight": 0.1}
    return layout


def _of_layers(state: State, pattern: str, method: str, rank: int) -> torch.Tensor:
    """Return the tensors of all layers as one."""
    require(state, pattern.format(0), method, rank)
    return of_all_layers(numbered(state, pattern, method, rank), "maps")


def _layout(tokens: torch.Tensor, tensors: dict, ranks: dict) -> Layout:
    values = {"num_virtual_tokens": tokens.shape[0], "representation_dim": tokens.shape[1], **ranks}
    depth = len(tensors["text", "maps.bias"])
    # The authors prompt the last layers of towers with 12.
    return Layout(MMRLConfig, values, tensors, {"representation_layers": list(range(13 - depth, 13))})
