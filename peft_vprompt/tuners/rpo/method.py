"""Read-only prompts.

Paper: Lee et al., "Read-only Prompt Optimization for Vision-Language Few-shot Learning", ICCV 2023, sections 3.2 (masked
attention, equations 3-6) and 3.3 (pairwise readout, equation 7). Authors' code: mlvlab/RPO `trainers/rpo.py`.

A read-only prompt attends to the plain tokens and to no prompt, not even itself; nobody attends to it. So the plain tokens
run as in the frozen model and leave a KV cache, and the prompts run alone over it.

Deviation: underscores in class names are read as spaces here too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ...backbones.base import EncoderView
from ...backbones.clip import CLIPVisionView
from ...backbones.text import CausalTextView, TextView
from ...prompts.base import PromptModule, placed_like
from ...prompts.tokens import TokenPrompts
from ...readouts import PairwiseReadout
from ..base.method import PromptMethod
from ..base.tuner import PromptTuner
from .config import ReadOnlyPromptConfig


#: Length of the random step from the end token's (class token's) embedding that each prompt starts with.
NOISE_NORM = 0.1


class RPO(PromptMethod):
    """K read-only prompts on each tower, through all layers."""

    needs_read_only = True
    has_image_layers = True

    def text_prompts(
        self,
        config: ReadOnlyPromptConfig,
        view: CausalTextView,
        tokenizer: PreTrainedTokenizerBase | None,
        feature_dim: int,
    ) -> PromptModule:
        """Return prompts after the end token, without positions."""
        return start_near(free_prompts(config.num_virtual_tokens, view), view.word_vectors([view.end_token_id])[0])

    def vision_prompts(
        self, config: ReadOnlyPromptConfig, view: CLIPVisionView, text: TextView, feature_dim: int
    ) -> PromptModule:
        """Return prompts after the patches, without positions, through the norm before the first layer."""
        return start_near(free_prompts(config.num_virtual_tokens, view), view.class_vector())

    def readout(self, config: ReadOnlyPromptConfig, view: TextView, feature_dim: int) -> nn.Module:
        """Return the mean over the pairs."""
        return PairwiseReadout()


class ReadOnlyPromptModel(PromptTuner):
    """RPO's tuner."""

    peft_name = "read_only_prompt"
    prefix = "readonly_prompt_"
    method = RPO()


def free_prompts(count: int, view: EncoderView, first_layer: int = 0, depth: int = 1) -> TokenPrompts:
    """Return free read-only prompts that start in front of layer `first_layer`, N(0, 0.02 ** 2)."""
    return TokenPrompts(depth, count, view.width, read_only=True, first_layer=first_layer, **placed_like(view))


@torch.no_grad()
def start_near(prompts: TokenPrompts, vector: Tensor) -> TokenPrompts:
    """Start every prompt a random step of norm 0.1 away from `vector` [d]."""
    if prompts.tokens.is_meta:  # its values are loaded later
        return prompts
    noise = torch.randn_like(prompts.tokens)
    prompts.tokens.copy_(vector + NOISE_NORM * noise / noise.norm(dim=-1, keepdim=True))
    return prompts
