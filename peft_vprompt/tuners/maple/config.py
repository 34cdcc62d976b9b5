"""Configuration of multi-modal prompt learning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from peft.utils import PeftType

from ..base.config import PromptConfig


#: Most text prompts that start from words (muzairkhattak/multimodal-prompt-learning `trainers/maple.py`, `n_ctx <= 4`).
MOST_FROM_WORDS = 4


@dataclass
class MaPLeConfig(PromptConfig):
    """MaPLe: deep prompts in both towers, the visual ones a linear image of the text ones; without coupling, IVLP.

    Paper: Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023. Defaults are the paper's for base-to-novel
    generalisation.

    Example:

    ```python
    MaPLeConfig(class_names=["cat", "dog"])                                                 # MaPLe
    MaPLeConfig(class_names=["cat", "dog"], coupling="none", num_virtual_tokens=4)          # IVLP
    MaPLeConfig(class_names=["cat", "dog"], coupling="none", text_prompt_depth=0)           # visual prompts only
    ```
    """

    num_virtual_tokens: int = field(
        default=2, metadata={"help": "Prompts per prompted layer, in both towers.", "min": 1}
    )
    prompt_depth: int = field(
        default=9, metadata={"help": "How many layers, from the first, get prompts of their own.", "min": 0}
    )
    coupling: Literal["linear", "none"] = field(
        default="linear",
        metadata={"help": "'linear': visual prompts are mapped from the text prompts (MaPLe); 'none': free (IVLP)."},
    )
    text_num_virtual_tokens: int | None = field(
        default=None, metadata={"help": "Prompts per layer, text tower only.", "min": 1}
    )
    vision_num_virtual_tokens: int | None = field(
        default=None, metadata={"help": "Prompts per layer, vision tower only (coupling='none').", "min": 1}
    )
    text_prompt_depth: int | None = field(
        default=None, metadata={"help": "Prompted text layers; 0 for none.", "min": 0}
    )
    vision_prompt_depth: int | None = field(
        default=None, metadata={"help": "Prompted vision layers; 0 for none.", "min": 0}
    )
    prompt_init: Literal["random", "text"] = field(
        default="text",
        metadata={"help": "Start of the first text prompts: 'text' (words of prompt_init_text) or 'random'."},
    )
    prompt_init_text: str | None = field(
        default="a photo of a",
        metadata={
            "help": "The first prompts replace its first words; more than 4 prompts ignore it, as the authors' do."
        },
    )

    def __post_init__(self):
        self.peft_type = PeftType.MAPLE
        super().__post_init__()
        if not self.text_depth and not self.vision_depth:
            raise ValueError(
                "Expected prompts in at least one tower. Received: text_prompt_depth and vision_prompt_depth (or prompt_depth, "
                "which stands for both) of 0. Set one of them to 1 or more."
            )
        if self.coupling == "linear" and self.vision_depth:
            self._check_coupling()

    @property
    def text_depth(self) -> int:
        """Prompted layers of the text tower."""
        return self.prompt_depth if self.text_prompt_depth is None else self.text_prompt_depth

    @property
    def vision_depth(self) -> int:
        """Prompted layers of the vision tower."""
        return self.prompt_depth if self.vision_prompt_depth is None else self.vision_prompt_depth

    @property
    def text_length(self) -> int:
        """Prompts per text layer."""
        return self.text_num_virtual_tokens or self.num_virtual_tokens

    @property
    def vision_length(self) -> int:
        """Prompts per vision layer."""
        return self.vision_num_virtual_tokens or self.num_virtual_tokens

    @property
    def words(self) -> str | None:
        """The words whose first tokens the first text prompts replace; None where prompts stand alone."""
        words = (self.prompt_init_text or "").replace("_", " ")
        usable = self.prompt_init == "text" and self.text_depth and self.text_length <= MOST_FROM_WORDS
        return words if usable and words.strip() else None

    def _check_coupling(self) -> None:
        if self.vision_length != self.text_length:
            raise ValueError(
                f"Expected as many visual as text prompts with coupling='linear', which maps one to the other. "
                f"Received: {self.text_length} text and {self.vision_length} visual prompts. Use coupling='none'."
            )
        if self.vision_depth > self.text_depth:
            raise ValueError(
                f"Expected vision_prompt_depth <= text_prompt_depth with coupling='linear', which has no other source "
                f"for visual prompts. Received: {self.vision_depth} > {self.text_depth}. Use coupling='none'."
            )
