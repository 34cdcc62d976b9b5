"""A linear head on image features.

Paper: Wu et al., "Why Is Prompt Tuning for Vision-Language Models Robust to Noisy Labels?", ICCV 2023, section 3.

Logits are exp(logit_scale) times the product of the L2-normalised image feature with a row of the head; the rows are
not normalised, so that the head is linear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ...backbones.base import TextView
from ...errors import ClassNamesError
from ...prompts.base import placed_like
from ...readouts import LinearReadout
from ..base.config import digest_names
from ..base.method import PromptMethod
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

    def initialize(self, config: ClassHeadConfig, readout: nn.Module, frozen_text: Callable[[], Tensor]) -> None:
        """Copy the frozen model's text features of the classes into the head (Classifier-C)."""
        if config.head_init == "text":
            readout.weight.copy_(frozen_text())

    def check_new_classes(self, config: ClassHeadConfig, names: Sequence[str]) -> None:
        """Refuse other classes than the head's own.

        Raises:
            ClassNamesError: names the head's classes and the remedy.
        """
        if digest_names(names) != digest_names(config.own_classes):
            raise ClassNamesError(
                f"This adapter learned a head with one row for each of its {len(config.own_classes)} classes "
                f"({', '.join(config.own_classes[:3])}, ...); they mean nothing for other names. Train an adapter "
                "that learns a context to move to new classes."
            )


class ClassHeadModel(PromptTuner):
    """The head's tuner."""

    peft_name = "class_head"
    prefix = "class_head_"
    method = ClassHead()
