"""Read-only prompts.

RPO. Paper: Lee et al., "Read-only Prompt Optimization for Vision-Language Few-shot Learning", ICCV 2023, sections 3.2
(masked attention, equations 3-6) and 3.3 (pairwise readout, equation 7). Authors' code: mlvlab/RPO `trainers/rpo.py`.
MRPO. Paper: Seo and Lee, "Multi-modal Read-only Prompt Optimization", equations 2-7; there is no code.

A reader attends to the plain tokens and to no reader, not even itself; nobody attends to a reader. So the plain
tokens run as in the frozen model and are recorded once, and the readers run alone over the record.

Deviations: underscores in class names are read as spaces in RPO too. MRPO's paper leaves the readout and the start of
the prompts open: read out pairwise like RPO, start like MaPLe.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...backbones.supported import TextView, VisionView
from ...prompts.base import PromptModule
from ...prompts.coupling import LinearCoupling
from ...prompts.tokens import TokenPrompts
from ..base.tuner import PromptTuner
from .config import MRPOConfig, ReadOnlyPromptConfig


#: Length of the random step from the end token's (class token's) embedding that each reader of RPO starts with.
RPO_NOISE_NORM = 0.1


def readers(count: int, tower: TextView | VisionView, first_layer: int = 0, depth: int = 1) -> TokenPrompts:
    """Free readers that start in front of layer `first_layer`, N(0, 0.02 ** 2)."""
    weight = tower.reference_weight
    holder = TokenPrompts(depth, count, tower.width, dtype=weight.dtype, device=weight.device)
    holder.read_only, holder.first_layer = True, first_layer
    return holder


class ReadOnlyPromptModel(PromptTuner):
    """K readers on each tower, through all layers."""

    prefix = "readonly_prompt_"
    needs_read_only = True

    @classmethod
    def text_prompts(
        cls,
        config: ReadOnlyPromptConfig,
        tower: TextView,
        tokenizer: PreTrainedTokenizerBase | None,
        feature_dim: int,
    ) -> PromptModule:
        """Readers after the end token, without positions."""
        return start_near(readers(config.num_virtual_tokens, tower), tower.word_vectors([tower.end_token_id])[0])

    @classmethod
    def vision_prompts(cls, config: ReadOnlyPromptConfig, tower: VisionView, text: TextView | None) -> PromptModule:
        """Readers after the patches, without positions, through the norm before the first layer."""
        return start_near(readers(config.num_virtual_tokens, tower), tower.class_vector())


@torch.no_grad()
def start_near(holder: TokenPrompts, vector: Tensor) -> TokenPrompts:
    """Start every reader a random step of norm 0.1 away from `vector` [d]."""
    if holder.tokens.is_meta:  # its values are loaded later
        return holder
    noise = torch.randn_like(holder.tokens)
    holder.tokens.copy_(vector + RPO_NOISE_NORM * noise / noise.norm(dim=-1, keepdim=True))
    return holder


class MRPOModel(PromptTuner):
    """Readers that start at layer J ("replace") or that each of the first J layers adds to ("accumulate")."""

    prefix = "linked_prompt_"
    needs_read_only = True

    @classmethod
    def check(cls, config: MRPOConfig, vision: VisionView, text: TextView | None) -> None:
        """Refuse more prompted layers than a tower has."""
        layers = min(vision.num_layers, text.num_layers)
        if config.prompt_depth > layers:
            raise ValueError(
                f"Expected prompt_depth <= {layers}, the layers of the smaller tower. "
                f"Received: prompt_depth={config.prompt_depth}."
            )

    @classmethod
    def text_prompts(
        cls, config: MRPOConfig, tower: TextView, tokenizer: PreTrainedTokenizerBase | None, feature_dim: int
    ) -> PromptModule:
        """Readers P_k."""
        return readers(config.num_virtual_tokens, tower, *first_and_depth(config))

    @classmethod
    def vision_prompts(cls, config: MRPOConfig, tower: VisionView, text: TextView | None) -> PromptModule:
        """Readers F_k(P_k), or free ones."""
        first_layer, depth = first_and_depth(config)
        if config.coupling == "none":
            return readers(config.num_virtual_tokens, tower, first_layer, depth)
        weight = tower.reference_weight
        holder = LinearCoupling(depth, text.width, tower.width, dtype=weight.dtype, device=weight.device)
        holder.read_only, holder.first_layer = True, first_layer
        return holder


def first_and_depth(config: MRPOConfig) -> tuple[int, int]:
    """Where the readers that are ever read out start, and at how many layers prompts of their own come in."""
    return (config.prompt_depth - 1, 1) if config.prompt_update == "replace" else (0, config.prompt_depth)
