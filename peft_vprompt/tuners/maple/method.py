"""Multi-modal prompt learning: MaPLe, and IVLP as MaPLe without coupling.

Paper: Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, section 3.2 (text: equations 1-3, vision: 4-5,
coupling: 6). Authors' code: muzairkhattak/multimodal-prompt-learning `trainers/maple.py`, `trainers/independentVL.py`.

As in that code, visual prompts follow the patches, and the words of the initial text that the first prompts do not
replace stay as plain tokens.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from ...backbones.supported import TextView, VisionView
from ...core.tokenization import TokenSequence, context_sequences
from ...prompts.base import PromptModule
from ...prompts.coupling import LinearCoupling
from ...prompts.tokens import TokenPrompts, start_from_words
from ..base.tuner import PromptTuner
from .config import MaPLeConfig


class MaPLeModel(PromptTuner):
    """Deep prompts on both towers."""

    prefix = "multimodal_prompt_"

    @classmethod
    def check(cls, config: MaPLeConfig, vision: VisionView, text: TextView | None) -> None:
        """Refuse more prompted layers than a tower has."""
        for side, depth, tower in (("text", config.text_depth, text), ("vision", config.vision_depth, vision)):
            if depth > tower.num_layers:
                raise ValueError(
                    f"Expected a prompt depth of at most {tower.num_layers}, the layers of the {side} tower. "
                    f"Received: {depth}. Set prompt_depth, or {side}_prompt_depth for this tower alone."
                )

    @classmethod
    def text_prompts(
        cls, config: MaPLeConfig, tower: TextView, tokenizer: PreTrainedTokenizerBase | None, feature_dim: int
    ) -> PromptModule | None:
        """One tensor for all layers; the first layer's may start from words."""
        if not config.text_depth:
            return None
        weight = tower.reference_weight
        holder = TokenPrompts(
            config.text_depth, config.text_length, tower.width, dtype=weight.dtype, device=weight.device
        )
        holder.text_placement = "replace"
        if tokenizer is not None:
            start_from_words(holder.tokens[0], tower, tokenizer, config.words)
        return holder

    @classmethod
    def vision_prompts(cls, config: MaPLeConfig, tower: VisionView, text: TextView | None) -> PromptModule | None:
        """Coupled to the text prompts, or free."""
        if not config.vision_depth:
            return None
        weight = tower.reference_weight
        factory = {"dtype": weight.dtype, "device": weight.device}
        if config.coupling == "linear":
            return LinearCoupling(config.vision_depth, text.width, tower.width, **factory)
        return TokenPrompts(config.vision_depth, config.vision_length, tower.width, **factory)

    @classmethod
    def class_sequences(
        cls, config: MaPLeConfig, names: list[str], tokenizer: PreTrainedTokenizerBase
    ) -> list[list[TokenSequence]]:
        """`[SOS] prompts (rest of the words) name . [EOT]`; the plain template where the text side is frozen."""
        if not config.text_depth:
            return super().class_sequences(config, names, tokenizer)
        return [context_sequences(tokenizer, names, config.text_length, config.words)]
