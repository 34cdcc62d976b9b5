"""Configuration of multi-modal read-only prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from peft.utils import PeftType

from ..base.config import PromptConfig


@dataclass
class MRPOConfig(PromptConfig):
    """MRPO: deep read-only prompts, the visual ones a linear image of the text ones.

    Paper: Seo and Lee, "Multi-modal Read-only Prompt Optimization", Kookmin University.

    As published ("replace"), layers 1 to J each drop the read-only prompts of the layer before and insert new ones. Nobody ever
    read the dropped ones, so only the read-only prompts of layer J (and their map) learn; the others are not created here.
    "accumulate" adds each layer's prompts to the carried read-only prompts instead, and every depth learns.

    Example:

    ```python
    MRPOConfig(class_names=["cat", "dog"], prompt_depth=9, prompt_update="accumulate")
    ```
    """

    num_virtual_tokens: int = field(
        default=4, metadata={"help": "K, the number of read-only prompts in each encoder.", "min": 1}
    )
    prompt_depth: int = field(
        default=9, metadata={"help": "J, the layers from the first at which read-only prompts start anew.", "min": 1}
    )
    coupling: Literal["linear", "none"] = field(
        default="linear",
        metadata={
            "help": "'linear': visual read-only prompts are mapped from the text read-only prompts; 'none': free."
        },
    )
    prompt_update: Literal["replace", "accumulate"] = field(
        default="replace",
        metadata={
            "help": "'replace' (as published) or 'accumulate' (prompts are added to the carried read-only prompts)."
        },
    )

    def __post_init__(self):
        self.peft_type = PeftType.MRPO
        super().__post_init__()
