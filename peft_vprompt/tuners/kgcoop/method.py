"""Knowledge-guided context optimisation: CoOp's context, with the text consistency of its config in the loss.

Paper: Yao et al., "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization", CVPR 2023, section 3.2.
Authors' code: htyao89/KgCoOp `trainers/kgcoop.py`.

Deviations: the frozen class features come from the model in its own precision (the authors' are always of half precision);
contexts of single classes may start from words too (the authors have them at random alone).
"""

from __future__ import annotations

from ..base.tuner import PromptTuner
from ..coop.method import CoOpContext


class KgCoOpModel(PromptTuner):
    """KgCoOp's tuner."""

    peft_name = "kgcoop"
    prefix = "knowledge_prompt_"
    method = CoOpContext()
