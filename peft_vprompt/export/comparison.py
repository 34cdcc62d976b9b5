"""What an exported model costs on labelled images: how often it says the same as the adapter, and both accuracies."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from ..data import EvalTransform
from ..training.evaluation import batches
from ..utils.progress import with_progress
from .classifier import Classifier


class Comparison(NamedTuple):
    """What came of it; accuracies and agreement in percent.

    Attributes:
        images: how many were classified by both.
        accuracy: of the exported model; None where images are of several classes.
        adapter_accuracy: of the adapter.
        agreement: share of images with the same most probable class.
    """

    images: int
    accuracy: float | None
    adapter_accuracy: float | None
    agreement: float


def compare(
    classifier: Classifier,
    logits: Callable[[NDArray], NDArray],
    rows: Dataset,
    batch_size: int = 32,
    progress: str | None = None,
) -> Comparison:
    """Classify labelled images with an adapter and with what it was exported to.

    Args:
        classifier: the adapter.
        logits: makes logits [b, c] of pixels [b, 3, height, width], see `standalone.Predictor`.
        rows: images with the columns `image` and `label`, of the classifier's classes.
        batch_size: images per forward pass.
        progress: label of a progress bar; None for no bar.
    """
    own, theirs, labels = [], [], []
    transformed = rows.with_transform(EvalTransform(classifier.image_processor))
    for batch in with_progress(batches(transformed, batch_size), progress):
        labels.append(batch.pop("labels").numpy())
        own.append(classifier.logits_of(batch).argmax(-1).numpy())
        theirs.append(np.asarray(logits(batch["pixel_values"].numpy())).argmax(-1))
    mine, exported, true = (np.concatenate(parts) for parts in (own, theirs, labels))
    several = true.ndim == 2
    share = lambda hits: 100 * float(np.mean(hits))  # noqa: E731 - three times the same
    return Comparison(
        images=len(mine),
        accuracy=None if several else share(exported == true),
        adapter_accuracy=None if several else share(mine == true),
        agreement=share(mine == exported),
    )
