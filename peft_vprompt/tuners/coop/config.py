"""Configuration of context optimisation."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Literal

from peft.utils import PeftType

from ..base.class_name_checks import check_prompts
from ..base.config import ClassContextConfig


#: Context length of the paper's main results.
DEFAULT_CONTEXT_LENGTH = 16


@dataclass
class ContextOptConfig(ClassContextConfig):
    """CoOp: learned context vectors around the class name.

    Paper: Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022.

    Example:

    ```python
    ContextOptConfig(class_names=["cat", "dog"], prompt_init="text", prompt_init_text="a photo of a")
    ```
    """

    class_token_position: Literal["end", "middle", "front"] = field(
        default="end", metadata={"help": "Where the name stands: 'end', 'middle' or 'front' of the context."}
    )
    tune: Literal["context", "class_name", "full"] = field(
        default="context",
        metadata={
            "help": "What is learned: 'context'; 'class_name' (the tokens of the names, in the fixed words of "
            "prompt_init_text or 'a photo of a'); or 'full' (both). Learned names know their own classes only."
        },
    )

    num_contexts: int = field(
        default=1,
        metadata={
            "help": "Contexts side by side whose logits are averaged (UPL's ensemble); trained one by one and put in "
            "by `ensemble.set_contexts`, or together on the averaged logits.",
            "min": 1,
            "max": 1000,
        },
    )

    def __post_init__(self):
        self.peft_type = PeftType.CONTEXT_OPT
        super().__post_init__()
        check_prompts(len(self.class_names or ()), self.num_contexts)
        if self.num_contexts > 1 and self.belongs_to_classes:
            raise ValueError(
                "Expected class_specific=False and tune='context' with several contexts, which move to any classes. "
                f"Received: num_contexts={self.num_contexts}, class_specific={self.class_specific}, tune={self.tune!r}."
            )
        if self.tune == "class_name":
            self.prompt_init, self.prompt_init_text = "text", self.prompt_init_text or "a photo of a"
        if self.prompt_init == "random" and self.prompt_init_text is not None:
            warnings.warn(
                f"prompt_init_text={self.prompt_init_text!r} is ignored with prompt_init='random'. Pass "
                "prompt_init='text' to start from these words.",
                stacklevel=3,
            )
        self.set_length(default=DEFAULT_CONTEXT_LENGTH)
        if self.tune == "class_name" and self.class_specific:
            raise ValueError("Expected class_specific=False with tune='class_name', which learns no context.")

    @property
    def learn(self) -> tuple[str, ...]:
        """The parts of a class prompt that are learned."""
        return ("context", "class_name") if self.tune == "full" else (self.tune,)

    @property
    def belongs_to_classes(self) -> bool:
        """Whether something is learned for each class, which means nothing for others."""
        return self.class_specific or self.tune != "context"


#: The name people say.
CoOpConfig = ContextOptConfig
