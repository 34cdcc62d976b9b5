"""Configuration of read-only prompts."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft.utils import PeftType

from ..base.config import PromptConfig


@dataclass
class ReadOnlyPromptConfig(PromptConfig):
    """RPO: K read-only prompts in each encoder; each pair's cosine is one vote.

    Paper: Lee et al., "Read-only Prompt Optimization for Vision-Language Few-shot Learning", ICCV 2023.

    Example:

    ```python
    ReadOnlyPromptConfig(class_names=["cat", "dog"], num_virtual_tokens=24)
    ```
    """

    num_virtual_tokens: int = field(
        default=24, metadata={"help": "K, the number of read-only prompts in each encoder.", "min": 1}
    )

    def __post_init__(self):
        self.peft_type = PeftType.READ_ONLY_PROMPT
        super().__post_init__()


#: The name people say.
RPOConfig = ReadOnlyPromptConfig
