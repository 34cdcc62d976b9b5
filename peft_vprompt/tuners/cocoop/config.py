"""Configuration of conditional context optimisation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from peft.utils import PeftType

from ..base.config import ContextConfig


@dataclass
class CoCoOpConfig(ContextConfig):
    """CoCoOp: a context before the class name that a Meta-Net shifts by the image.

    Paper: Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022. Defaults are the paper's:
    four context tokens that start from "a photo of a".

    Example:

    ```python
    CoCoOpConfig(class_names=["cat", "dog"])
    ```
    """

    prompt_init: Literal["random", "text"] = field(
        default="text", metadata={"help": "'text' (the words of prompt_init_text) or 'random' (normal, std 0.02)."}
    )
    prompt_init_text: str | None = field(default="a photo of a", metadata={"help": "Words to start the context from."})

    def __post_init__(self):
        self.peft_type = PeftType.COCOOP
        super().__post_init__()
        self.set_length(default=4)
