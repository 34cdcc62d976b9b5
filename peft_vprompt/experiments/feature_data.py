"""Runs on image features in the place of images: what they must be, and which methods take them."""

from __future__ import annotations

from contextlib import nullcontext

from datasets import DatasetDict

from ..data import EvalTransform
from ..data.feature_folders import holds_features
from ..training.cached_features import require_features_of
from ..tuners.base.registry import get_method
from .models import ModelBundle
from .settings import Settings


def check_features(data: DatasetDict, settings: Settings, bundle: ModelBundle) -> None:
    """Refuse a run on features of another model, or of a method that needs the images; images pass.

    Args:
        data: the rows to train and test on.
        settings: what to run.
        bundle: the model.

    Raises:
        UnsupportedModelError: the method changes the image features.
        ValueError: the method looks at images, or the features are of another model, precision or preprocessing.
    """
    given = [rows for rows in data.values() if holds_features(rows)]
    if not given:
        return
    method = get_method(settings.method)
    reasons = {
        "trains an image classifier": method.is_baseline,
        "learns from several views of each image": method.support is not None,
        "is to learn from a teacher, which looks at the images": settings.teacher is not None,
        f"is to see {settings.views} views of each image": settings.views not in (None, 1),
    }
    if why := next((reason for reason, holds in reasons.items() if holds), None):
        raise ValueError(
            f"Expected images: {method.title} {why}. Received image features. Give the images themselves (--data), or train a "
            "method that takes features, such as coop or classifier-r."
        )
    with nullcontext() if method.trains else bundle.model.disable_adapter():
        require_features_of(bundle.model, EvalTransform(bundle.image_processor), *given)
