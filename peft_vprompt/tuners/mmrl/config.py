"""Configuration of multi-modal representation learning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from peft.utils import PeftType

from ..base.config import PromptConfig


@dataclass
class MMRLConfig(PromptConfig):
    """MMRL, MMRL++ and AlignedNorm: tokens of a space that both towers share, in their late layers.

    Papers: Guo and Gu, "MMRL: Multi-Modal Representation Learning for Vision-Language Models", CVPR 2025; "MMRL++", 2025
    (`low_rank`); AlignedNorm (`low_rank` and the two norm weights). Defaults are MMRL's.

    Example:

    ```python
    MMRLConfig(class_names=["cat", "dog"])                                                            # MMRL
    MMRLConfig(class_names=["cat", "dog"], low_rank=4)                                                # MMRL++
    MMRLConfig(class_names=["cat", "dog"], low_rank=4, feature_norm_weight=0.1, sequence_norm_weight=0.1)
    ```
    """

    num_virtual_tokens: int = field(default=5, metadata={"help": "Tokens of the shared space.", "min": 1})
    representation_dim: int = field(default=512, metadata={"help": "Size of the shared space.", "min": 1})
    representation_layers: list[int] = field(
        default_factory=lambda: list(range(6, 13)),
        metadata={
            "help": "Layers of both towers, counted from 1, in front of which the tokens come in.",
            "min": 1,
        },
    )
    alpha: float = field(
        default=0.7,
        metadata={"help": "Share of the class token's prediction; the rest is the tokens'.", "min": 0, "max": 1},
    )
    consistency_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the distances of class token and class features to the frozen ones.", "min": 0},
    )
    text_consistency_weight: float | None = field(
        default=None,
        metadata={"help": "The same for the class features alone. Default: consistency_weight.", "min": 0},
    )
    image_consistency_weight: float | None = field(
        default=None, metadata={"help": "The same for the class token alone. Default: consistency_weight.", "min": 0}
    )
    low_rank: int | None = field(
        default=None,
        metadata={
            "help": "Rank of what each layer adds to a shared map (MMRL++: 4); None: maps of their own (MMRL).",
            "min": 1,
        },
    )
    readout_rank: int = field(
        default=64,
        metadata={
            "help": "With low_rank: rank of what the tokens' readout adds to the model's own projection.",
            "min": 1,
        },
    )
    beta: float = field(
        default=0.9,
        metadata={
            "help": "With low_rank: share of a layer's new tokens; the rest flows on from before.",
            "min": 0,
            "max": 1,
        },
    )
    feature_norm_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of the difference of norms of the two image features (AlignedNorm: 0.1).", "min": 0},
    )
    sequence_norm_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of the difference of norms in the layers with tokens (AlignedNorm: 0.1).", "min": 0},
    )
    logit_scale: float | None = field(
        default=100.0, metadata={"help": "What cosines are multiplied by; None: the model's own scale.", "above": 0}
    )
    readout: Literal["fused", "class", "decoupled"] = field(
        default="fused",
        metadata={
            "help": "Prediction: 'fused' (class token and tokens), 'class' (class token), or 'decoupled' (the paper's: "
            "fused for the classes it was trained on, the class token's for others)."
        },
    )

    def __post_init__(self):
        self.peft_type = PeftType.MMRL
        super().__post_init__()
        if not self.representation_layers:
            raise ValueError("Expected at least one of representation_layers. Received: representation_layers=[].")
        self.representation_layers = sorted(set(self.representation_layers))
        if self.text_consistency_weight is None:
            self.text_consistency_weight = self.consistency_weight
        if self.image_consistency_weight is None:
            self.image_consistency_weight = self.consistency_weight

    @property
    def layers(self) -> list[int]:
        """The layers, counted from 0."""
        return [layer - 1 for layer in self.representation_layers]

    @property
    def share(self) -> float:
        """Share of a layer's new tokens: all of them in MMRL."""
        return 1.0 if self.low_rank is None else self.beta
