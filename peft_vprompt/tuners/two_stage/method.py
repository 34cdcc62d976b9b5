"""Few-shot adaptation in two stages (2SFS): encoders first, then the class head.

Paper: Farina et al., "Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages", CVPR 2025, section 4; code:
FarinaMatteo/rethinking_fewshot_vlms, commit 64ac143. The first stage is that of `ln_tuning`. In the second one the rows start
as the normalised text features of the tuned encoder, are normalised in each call, and are trained alone.
"""

from __future__ import annotations

from torch import nn

from ...backbones.text import TextView
from ...prompts.base import placed_like
from ...readouts import ClassRowsReadout, CosineReadout
from ..base.tuner import PromptTuner
from ..ln_tuning.method import NormTuning
from .config import TwoStageConfig


class TwoStage(NormTuning):
    """Copies of norms, and later rows for classes."""

    has_second_stage = True

    def in_second_stage(self, config: TwoStageConfig) -> bool:
        """Return whether the rows are learned."""
        return config.head_classes is not None

    def readout(self, config: TwoStageConfig, view: TextView, feature_dim: int) -> nn.Module:
        """Return the rows in the second stage, cosines with text features in the first."""
        if config.head_classes is None:
            return CosineReadout()
        return ClassRowsReadout(config.head_classes, feature_dim, **placed_like(view))


class TwoStageModel(PromptTuner):
    """Tuner of the two stages."""

    peft_name = "two_stage"
    prefix = "two_stage_"
    method = TwoStage()
