"""Configuration: bias tuning (BitFit)."""

from __future__ import annotations

from dataclasses import dataclass

from peft.utils import PeftType

from ..base.config import BaselineConfig


@dataclass
class BiasTuningConfig(BaselineConfig):
    """BitFit: every bias of the encoder and the head are trained, all weights stay frozen.

    Papers: Ben Zaken et al., "BitFit", ACL 2022; as a baseline ("Bias") in Jia et al., "Visual Prompt Tuning", ECCV
    2022, section 4.1.

    Example:

    ```python
    get_peft_model(vit, BiasTuningConfig())
    ```
    """

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.BIAS_TUNING
