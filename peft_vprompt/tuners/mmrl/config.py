"""Configuration of multi-modal representation learning."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft.utils import PeftType

from ...utils.validation import require_choice, require_int, require_number
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

    num_virtual_tokens: int = field(default=5, metadata={"help": "Tokens of the shared space."})
    representation_dim: int = field(default=512, metadata={"help": "Size of the shared space."})
    representation_layers: list[int] = field(
        default_factory=lambda: list(range(6, 13)),
        metadata={"help": "Layers of both towers, counted from 1, in front of which the tokens come in; from 2 on."},
    )
    alpha: float = field(
        default=0.7, metadata={"help": "Share of the class token's prediction; the rest is the tokens'."}
    )
    consistency_weight: float = field(
        default=1.0, metadata={"help": "Weight of the distances of class token and class features to the frozen ones."}
    )
    low_rank: int | None = field(
        default=None,
        metadata={"help": "Rank of what each layer adds to a shared map (MMRL++: 4); None: maps of their own (MMRL)."},
    )
    readout_rank: int = field(
        default=64,
        metadata={"help": "With low_rank: rank of what the tokens' readout adds to the model's own projection."},
    )
    beta: float = field(
        default=0.9, metadata={"help": "With low_rank: share of a layer's new tokens; the rest flows on from before."}
    )
    feature_norm_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of the difference of norms of the two image features (AlignedNorm: 0.1)."},
    )
    sequence_norm_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of the difference of norms in the layers with tokens (AlignedNorm: 0.1)."},
    )
    logit_scale: float | None = field(
        default=100.0, metadata={"help": "What cosines are multiplied by; None: the model's own scale."}
    )
    readout: str = field(
        default="fused",
        metadata={
            "help": "Prediction: 'fused' (class token and tokens), 'class' (class token), or 'decoupled' (the paper's: "
            "fused for the classes it was trained on, the class token's for others)."
        },
    )

    def __post_init__(self):
        self.peft_type = PeftType.MMRL
        require_number("consistency_weight", self.consistency_weight, 0)
        self.text_consistency_weight = self.text_consistency_weight or self.consistency_weight
        self.image_consistency_weight = self.image_consistency_weight or self.consistency_weight
        super().__post_init__()
        for name in ("num_virtual_tokens", "representation_dim", "readout_rank"):
            require_int(name, getattr(self, name), 1)
        if self.low_rank is not None:
            require_int("low_rank", self.low_rank, 1)
        layers = self.representation_layers
        if not isinstance(layers, (list, tuple)) or not layers:
            raise ValueError(
                f"Expected representation_layers to be a list of layers. Received: representation_layers={layers!r}."
            )
        for layer in layers:
            require_int("each of representation_layers", layer, 2)
        self.representation_layers = sorted(set(layers))
        for name in ("feature_norm_weight", "sequence_norm_weight", "alpha", "beta"):
            require_number(name, getattr(self, name), 0)
        for name in ("alpha", "beta"):
            if getattr(self, name) > 1:
                raise ValueError(f"Expected {name} from 0 to 1. Received: {name}={getattr(self, name)!r}.")
        if self.logit_scale is not None:
            require_number("logit_scale", self.logit_scale, 0)
        require_choice("readout", self.readout, ("fused", "class", "decoupled"))

    @property
    def layers(self) -> list[int]:
        """The layers, counted from 0."""
        return [layer - 1 for layer in self.representation_layers]

    @property
    def share(self) -> float:
        """Share of a layer's new tokens: all of them in MMRL."""
        return 1.0 if self.low_rank is None else self.beta
