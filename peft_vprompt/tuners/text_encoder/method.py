"""Fine-tuning of the whole text encoder.

Paper: Wu et al., "Why Is Prompt Tuning for Vision-Language Models Robust to Noisy Labels?", ICCV 2023, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper

from ...backbones.base import EncoderView
from ...backbones.text import TextView
from ...backbones.vision import VisionView
from ...errors import UnsupportedModelError
from ..base.classifier_parts import own_modules
from ..base.method import PromptMethod
from ..base.tuner import PromptTuner
from .config import TextEncoderConfig


class TextEncoderTuning(PromptMethod):
    """No prompts: copies of the text tower's parts are trained."""

    def check(self, config: TextEncoderConfig, vision: VisionView, text: TextView) -> None:
        """Refuse a text encoder with adapters of its own, whose weights PEFT cannot save inside a copy.

        Raises:
            UnsupportedModelError: says how to merge them.
            ValueError: another adapter trains copies of modules inside it.
        """
        if any(isinstance(module, BaseTunerLayer) for module in text.module.modules()):
            raise UnsupportedModelError(
                "The text encoder carries adapters (a LoRA, say), and a copy of it cannot be saved with them. Merge "
                "them into the base model first (merge_and_unload)."
            )
        modules = own_modules(text.module).items()
        copies = [name for name, module in modules if isinstance(module, AuxiliaryTrainingWrapper)]
        if not all(name.endswith(text.parts) for name in copies):
            raise ValueError(
                "Another adapter of this model trains copies of modules inside the text encoder, which are no part of a "
                "copy of the whole. Put the two adapters on models of their own."
            )

    def trained_modules(self, config: TextEncoderConfig, view: EncoderView) -> Sequence[str]:
        """Return the parts of the text encoder."""
        return view.parts if isinstance(view, TextView) else ()


class TextEncoderModel(PromptTuner):
    """TEnc-FT's tuner."""

    peft_name = "text_encoder"
    prefix = "text_encoder_"
    method = TextEncoderTuning()
