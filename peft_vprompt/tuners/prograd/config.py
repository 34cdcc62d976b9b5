"""Configuration of prompt-aligned gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from peft.utils import PeftType

from ..base.config import ClassContextConfig


@dataclass
class ProGradConfig(ClassContextConfig):
    """ProGrad: CoOp's context, whose gradient never goes against what the frozen model knows.

    Paper: Zhu et al., "Prompt-aligned Gradient for Prompt Tuning", ICCV 2023. Defaults are those of the authors' scripts:
    16 context tokens, zeros before the embeddings of the template's words.

    `loss.backward()` leaves the projected gradient in any loop. In gradient accumulation each pass is projected by itself and the
    results add up; in distributed training each process projects its own before they are averaged.

    Example:

    ```python
    ProGradConfig(class_names=["cat", "dog"], prompt_init_text="a photo of a", frozen_template="a photo of a {}.")
    ```
    """

    prompt_init: Literal["random", "text"] = field(
        default="text",
        metadata={"help": "'text' (zeros, then the words of prompt_init_text) or 'random' (normal, std 0.02)."},
    )
    prompt_init_text: str | None = field(
        default="a photo of a", metadata={"help": "Words that the last context tokens start from."}
    )
    num_virtual_tokens: int = field(
        default=16, metadata={"help": "Context tokens; at least as many as prompt_init_text has words.", "min": 1}
    )
    projection_weight: float = field(
        default=1.0,
        metadata={"help": "Share of the gradient against the frozen model that is taken out; 0: none.", "min": 0},
    )
    temperature: float = field(
        default=1.0,
        metadata={"help": "Temperature of both predictions in the distance from the frozen model's.", "above": 0},
    )

    def __post_init__(self):
        self.peft_type = PeftType.PROGRAD
        super().__post_init__()
        if self.prompt_init == "text":
            self.require_words()
        if (count := len((self.words or "").split())) > self.length:
            raise ValueError(
                f"Expected at least as many context tokens as the {count} words of "
                f"prompt_init_text={self.prompt_init_text!r}. Received: num_virtual_tokens={self.length}."
            )

    @property
    def text_around(self) -> str | None:
        """The words behind as many fillers as the context has tokens before them."""
        if self.words is None:
            return None
        words = self.words.split()
        return " ".join(["X"] * (self.length - len(words)) + words)
