"""A linear head on image features, and the whole text encoder.

Paper: Wu et al., "Why Is Prompt Tuning for Vision-Language Models Robust to Noisy Labels?", ICCV 2023, section 3.

Logits are exp(logit_scale) times the product of the L2-normalised image feature with a row of the head; the rows are
not normalised, so that the head is linear.
"""

from __future__ import annotations

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedTokenizerBase

from ...backbones.supported import TextView, VisionView
from ...core.tokenization import check_lengths
from ...errors import ClassNamesError, UnsupportedModelError
from ...prompts.base import PromptModule
from ...prompts.tokens import ClassFeatures
from ..base.config import digest_names
from ..base.tuner import PromptTuner
from .config import ClassHeadConfig, TextEncoderConfig


class ClassHeadModel(PromptTuner):
    """Rows of a head in the place of text features."""

    prefix = "class_head_"

    @classmethod
    def text_prompts(
        cls, config: ClassHeadConfig, tower: TextView, tokenizer: PreTrainedTokenizerBase | None, feature_dim: int
    ) -> PromptModule:
        """The head, at random.

        Raises:
            PromptTooLongError: a class name that the head is to start from is too long for the text encoder.
        """
        weight = tower.reference_weight
        if tokenizer is not None:
            for sequences in cls.class_sequences(config, config.class_names, tokenizer):
                check_lengths(sequences, config.class_names, tower.max_positions)
        return ClassFeatures(len(config.class_names), feature_dim, dtype=weight.dtype, device=weight.device)

    @classmethod
    def needs_tokenizer(cls, config: ClassHeadConfig) -> bool:
        """Only where the head starts from the text features."""
        return config.head_init == "text" and not config.inference_mode

    def start(self, adapter_name: str) -> None:
        """Classifier-C: copy the frozen model's text features of the classes into the head."""
        config = self.peft_config[adapter_name]
        head = self.text_tower.holder(adapter_name).weight
        if config.head_init == "text" and not config.inference_mode and not head.is_meta:
            with torch.no_grad(), self.switching() as answer_for:
                answer_for(adapter_name)
                head.copy_(self.zero_shot_features(self.class_lists[adapter_name], config))

    @classmethod
    def check_new_classes(cls, config: ClassHeadConfig, names: list[str]) -> None:
        """A head knows its own classes only."""
        if digest_names(names) != digest_names(config.class_names):
            raise ClassNamesError(
                f"This adapter learned a head with one row for each of its {len(config.class_names)} classes "
                f"({', '.join(config.class_names[:3])}, ...); they mean nothing for other names. Train an adapter "
                "that learns a context to move to new classes."
            )


class TextEncoderModel(PromptTuner):
    """No prompts: PEFT's own wrappers train and save copies of the text tower's parts."""

    prefix = "text_encoder_"

    trains_text = True

    @classmethod
    def check(cls, config: TextEncoderConfig, vision: VisionView, text: TextView | None) -> None:
        """Refuse a text encoder with adapters of its own, whose weights PEFT cannot save inside a copy."""
        if any(isinstance(module, BaseTunerLayer) for module in text.module.modules()):
            raise UnsupportedModelError(
                "The text encoder carries adapters (a LoRA, say), and a copy of it cannot be saved with them. Merge "
                "them into the base model first (merge_and_unload)."
            )
