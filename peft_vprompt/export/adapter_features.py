"""What makes image features with a trained adapter, for folders of them (`vprompt features --adapter`)."""

from __future__ import annotations

from typing import Any

from ..data import EvalTransform
from ..errors import UnsupportedModelError
from ..training.cached_features import features_content
from ..training.feature_folders import FeatureMaker, feature_maker
from ..tuners.base.classifier import text_classifier
from ..utils.digests import ADAPTER_PROVENANCE, digest_json, digest_tensors, without
from .classifier import Classifier


def adapter_features(classifier: Classifier) -> FeatureMaker:
    """Return what makes the features that an adapter sees in images.

    Of an adapter that leaves the images alone (CoOp, ...) they are those of its base model. Several features of an image
    (read-only prompts, MMRL) stand side by side.

    Raises:
        UnsupportedModelError: the base model has no text encoder.
    """
    model = classifier.model
    known = text_classifier(model)
    if known is None:
        raise UnsupportedModelError(
            "Expected an adapter of a model with a text encoder. Received one of an image classifier, whose features "
            "`vprompt predict --embeddings` writes."
        )
    if not known.adapted.changes_images:
        return feature_maker(model, classifier.image_processor)
    transform = EvalTransform(classifier.image_processor)
    config: Any = model.peft_config[model.active_adapter].to_dict()
    config = {name: str(value) for name, value in without(config, ADAPTER_PROVENANCE).items()}
    learned = digest_json([config, digest_tensors(model.state_dict())], 32)
    return FeatureMaker(
        features_content(model, transform) | {"adapter": learned},
        lambda image: transform({"image": [image]}),
        classifier.features_of,
    )
