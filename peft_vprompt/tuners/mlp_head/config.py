"""Configuration: a perceptron in the place of the head."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft.utils import PeftType

from ..base.config import BaselineConfig


@dataclass
class MLPHeadConfig(BaselineConfig):
    """A multi-layer perceptron in the place of the linear head, on frozen features.

    Paper: Jia et al., ECCV 2022, section 4.1 ("Mlp-k"); hidden layers are Linear - BatchNorm - ReLU - Dropout of the
    features' width.

    Example:

    ```python
    get_peft_model(vit, MLPHeadConfig(num_layers=3))
    ```

    Raises:
        ValueError: `num_layers` below 1 or `dropout` outside [0, 1).
    """

    num_layers: int = field(
        default=3, metadata={"help": "Linear layers, the last one included (k of Mlp-k).", "min": 1, "max": 100}
    )
    dropout: float = field(default=0.1, metadata={"help": "Dropout after every hidden layer.", "min": 0, "below": 1})

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.MLP_HEAD
