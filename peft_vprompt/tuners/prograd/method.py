"""Prompt-aligned gradients: CoOp's context, and a gradient that is projected.

Paper: Zhu et al., "Prompt-aligned Gradient for Prompt Tuning", ICCV 2023, section 3.2 (equations 3 and 4).
Authors' code: BeierZhu/Prompt-align `trainers/prograd.py`, `trainers/loss.py`, commit 1b76203.

As in that code, the distance from the frozen model's predictions is their soft cross-entropy, no term of its gradient is ever
added, and a context that is longer than the words starts with zeros.

Deviation: any loss is projected, not the cross-entropy alone, and any further term of the loss with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from ...backbones.text import TextView
from ...core.tokenization import TokenSequence
from ...losses.regularizers import Features
from ...prompts.base import PromptModule
from ...prompts.tokens import start_from_words
from ..base.tuner import PromptTuner
from ..coop.method import CoOpContext, new_context, prompt_sequences
from .config import ProGradConfig
from .gradient_projection import guide_gradients


class ProGrad(CoOpContext):
    """CoOp's context with projected gradients."""

    def text_prompts(
        self, config: ProGradConfig, view: TextView, tokenizer: PreTrainedTokenizerBase | None, feature_dim: int
    ) -> PromptModule:
        """Return the context: random, or zeros and then the embeddings of the words."""
        context = new_context(config, view, None)
        if tokenizer is not None and config.words is not None:
            with torch.no_grad():
                context.tokens.zero_()
            start_from_words(context.tokens[:, -len(config.words.split()) :], view, tokenizer, config.words)
        return context

    def class_sequences(
        self, config: ProGradConfig, names: Sequence[str], tokenizer: PreTrainedTokenizerBase
    ) -> list[list[TokenSequence]]:
        """Return `[SOS] context (words that the context did not take) name . [EOT]`."""
        return [prompt_sequences(config, names, tokenizer, config.text_around)]

    def guide(self, config: ProGradConfig, features: Features, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Return the logits, whose backward pass leaves out what goes against the frozen model's predictions."""
        temperature = config.temperature
        logits, wanted = features.logits / temperature, features.frozen.logits / temperature
        if features.multi_label:  # where the paper has nothing: the sigmoid loss against the frozen model's
            distance = F.binary_cross_entropy_with_logits(logits, wanted.sigmoid())
        else:
            distance = F.cross_entropy(logits, wanted.softmax(-1))
        distance = distance * temperature**2
        return guide_gradients(features.logits, distance, list(parameters), config.projection_weight)


class ProGradModel(PromptTuner):
    """ProGrad's tuner."""

    peft_name = "prograd"
    prefix = "aligned_prompt_"
    method = ProGrad()
