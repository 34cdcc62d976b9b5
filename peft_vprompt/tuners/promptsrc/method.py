"""Self-regulating prompts: IVLP's prompts, with the three consistencies of their config in the loss.

Paper: Khattak et al., "Self-regulating Prompts: Foundational Model Adaptation without Forgetting", ICCV 2023, section 3.2.
Authors' code: muzairkhattak/PromptSRC `trainers/promptsrc.py`, commit bb95c77.

As in that code, the divergence is divided by the number of images times that of classes, distances of features are means
over their entries, and the frozen features of the templates are averaged before they are normalised.

Deviation: the frozen class features come from the model in its own precision (the authors' are always of half precision).
"""

from __future__ import annotations

from ..base.tuner import PromptTuner
from ..maple.method import MaPLe


class PromptSRC(MaPLe):
    """Deep prompts on both towers, near the frozen model."""

    normalizes_frozen_templates = False


class PromptSRCModel(PromptTuner):
    """PromptSRC's tuner."""

    peft_name = "promptsrc"
    prefix = "self_regulating_prompt_"
    method = PromptSRC()
