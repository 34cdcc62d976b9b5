"""Runs on images of several classes or none: what goes with them, what is measured, and what guessing finds."""

from __future__ import annotations

from collections.abc import Mapping

from datasets import Dataset

from ..data import select_classes
from ..data.multi_hot import share_of_labels
from ..losses.label_checks import MULTI_LABEL
from ..training.evaluation import with_harmonic_mean
from .settings import Settings


#: What `results.json` calls what is measured there.
MEAN_AVERAGE_PRECISION = "mean average precision"


def metric_of(run: Mapping) -> str:
    """Return the name of what the accuracies of a run are: accuracy, unless images have several labels."""
    return run.get("metric", "accuracy")


def check_labels(settings: Settings, multi_label: bool) -> None:
    """Refuse settings that do not go with the number of labels of an image.

    Raises:
        ValueError: says which, and what goes with it.
    """
    if not multi_label:
        if settings.config.get("problem_type") == MULTI_LABEL:
            raise ValueError(
                f"Expected data whose images have several labels with problem_type={MULTI_LABEL!r}. Received data of one "
                "class for each image. Read them with multi_label=True (--multi-label), which sets problem_type."
            )
        return
    one_class = {
        f"loss={settings.loss!r}, which takes one": settings.loss is not None,
        "labels that are noisy or not read, which are one": not settings.supervision.is_plain,
        "an ensemble, which is for labels that are not read": settings.ensemble > 1,
    }
    if asked := [what for what, wanted in one_class.items() if wanted]:
        raise ValueError(
            f"Expected images of one class each with {' and '.join(asked)} for each image. Received images of several. Leave "
            "it out; the loss is the sigmoid loss."
        )


def chance_of_several(test: Dataset, classes: dict[str, list[str]]) -> dict[str, float]:
    """Return the mean average precision of guessing, in percent, on every split of images with several labels."""
    shares = {name: share_of_labels(select_classes(test, names), names) for name, names in classes.items()}
    return with_harmonic_mean(shares)
