"""Configuration of read-only prompts."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft.utils import PeftType

from ...utils.validation import require_choice, require_int
from ..base.config import PromptConfig


@dataclass
class ReadOnlyPromptConfig(PromptConfig):
    """RPO: K readers in each encoder; each pair's cosine is one vote.

    Paper: Lee et al., "Read-only Prompt Optimization for Vision-Language Few-shot Learning", ICCV 2023.

    Example:

    ```python
    ReadOnlyPromptConfig(class_names=["cat", "dog"], num_virtual_tokens=24)
    ```
    """

    num_virtual_tokens: int = field(default=24, metadata={"help": "K, the number of readers in each encoder."})

    def __post_init__(self):
        self.peft_type = PeftType.READ_ONLY_PROMPT
        super().__post_init__()
        require_int("num_virtual_tokens", self.num_virtual_tokens, 1)


@dataclass
class MRPOConfig(PromptConfig):
    """MRPO: deep readers, the visual ones a linear image of the text ones.

    Paper: Seo and Lee, "Multi-modal Read-only Prompt Optimization", Kookmin University.

    As published ("replace"), layers 1 to J each drop the readers of the layer before and insert new ones. Nobody ever
    read the dropped ones, so only the readers of layer J (and their map) learn; the others are not created here.
    "accumulate" adds each layer's prompts to the carried readers instead, and every depth learns.

    Example:

    ```python
    MRPOConfig(class_names=["cat", "dog"], prompt_depth=9, prompt_update="accumulate")
    ```
    """

    num_virtual_tokens: int = field(default=4, metadata={"help": "K, the number of readers in each encoder."})
    prompt_depth: int = field(
        default=9, metadata={"help": "J, the layers from the first at which readers start anew."}
    )
    coupling: str = field(
        default="linear",
        metadata={"help": "'linear': visual readers are mapped from the text readers; 'none': free."},
    )
    prompt_update: str = field(
        default="replace",
        metadata={"help": "'replace' (as published) or 'accumulate' (prompts are added to the carried readers)."},
    )

    def __post_init__(self):
        self.peft_type = PeftType.MRPO
        super().__post_init__()
        require_int("num_virtual_tokens", self.num_virtual_tokens, 1)
        require_int("prompt_depth", self.prompt_depth, 1)
        require_choice("coupling", self.coupling, ("linear", "none"))
        require_choice("prompt_update", self.prompt_update, ("replace", "accumulate"))
