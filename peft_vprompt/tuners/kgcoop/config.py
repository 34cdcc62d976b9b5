"""Configuration of knowledge-guided context optimisation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from peft.utils import PeftType

from ..base.config import ClassContextConfig


@dataclass
class KgCoOpConfig(ClassContextConfig):
    """KgCoOp: CoOp's context, held near the class features of the frozen model.

    Paper: Yao et al., "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization", CVPR 2023. Defaults are
    those of the authors' scripts: four context tokens that start from "a photo of a", weight 8.

    Example:

    ```python
    KgCoOpConfig(class_names=["cat", "dog"], frozen_template="a photo of a {}, a type of pet.")
    ```
    """

    prompt_init: Literal["random", "text"] = field(
        default="text", metadata={"help": "'text' (the words of prompt_init_text) or 'random' (normal, std 0.02)."}
    )
    prompt_init_text: str | None = field(default="a photo of a", metadata={"help": "Words to start the context from."})
    text_consistency_weight: float = field(
        default=8.0,
        metadata={"help": "Weight of 1 minus the mean cosine of the class features to the frozen ones.", "min": 0},
    )

    def __post_init__(self):
        self.peft_type = PeftType.KGCOOP
        super().__post_init__()
        self.set_length(default=4)
