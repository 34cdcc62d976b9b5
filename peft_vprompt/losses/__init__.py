"""Losses of logits against labels, also noisy ones, or several for an image."""

from .classification import (
    LOSSES,
    REDUCTIONS,
    ClassificationLoss,
    CrossEntropy,
    GeneralizedCrossEntropy,
    NCEandRCE,
    NormalizedCrossEntropy,
    PHuberCrossEntropy,
    PHuberGeneralizedCrossEntropy,
    ReverseCrossEntropy,
    SymmetricCrossEntropy,
    Unhinged,
    WeightedSum,
    make_loss,
    read_aux_loss,
    read_logits,
)
from .multi_label import BinaryCrossEntropy


__all__ = [
    "LOSSES",
    "REDUCTIONS",
    "BinaryCrossEntropy",
    "ClassificationLoss",
    "CrossEntropy",
    "GeneralizedCrossEntropy",
    "NCEandRCE",
    "NormalizedCrossEntropy",
    "PHuberCrossEntropy",
    "PHuberGeneralizedCrossEntropy",
    "ReverseCrossEntropy",
    "SymmetricCrossEntropy",
    "Unhinged",
    "WeightedSum",
    "make_loss",
    "read_aux_loss",
    "read_logits",
]
