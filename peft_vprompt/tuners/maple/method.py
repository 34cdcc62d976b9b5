"""Multi-modal prompt learning: MaPLe, and IVLP as MaPLe without coupling.

Paper: Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, section 3.2 (text: equations 1-3, vision: 4-5,
coupling: 6). Authors' code: muzairkhattak/multimodal-prompt-learning `trainers/maple.py`, `trainers/independentVL.py`.

As in that code, visual prompts follow the patches, and the words of the initial text that the first prompts do not
replace stay as plain tokens; more than four prompts start at random.

Deviation: a class name stays whole behind more prompts than there are words (there the prompts take the place of its first
tokens); a prompt behind the words starts from the end token as there, those behind it at random.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ...backbones.text import TextView
from ...backbones.vision import VisionView
from ...core.tokenization import TokenSequence, context_sequences
from ...prompts.base import PromptModule, placed_like
from ...prompts.coupling import LinearCoupling
from ...prompts.tokens import TokenPrompts, start_from_words
from ..base.method import PromptMethod, check_depth, check_length
from ..base.tuner import PromptTuner
from .config import MaPLeConfig


class MaPLe(PromptMethod):
    """Deep prompts on both towers."""

    without_image_layers = "vision_prompt_depth=0 and coupling='none'"

    def needs_image_layers(self, config: MaPLeConfig | None) -> bool:
        """Return whether the image tower has prompts."""
        return config is None or config.vision_depth > 0

    def check(self, config: MaPLeConfig, vision: VisionView, text: TextView) -> None:
        """Refuse more prompted layers than a tower has, and more prompts than a text has room for."""
        if config.text_depth:
            check_length("text_num_virtual_tokens", config.text_length, text)
        check_depth("text_prompt_depth", config.text_depth, text, "text tower")
        check_depth("vision_prompt_depth", config.vision_depth, vision, "vision tower")

    def text_prompts(
        self, config: MaPLeConfig, view: TextView, tokenizer: PreTrainedTokenizerBase | None, feature_dim: int
    ) -> PromptModule | None:
        """Return one tensor for all layers; the first layer's may start from words."""
        if not config.text_depth:
            return None
        size = (config.text_depth, config.text_length, view.width)
        prompts = TokenPrompts(*size, text_placement="replace", **placed_like(view))
        if tokenizer is not None and config.words is not None:
            start_from_words(prompts.tokens[0], view, tokenizer, config.words)
        return prompts

    def vision_prompts(
        self, config: MaPLeConfig, view: VisionView, text: TextView, feature_dim: int
    ) -> PromptModule | None:
        """Return prompts that are coupled to the text prompts, or free ones."""
        if not config.vision_depth:
            return None
        if config.coupling == "linear":
            return LinearCoupling(config.vision_depth, text.width, view.width, **placed_like(view))
        return TokenPrompts(config.vision_depth, config.vision_length, view.width, **placed_like(view))

    def class_sequences(
        self, config: MaPLeConfig, names: Sequence[str], tokenizer: PreTrainedTokenizerBase
    ) -> list[list[TokenSequence]]:
        """Return `[SOS] prompts (rest of the words) name . [EOT]`; the template where the text side is frozen."""
        if not config.text_depth:
            return super().class_sequences(config, names, tokenizer)
        return [context_sequences(tokenizer, names, config.text_length, config.words)]


class MaPLeModel(PromptTuner):
    """MaPLe's tuner."""

    peft_name = "maple"
    prefix = "multimodal_prompt_"
    method = MaPLe()
