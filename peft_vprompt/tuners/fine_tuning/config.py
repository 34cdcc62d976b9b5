"""Configuration: fine-tuning of whole modules: all of them, the last layers, or the head alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft.utils import PeftType

from ..base.config import BaselineConfig


@dataclass
class FineTuningConfig(BaselineConfig):
    """Fine-tuning of whole modules, as copies: the base model stays as it is for other adapters.

    Baselines "Full", "Partial-k" and "Linear" in Jia et al., "Visual Prompt Tuning", ECCV 2022, section 4.1. PEFT's
    `modules_to_save` makes such copies, too, but only beside another method, and `unload()` would not take them out.

    Example:

    ```python
    get_peft_model(vit, FineTuningConfig(num_layers=1))  # Partial-1
    ```

    Raises:
        ValueError: `num_layers` is negative or no integer.
    """

    num_layers: int | None = field(
        default=None,
        metadata={
            "help": "Layers to train, counted from the last, with the final norm and the head; 0: the head alone "
            "(linear probing). Default: the whole model.",
            "min": 0,
        },
    )

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.FINE_TUNING
