"""Knowledge-guided context optimisation.

Paper: Yao et al., "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization", CVPR 2023, section 3.2.
Authors' code: htyao89/KgCoOp `trainers/kgcoop.py`.

Deviation: the frozen class features come from the model in its own precision (the authors' are always of half precision).
"""

from __future__ import annotations

from ...losses.regularizers import Regularizer, TextConsistency
from ..base.tuner import PromptTuner
from ..coop.method import CoOpContext
from .config import KgCoOpConfig


class KgCoOp(CoOpContext):
    """CoOp's shared context with one more term of the loss."""

    def regularizers(self, config: KgCoOpConfig) -> dict[str, tuple[float, Regularizer]]:
        """Return the distance of the class features to the frozen ones (equation 4)."""
        return {"text_consistency": (config.text_consistency_weight, TextConsistency())}


class KgCoOpModel(PromptTuner):
    """KgCoOp's tuner."""

    peft_name = "kgcoop"
    prefix = "knowledge_prompt_"
    method = KgCoOp()
