"""Configuration of self-regulating prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from peft.utils import PeftType

from ..maple.config import MaPLeConfig


@dataclass
class PromptSRCConfig(MaPLeConfig):
    """PromptSRC: independent deep prompts in both towers, held near what the frozen model says.

    Paper: Khattak et al., "Self-regulating Prompts: Foundational Model Adaptation without Forgetting", ICCV 2023. Defaults
    are the authors' for base-to-novel generalisation. The average of the weights over the epochs, the method's third
    part, belongs to the training: `training.AverageWeights`, and the method's recipe.

    Example:

    ```python
    PromptSRCConfig(class_names=["cat", "dog"], frozen_template=["a photo of a {}.", "a drawing of a {}."])
    ```
    """

    num_virtual_tokens: int = field(
        default=4, metadata={"help": "Prompts per prompted layer, in both towers.", "min": 1}
    )
    coupling: Literal["linear", "none"] = field(
        default="none",
        metadata={"help": "'none': free visual prompts (PromptSRC); 'linear': mapped from the text prompts (MaPLe)."},
    )
    text_consistency_weight: float = field(
        default=25.0, metadata={"help": "Weight of the distance of the class features to the frozen ones.", "min": 0}
    )
    image_consistency_weight: float = field(
        default=10.0, metadata={"help": "Weight of the distance of the image features to the frozen ones.", "min": 0}
    )
    logit_consistency_weight: float = field(
        default=1.0, metadata={"help": "Weight of the divergence from the frozen model's predictions.", "min": 0}
    )
    consistency_distance: Literal["cosine", "l1"] = field(
        default="l1", metadata={"help": "Distance of features: 'l1' (mean difference) or 'cosine' (1 minus the mean)."}
    )

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.PROMPTSRC
