"""Conditional context optimisation.

Paper: Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022, section 3.2.
Authors' code: KaiyangZhou/CoOp `trainers/cocoop.py`; as there, the Meta-Net reads the L2-normalised image feature.

Deviation: all images of a batch and all classes are one packed computation, where the authors loop over images.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from ...backbones.supported import TextView
from ...core.tokenization import TokenSequence, context_sequences
from ...prompts.base import PromptModule
from ...prompts.meta_net import ConditionalContext
from ...prompts.tokens import start_from_words
from ..base.tuner import PromptTuner
from .config import CoCoOpConfig


class CoCoOpModel(PromptTuner):
    """A context on the text tower's first layer, another one for each image."""

    prefix = "conditional_prompt_"
    conditional = True

    @classmethod
    def text_prompts(
        cls, config: CoCoOpConfig, tower: TextView, tokenizer: PreTrainedTokenizerBase | None, feature_dim: int
    ) -> PromptModule:
        """The context and its Meta-Net."""
        weight, length = tower.reference_weight, config.num_virtual_tokens
        holder = ConditionalContext(length, tower.width, feature_dim, dtype=weight.dtype, device=weight.device)
        if tokenizer is not None:
            start_from_words(holder.tokens, tower, tokenizer, config.words)
        return holder

    @classmethod
    def class_sequences(
        cls, config: CoCoOpConfig, names: list[str], tokenizer: PreTrainedTokenizerBase
    ) -> list[list[TokenSequence]]:
        """`[SOS] context name . [EOT]`."""
        return [context_sequences(tokenizer, names, config.num_virtual_tokens, config.words)]
