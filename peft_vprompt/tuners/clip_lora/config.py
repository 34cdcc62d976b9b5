"""Configuration of a LoRA of both towers on class names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from peft import LoraConfig
from peft.utils import PeftType

from ..base.config import PromptConfig


@dataclass
class CLIPLoraConfig(PromptConfig, LoraConfig):
    """CLIP-LoRA: PEFT's LoRA on queries, keys and values of both towers, trained on class names.

    Paper: Zanella and Ben Ayed, "Low-Rank Few-Shot Adaptation of Vision-Language Models", CVPR 2024 Workshops. Every
    field of PEFT's `LoraConfig` is here, with the paper's defaults. The scale is `lora_alpha` / sqrt(`r`), as
    `use_rslora` has it.

    Example:

    ```python
    CLIPLoraConfig(class_names=["cat", "dog"])
    CLIPLoraConfig(class_names=["cat", "dog"], towers="vision", r=4)
    ```
    """

    r: int = field(default=2, metadata={"help": "Rank of the change of each weight.", "min": 1})
    lora_alpha: int = field(
        default=1, metadata={"help": "The change is scaled by lora_alpha / sqrt(r), or / r without use_rslora."}
    )
    lora_dropout: float = field(
        default=0.25,
        metadata={"help": "Dropout in front of each low-rank branch, in training.", "min": 0, "below": 1},
    )
    use_rslora: bool = field(
        default=True, metadata={"help": "Scale by lora_alpha / sqrt(r) instead of lora_alpha / r."}
    )
    towers: Literal["both", "text", "vision"] = field(
        default="both",
        metadata={"help": "Towers whose queries, keys and values are adapted, where target_modules is left out."},
    )
    logit_scale: float | None = field(
        default=100.0, metadata={"help": "What cosines are multiplied by; None: the model's own scale.", "above": 0}
    )

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.CLIP_LORA
