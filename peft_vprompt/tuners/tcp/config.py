"""Configuration of textual-based class-aware prompts."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft.utils import PeftType

from ..base.class_name_checks import check_templates
from ..base.config import ContextConfig


@dataclass
class TCPConfig(ContextConfig):
    """TCP: a context that gives way, late in the text tower, to tokens made of each class's frozen feature.

    Paper: Yao et al., "TCP: Textual-based Class-aware Prompt tuning for Visual-Language Model", CVPR 2024. Defaults are the
    authors'.

    Example:

    ```python
    TCPConfig(
        class_names=["cat", "dog"],
        frozen_template="a photo of a {}, a type of pet.",
        prompt_template="{}, a type of pet.",
    )
    ```
    """

    num_class_tokens: int = field(
        default=4,
        metadata={"help": "Tokens of each class; they replace as many context tokens, from the first on.", "min": 1},
    )
    class_token_layer: int = field(
        default=8, metadata={"help": "Text layer, counted from 0, in front of which they do so; from 1 on.", "min": 1}
    )
    prompt_template: str = field(
        default="{}.",
        metadata={
            "help": "Text behind the context, with {} for the class name, e.g. '{}, a type of pet.'; the authors have one for "
            "each data set."
        },
    )
    text_consistency_weight: float = field(
        default=8.0,
        metadata={"help": "Weight of 1 minus the mean cosine of the class features to the frozen ones.", "min": 0},
    )

    def __post_init__(self):
        self.peft_type = PeftType.TCP
        super().__post_init__()
        self.set_length(default=4)
        check_templates("prompt_template", self.prompt_template)
        if self.num_class_tokens > self.length:
            raise ValueError(
                f"Expected num_class_tokens <= num_virtual_tokens, whose place they take. Received: "
                f"num_class_tokens={self.num_class_tokens}, num_virtual_tokens={self.length}."
            )
