"""Configuration of tuning the norms in the layers of both towers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from peft.utils import PeftType

from ..base.config import PromptConfig


@dataclass
class NormTuningConfig(PromptConfig):
    """Tuning of the LayerNorms inside the layers of both towers, on class names; class prompts are the template's.

    It is the first stage of Farina et al., "Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages", CVPR
    2025 (`TwoStageConfig` has both). PEFT's own `LNTuningConfig` merges by exchanging the norms, and its adapters cannot
    live beside prompts.

    Example:

    ```python
    NormTuningConfig(class_names=["cat", "dog"])
    ```

    Raises:
        ValueError: a first layer below 0, or an unknown choice of towers.
    """

    towers: Literal["both", "text", "vision"] = field(
        default="both", metadata={"help": "Towers whose norms are trained: 'both', 'text' or 'vision'."}
    )
    text_first_layer: int = field(
        default=0,
        metadata={"help": "The first layer of the text tower whose norms are trained, counted from 0.", "min": 0},
    )
    vision_first_layer: int = field(
        default=0,
        metadata={"help": "The first layer of the image tower whose norms are trained, counted from 0.", "min": 0},
    )

    def __post_init__(self):
        self.peft_type = PeftType.NORM_TUNING
        super().__post_init__()
