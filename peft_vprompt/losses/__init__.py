"""Losses of logits against labels, also noisy ones."""

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


__all__ = [
    "LOSSES",
    "REDUCTIONS",
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
