"""Configurations of the variants that prompt tuning is compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from peft.utils import PeftType

from ...errors import ClassNamesError
from ..base.config import PromptConfig


@dataclass
class ClassHeadConfig(PromptConfig):
    """A linear head on CLIP's image features: random (Classifier-R) or started from the text features (Classifier-C).

    Paper: Wu et al., "Why Is Prompt Tuning for Vision-Language Models Robust to Noisy Labels?", ICCV 2023, section 3.

    Example:

    ```python
    ClassHeadConfig(class_names=["cat", "dog"], head_init="text")
    ```
    """

    head_init: Literal["random", "text"] = field(
        default="random",
        metadata={"help": "'random' (Classifier-R), or 'text': rows start as the classes' text features (-C)."},
    )

    def __post_init__(self):
        self.peft_type = PeftType.CLASS_HEAD
        super().__post_init__()
        if self.class_names is None:
            raise ClassNamesError("Expected class_names: the head has one row for each class.")

    belongs_to_classes = True
