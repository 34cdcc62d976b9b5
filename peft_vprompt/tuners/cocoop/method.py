"""Conditional context optimisation.

Paper: Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022, section 3.2.
Authors' code: KaiyangZhou/CoOp `trainers/cocoop.py`; as there, the Meta-Net reads the L2-normalised image feature.

Deviation: all images of a batch and all classes are one packed computation, where the authors loop over images.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from ...backbones.text import TextView
from ...prompts.base import PromptModule, placed_like
from ...prompts.meta_net import ConditionalContext
from ..base.tuner import PromptTuner
from ..coop.method import CoOpContext, start_contexts
from .config import CoCoOpConfig


class CoCoOp(CoOpContext):
    """A context on the text tower's first layer, another one for each image."""

    conditional = True

    def text_prompts(
        self, config: CoCoOpConfig, view: TextView, tokenizer: PreTrainedTokenizerBase | None, feature_dim: int
    ) -> PromptModule:
        """Return the context and its Meta-Net."""
        context = ConditionalContext(config.length, view.width, feature_dim, **placed_like(view))
        start_contexts(context.tokens, config, view, tokenizer)
        return context


class CoCoOpModel(PromptTuner):
    """CoCoOp's tuner."""

    peft_name = "cocoop"
    prefix = "conditional_prompt_"
    method = CoCoOp()
