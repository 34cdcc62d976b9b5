"""Configuration of fine-tuning of the text encoder."""

from __future__ import annotations

from dataclasses import dataclass

from peft.utils import PeftType

from ..base.config import PromptConfig


@dataclass
class TextEncoderConfig(PromptConfig):
    """Fine-tuning of the whole text encoder (TEnc-FT); class prompts are the template's.

    Paper: Wu et al., ICCV 2023, section 3. The adapter holds a copy of the text encoder, so it is as large as that.

    Example:

    ```python
    TextEncoderConfig(class_names=["cat", "dog"])
    ```
    """

    def __post_init__(self):
        self.peft_type = PeftType.TEXT_ENCODER
        super().__post_init__()
