"""Labelled images whose features a method learns from, without gradients: Tip-Adapter's cache, CLAP's penalties."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import AdapterMismatchError
from ..readouts import CacheReadout
from ..tuners.base.classifier import ClassNameClassifier
from ..tuners.base.input_checks import as_labels, check_inputs
from ..tuners.base.method import SupportSet
from ..tuners.base.prompted_encoder import READOUT
from ..tuners.tip_adapter import TipAdapterConfig
from ..tuners.tip_adapter.config import check_grid
from ..tuners.tip_adapter.method import require_images
from ..tuners.tip_adapter.search import Found, search_alpha_beta
from ..utils.devices import device_of
from ..utils.eval_mode import eval_mode


#: Features, or batches of images.
Images = Tensor | Iterable[Mapping[str, Any]]


def uses_support(classifier: ClassNameClassifier) -> bool:
    """Tell whether the active adapter learns from features of labelled images, without gradients."""
    return classifier.adapted.method.uses_support(classifier.adapted.config)


@torch.no_grad()
def set_support(
    classifier: ClassNameClassifier, images: Images, labels: Tensor | Sequence[int] | None, views: int
) -> None:
    """Give the active adapter the features of labelled images to learn from.

    Args:
        classifier: the classifier of the model.
        images: features [n, e] or [v, n, e], or batches of images with `labels`.
        labels: class numbers [n] of features; None with batches.
        views: passes over the batches, each with an augmentation of its own.

    Raises:
        ValueError: an adapter that learns by training alone or is disabled, or as `encode`.
        UnsupportedModelError: as `encode`.
    """
    if not uses_support(classifier):
        raise ValueError(
            "Expected an adapter that learns from features of labelled images: Tip-Adapter, or CLAP with its constraint. "
            f"Received one of {type(classifier.adapted.config).__name__}, which learns by training alone. Leave set_support "
            "out."
        )
    readout = readout_of(classifier)
    features, numbers = encode(classifier, images, labels, views)
    rows = classifier.classes.rows
    own = numbers if rows is None else torch.tensor(rows, device=numbers.device)[numbers]
    support = SupportSet(features, own, classifier.scaled_by_method)
    classifier.adapted.method.take_support(classifier.adapted.config, readout, support)


@torch.no_grad()
def search_cache(
    classifier: ClassNameClassifier,
    images: Images,
    labels: Tensor | Sequence[int] | None,
    scale: Sequence[float],
    step: Sequence[int],
) -> Found:
    """Set alpha and beta of the active Tip-Adapter to those that classify labelled images best.

    Args:
        classifier: the classifier of the model.
        images: as for `set_support`, in one view.
        labels: as for `set_support`.
        scale: largest beta and alpha to try.
        step: number of values of each.

    Raises:
        ValueError: another adapter, one without images, values out of range, or as `encode`.
        UnsupportedModelError: as `encode`.
    """
    config: Any = classifier.adapted.config
    if not isinstance(config, TipAdapterConfig):
        raise ValueError(
            f"Expected a Tip-Adapter, whose alpha and beta are searched. Received an adapter of {type(config).__name__}."
        )
    check_grid(scale, step)
    require_images(config)
    readout = readout_of(classifier)
    features, numbers = encode(classifier, images, labels, 1)
    features = F.normalize(features[0], dim=-1)
    with eval_mode(classifier.model):
        text = classifier.encode_classes().to(features)
    plain = classifier.scaled_by_method(features @ text.t())
    cached = lambda beta: classifier.classes.pick(readout.cached(features, beta), dim=1)  # noqa: E731 - by beta alone
    found = search_alpha_beta(cached, plain, numbers, scale, step)
    config.alpha = found.alpha
    config.beta = found.beta
    return found


def check_cache(classifier: ClassNameClassifier, adapter_name: str, source: Any) -> None:
    """Refuse the cache of a loaded adapter whose images are of classes that it does not have.

    Raises:
        AdapterMismatchError: names the labels.
    """
    text = classifier.adapted.text
    readout = None if text is None else text.module_of(adapter_name, READOUT)
    if not isinstance(readout, CacheReadout) or not len(readout.labels):
        return
    low, high = int(readout.labels.min()), int(readout.labels.max())
    if low < 0 or high >= readout.num_classes:
        raise AdapterMismatchError(
            f"Expected labels from 0 to {readout.num_classes - 1} in the cache of the adapter in {str(source)!r}, one per "
            f"class name. Received labels from {low} to {high}. Save or download it again."
        )


def readout_of(classifier: ClassNameClassifier) -> Any:
    """Return the active adapter's readout.

    Raises:
        ValueError: the adapters are disabled.
    """
    if classifier.adapted.disabled:
        raise ValueError("Expected an adapter that is on. Received disabled adapters. Enable them first.")
    return classifier.adapted.readout


def encode(
    classifier: ClassNameClassifier, images: Images, labels: Tensor | Sequence[int] | None, views: int
) -> tuple[Tensor, Tensor]:
    """Return features [v, n, e], in float32 at least and not L2-normalised unless they were given so, and labels [n].

    Raises:
        ValueError: no image, other images in another pass, labels that are no classes.
        UnsupportedModelError: the image features depend on what is trained.
    """
    classifier.images.require_fixed()
    if isinstance(images, Tensor):
        if labels is None or views != 1:
            raise ValueError(
                "Expected labels beside features [images, dim] or [views, images, dim], and no number of views. Received: "
                f"features of shape {list(images.shape)}, labels={'None' if labels is None else 'given'}, views={views}."
            )
        features = images if images.ndim == 3 else images.unsqueeze(0)
        numbers = as_labels(labels, images.device)
    else:
        if labels is not None:
            raise ValueError(
                "Expected the labels in the batches, as `labels`. Received others beside them. Leave them out."
            )
        passes = [encode_pass(classifier, images) for _ in range(views)]
        numbers = passes[0][1]
        if not all(torch.equal(others, numbers) for _, others in passes):
            raise ValueError(
                f"Expected the same images in the same order in each of {views} passes. Received other labels in a later "
                "one. Use a data loader with shuffle=False."
            )
        features = torch.stack([each for each, _ in passes])
    device = classifier.adapted.dual.device
    size = classifier.adapted.dual.feature_dim
    if features.ndim != 3 or features.shape[-1] != size:
        raise ValueError(f"Expected features of {size} numbers. Received: shape {list(features.shape)}.")
    # pyrefly: ignore[missing-attribute]  # there are labels, or they were asked for
    numbers = numbers.cpu()
    names: Any = classifier.class_names
    for view in features.cpu():
        check_inputs(view, numbers, len(names), "image_features")
    if numbers.ndim != 1 or bool((numbers < 0).any()):
        raise ValueError("Expected one class number for each image. Received shares of classes, or labels below 0.")
    return features.to(device, torch.promote_types(features.dtype, torch.float32)), numbers.to(device)


def encode_pass(classifier: ClassNameClassifier, batches: Iterable[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
    """Return the features [n, e] of the images of all batches, or those that they hold, and their labels [n].

    Raises:
        ValueError: batches without labels, or none.
    """
    device = device_of(classifier.model)
    features, labels = [], []
    with eval_mode(classifier.model), torch.autocast(device.type, enabled=False):
        for batch in batches:
            inputs = dict(batch)
            if "labels" not in inputs:
                raise ValueError(f"Expected batches with labels. Received: {', '.join(inputs)}.")
            labels.append(as_labels(inputs.pop("labels"), None))
            given = inputs.get("image_features")
            if given is None:
                inputs = {name: value.to(device) for name, value in inputs.items()}
                given = classifier.images.project(**inputs)
            features.append(given.to(device))
    if not features:
        raise ValueError("Expected labelled images. Received none.")
    return torch.cat(features), torch.cat(labels)
