"""Configuration of prompt-aligned gradients."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft.utils import PeftType

from ...utils.validation import require_int, require_number
from ..base.config import ContextConfig


@dataclass
class ProGradConfig(ContextConfig):
    """ProGrad: CoOp's context, whose gradient never goes against what the frozen model knows.

    Paper: Zhu et al., "Prompt-aligned Gradient for Prompt Tuning", ICCV 2023. Defaults are those of the authors' scripts:
    16 context tokens, zeros before the embeddings of the template's words.

    Example:

    ```python
    ProGradConfig(class_names=["cat", "dog"], prompt_init_text="a photo of a", frozen_template="a photo of a {}.")
    ```
    """

    prompt_init: str = field(
        default="text",
        metadata={"help": "'text' (zeros, then the words of prompt_init_text) or 'random' (normal, std 0.02)."},
    )
    prompt_init_text: str | None = field(
        default="a photo of a", metadata={"help": "Words that the last context tokens start from."}
    )
    num_virtual_tokens: int | None = field(
        default=16, metadata={"help": "Context tokens; at least as many as prompt_init_text has words."}
    )
    projection_weight: float = field(
        default=1.0, metadata={"help": "Share of the gradient against the frozen model that is taken out; 0: none."}
    )
    temperature: float = field(
        default=1.0, metadata={"help": "Temperature of both predictions in the distance from the frozen model's."}
    )

    def __post_init__(self):
        self.peft_type = PeftType.PROGRAD
        super().__post_init__()
        self.check_words()
        require_int("num_virtual_tokens", self.num_virtual_tokens, 1)
        if (count := len((self.words or "").split())) > self.length:
            raise ValueError(
                f"Expected at least as many context tokens as the {count} words of "
                f"prompt_init_text={self.prompt_init_text!r}. Received: num_virtual_tokens={self.length}."
            )
        require_number("projection_weight", self.projection_weight, 0)
        require_number("temperature", self.temperature, 0)
        if self.temperature == 0:
            raise ValueError("Expected temperature above 0. Received: temperature=0.")

    @property
    def text_around(self) -> str | None:
        """The words behind as many fillers as the context has tokens before them."""
        if self.words is None:
            return None
        words = self.words.split()
        return " ".join(["X"] * (self.length - len(words)) + words)
