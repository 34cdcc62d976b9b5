"""Configuration of class-adaptive linear probing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from peft.utils import PeftType

from ...errors import ClassNamesError
from ..base.config import PromptConfig


@dataclass
class CLAPConfig(PromptConfig):
    """CLAP: one prototype per class, started from the text features and held near them; without it, ZS-LP.

    Paper: Silva-Rodriguez et al., "A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models", CVPR 2024. No
    validation images are needed. How strongly each class is held, `model.set_support` finds out on the training images.

    Example:

    ```python
    CLAPConfig(class_names=["cat", "dog"])                     # CLAP
    CLAPConfig(class_names=["cat", "dog"], constraint="none")  # ZS-LP
    ```
    """

    constraint: Literal["l2", "none"] = field(
        default="l2",
        metadata={
            "help": "'l2': the squared distance of prototypes to their start is in the loss (CLAP); 'none' (ZS-LP)."
        },
    )
    class_penalties: list[float] | None = field(
        default=None,
        metadata={
            "help": "What the distance of each class counts: set by `set_support` to the mean probability that zero-shot "
            "gives the right class on its images.",
            "min": 0,
        },
    )
    keep_underscores: bool = field(
        default=True,
        metadata={
            "help": "Whether the start reads class names as they are written, as the authors do; else as spaces."
        },
    )

    belongs_to_classes = True

    def __post_init__(self):
        self.peft_type = PeftType.CLAP
        super().__post_init__()
        if self.class_names is None:
            raise ClassNamesError("Expected class_names: each class has a prototype.")
        if self.class_penalties is not None and len(self.class_penalties) != len(self.class_names):
            raise ValueError(
                f"Expected one of class_penalties for each of {len(self.class_names)} classes. Received: "
                f"{len(self.class_penalties)} of them."
            )
