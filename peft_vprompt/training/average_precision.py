"""Average precision: how well each class's logit sorts the images that are of it from those that are not."""

from __future__ import annotations

import numpy as np

from ..data.multi_hot import NOT_KNOWN
from ..utils.arguments import typed


@typed
def average_precisions(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the average precision of every class in percent, [c]; NaN for a class that no image is of.

    Args:
        logits: [n, c]; only their order within a class counts.
        labels: 1 or 0 for each class, -100 where nobody knows (not counted), [n, c].

    Raises:
        ValueError: labels of another shape, or with other values.
    """
    from sklearn.metrics import average_precision_score  # half a second, and most evaluations have one class per image

    labels = np.asarray(labels)
    if labels.shape != np.shape(logits) or not np.isin(labels, (0, 1, NOT_KNOWN)).all():
        raise ValueError(
            f"Expected labels of 1, 0 or {NOT_KNOWN} (not known) in the shape of the logits, {list(np.shape(logits))}. "
            f"Received: shape {list(labels.shape)} and values {np.unique(labels)[:5].tolist()}."
        )
    scores = np.asarray(logits, dtype=np.float64)
    result = np.full(labels.shape[1], np.nan)
    for column in np.flatnonzero((labels == 1).any(0)):
        known = labels[:, column] != NOT_KNOWN
        result[column] = 100 * average_precision_score(labels[known, column], scores[known, column])
    return result


@typed
def mean_average_precision(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of `average_precisions` over the classes that some image is of, in percent.

    Raises:
        ValueError: as there; or no image is of any class.
    """
    values = average_precisions(logits, labels)
    if np.isnan(values).all():
        raise ValueError(
            "Expected images of some class to measure the average precision. Received labels without any 1."
        )
    return float(np.nanmean(values))
