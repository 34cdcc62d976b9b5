"""Configuration: side tuning."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft.utils import PeftType

from ..base.config import BaselineConfig


@dataclass
class SideTuningConfig(BaselineConfig):
    """Side tuning: a small network of its own beside the frozen encoder, blended in by a learned sigmoid(alpha).

    Papers: Zhang et al., "Side-Tuning", ECCV 2020; as a baseline ("Sidetune") in Jia et al., ECCV 2022. The side network
    is transformers' `ResNetModel` with basic blocks, one per stage, from random weights (the authors': a pretrained
    AlexNet).

    Example:

    ```python
    get_peft_model(vit, SideTuningConfig(side_widths=[32, 64, 128]))
    ```

    Raises:
        ValueError: no stage, or a width below 1.
    """

    side_widths: list[int] = field(
        default_factory=lambda: [32, 64, 128],
        metadata={"help": "Channels of the side network's stages.", "min": 1, "max": 65536, "items": 16},
    )

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.SIDE_TUNING
        if not self.side_widths:
            raise ValueError("Expected at least one stage. Received: side_widths=[].")
