"""A linear head on image features.

Paper: Wu et al., "Why Is Prompt Tuning for Vision-Language Models Robust to Noisy Labels?", ICCV 2023, section 3.

Logits are exp(logit_scale) times the product of the L2-normalised image feature with a row of the head; the rows are
not normalised, so that the head is linear.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ...backbones.text import TextView
from ...prompts.base import placed_like
from ...readouts import LinearReadout
from ..base.method import OTHER_CLASSES, FrozenText, PromptMethod, refuse_other_classes
from ..base.tuner import PromptTuner
from .config import ClassHeadConfig


class ClassHead(PromptMethod):
    """Learned rows in the place of text features."""

    def readout(self, config: ClassHeadConfig, view: TextView, feature_dim: int) -> nn.Module:
        """Return the head, at random."""
        return LinearReadout(len(config.own_classes), feature_dim, **placed_like(view))

    def needs_tokenizer(self, config: ClassHeadConfig) -> bool:
        """Return True where the head starts from the text features."""
        return config.head_init == "text" and not config.inference_mode

    def initialize(self, config: ClassHeadConfig, readout: LinearReadout, frozen_text: FrozenText) -> None:
        """Copy the frozen model's text features of the classes into the head (Classifier-C)."""
        if config.head_init == "text":
            readout.weight.copy_(frozen_text.normalized())

    def frozen_readout(self, config: ClassHeadConfig, frozen_text: FrozenText) -> dict[str, Tensor]:
        """Return the zero-shot head: the rows are the frozen text features."""
        return {"weight": frozen_text.normalized()}

    def check_new_classes(self, config: ClassHeadConfig, names: Sequence[str]) -> None:
        """Refuse other classes than the head's own.

        Raises:
            ClassNamesError: names the head's classes and the remedy.
        """
        refuse_other_classes(config, names, "a head with one row", OTHER_CLASSES)


class ClassHeadModel(PromptTuner):
    """The head's tuner."""

    peft_name = "class_head"
    prefix = "class_head_"
    method = ClassHead()
