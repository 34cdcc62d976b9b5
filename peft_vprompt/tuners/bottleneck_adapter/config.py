"""Configuration: pfeiffer adapters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from peft.utils import PeftType

from ..base.config import BaselineConfig


@dataclass
class BottleneckAdapterConfig(BaselineConfig):
    """Pfeiffer adapters: a bottleneck with a residual connection after the feed-forward part of every layer.

    Papers: Pfeiffer et al., "AdapterFusion", EACL 2021; as a baseline ("Adapter") in Jia et al., ECCV 2022.

    Example:

    ```python
    get_peft_model(vit, BottleneckAdapterConfig(reduction_factor=8))
    ```

    Raises:
        ValueError: `reduction_factor` below 1 or an unknown start.
    """

    reduction_factor: int = field(
        default=8, metadata={"help": "Width of the model over width of the bottleneck.", "min": 1}
    )
    init_weights: Literal["identity", "zero"] = field(
        default="identity",
        metadata={
            "help": "'identity': only the second matrix starts at zero, as in PEFT's LoRA. 'zero': both do, as in the "
            "authors' code; then no gradient reaches either and only the last bias learns."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.BOTTLENECK_ADAPTER
