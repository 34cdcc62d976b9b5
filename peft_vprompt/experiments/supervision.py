"""Where the labels of a run come from: the data, the data with noise, or a zero-shot model that labels the images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from datasets import Dataset

from ..data import EvalTransform, few_shot, select_classes
from ..data.class_names import class_label
from ..data.columns import set_column
from ..data.feature_folders import images_alone
from ..data.image_digests import image_fingerprint
from ..data.label_noise import KINDS, NoisyLabels, add_noise, inject_false_positives
from ..training.cached_features import cache_features
from ..utils.arguments import typed
from ..utils.digests import digest_arrays
from ..utils.fields import check_fields
from ..utils.processes import ALONE, Processes
from ..utils.warning import warn_caller
from .pseudo_labels import SELECTORS, PseudoLabels
from .zero_shot_scores import zero_shot


if TYPE_CHECKING:
    from .models import ModelBundle


#: Noise by the injection of images of other classes, beside the kinds of `label_noise.KINDS`.
FALSE_POSITIVE = "false-positive"


@dataclass(frozen=True)
class Supervision:
    """Whose labels to train on.

    Attributes:
        noise: kind of label noise: one of `label_noise.KINDS`, or "false-positive"; None for the labels as they are.
        noise_rate: share of wrong labels in every class, above 0 where there is a kind of noise.
        unlabelled: how to choose among images labelled by zero-shot: one of `pseudo_labels.SELECTORS`; the number of
            images per class is that of the shots. None trains on labels.
        pseudo_labels: file of labels that `vprompt pseudo-label` made for the training images.

    Raises:
        ValueError: an unknown kind or selector, a kind of noise without a rate or a rate out of range, or noise on
            pseudo-labels, which are noisy already.
    """

    noise: str | None = None
    noise_rate: float = 0.0
    unlabelled: str | None = None
    pseudo_labels: str | None = None

    def __post_init__(self):
        check_fields(self)
        kinds = (*KINDS, FALSE_POSITIVE)
        if self.noise is not None and self.noise not in kinds:
            raise ValueError(f"Expected noise to be one of {list(kinds)}. Received: noise={self.noise!r}.")
        if self.noise is None and self.noise_rate:
            raise ValueError(f"A noise rate needs a kind of noise: {', '.join(kinds)}. Received: {self.noise_rate}.")
        if self.unlabelled is not None and self.unlabelled not in SELECTORS:
            raise ValueError(
                f"Expected unlabelled to be one of {list(SELECTORS)}. Received: unlabelled={self.unlabelled!r}."
            )
        if sum(x is not None for x in (self.noise, self.unlabelled, self.pseudo_labels)) > 1:
            raise ValueError(f"Labels come from one source: noise, zero-shot or a file. Received: {self}.")
        if self.noise is not None and not 0 < self.noise_rate <= 1:
            raise ValueError(
                f"Expected a noise rate above 0 and up to 1 with noise={self.noise!r}. "
                f"Received: noise_rate={self.noise_rate}. Leave the noise out for the labels as they are."
            )

    @property
    def uses_labels(self) -> bool:
        """Whether the true labels of the training images are read."""
        return self.unlabelled is None and self.pseudo_labels is None

    @property
    def is_plain(self) -> bool:
        """Whether the labels are taken as they are."""
        return self.uses_labels and self.noise is None


class LabelledImages(NamedTuple):
    """Images to train on, with the labels to train with.

    Attributes:
        rows: data set with `image` and `label`.
        report: what is worth reporting about the labels, for JSON: `noise` or `pseudo_labels`, or nothing.
    """

    rows: Dataset
    report: dict

    @property
    def wrong(self) -> list[int]:
        """Positions of the rows whose labels noise made wrong."""
        return self.report["noise"]["wrong"] if "noise" in self.report else []

    @property
    def choice(self) -> str | None:
        """Digest of the images that were chosen and of their pseudo-labels; None where labels were read."""
        return self.report["pseudo_labels"]["digest"] if "pseudo_labels" in self.report else None


@typed
def training_images(
    supervision: Supervision,
    images: Dataset,
    class_names: list[str],
    shots: int | None,
    seed: int,
    clip: ModelBundle,
    cached: bool = False,
    draw: Callable[..., Dataset] = few_shot,
    processes: Processes = ALONE,
) -> LabelledImages:
    """Return the images to train on, with the labels to train with.

    Args:
        supervision: whose labels to take.
        images: the training images; their column `label` is read only where labels are used.
        class_names: classes to train on; labels become 0, 1, ... in their order.
        shots: images per class; None for all.
        seed: seed of the shots and of the noise.
        clip: the model, which labels images without its adapter.
        cached: keep the image features that zero-shot needs on the disk.
        draw: how the shots are drawn of labelled images.
        processes: share the images to label with these, which all make the same call.

    Returns:
        Rows with `image` and `label`, and what is worth reporting about the labels.

    Raises:
        FileNotFoundError: there is no file of pseudo-labels.
        ValueError: classes that are too small, or what the kind of supervision refuses.
    """
    if not supervision.uses_labels:
        chosen = _pseudo_labels(supervision, images, class_names, shots, seed, clip, cached, processes)
        digest = digest_arrays(chosen.indices, chosen.labels)
        report = {"source": chosen.source, "images": len(chosen), "digest": digest}
        return LabelledImages(chosen.label(images), {"pseudo_labels": report})
    if supervision.noise == FALSE_POSITIVE:
        return _false_positives(supervision, images, class_names, shots, seed)
    if shots is not None:
        images = draw(images, shots, seed, class_names=class_names)
    images = select_classes(images, class_names)
    if supervision.noise is None:
        return LabelledImages(images, {})
    table = _table(images, class_names, clip, cached, processes) if supervision.noise == "confusion" else None
    images, noise = add_noise(images, supervision.noise, supervision.noise_rate, seed, probabilities=table)
    return LabelledImages(images, _noise_report(supervision, noise, images))


def _pseudo_labels(supervision, images, class_names, shots, seed, clip, cached, processes) -> PseudoLabels:
    if supervision.pseudo_labels is None:
        table = _table(images, class_names, clip, cached, processes)
        return SELECTORS[supervision.unlabelled](table, class_names, shots, seed)
    chosen = PseudoLabels.load(supervision.pseudo_labels)
    if list(chosen.class_names) != list(class_names):
        pairs = enumerate(zip_longest(chosen.class_names, class_names))
        label, (theirs, ours) = next((label, pair) for label, pair in pairs if pair[0] != pair[1])
        raise ValueError(
            f"{supervision.pseudo_labels} is for {len(chosen.class_names)} classes that are not the {len(class_names)} to "
            f"train on: label {label} is {theirs!r} there and {ours!r} here. Make the labels for these classes anew."
        )
    if chosen.images is None:
        warn_caller(
            f"{supervision.pseudo_labels} does not say which images its labels are for, so nobody can tell whether it is "
            "these. Make it anew with `vprompt pseudo-label`."
        )
    return chosen


def _table(
    images: Dataset, class_names: list[str], clip: ModelBundle, cached: bool, processes: Processes
) -> np.ndarray:
    images = images_alone(images)
    if cached:
        with processes.one_by_one(), clip.model.disable_adapter():
            images = cache_features(clip.model, images, EvalTransform(clip.image_processor))
    return zero_shot(clip, images, class_names, processes=processes)


def _false_positives(supervision, images, class_names, shots, seed) -> LabelledImages:
    if shots is None:
        raise ValueError("Expected a number of shots with noise='false-positive'. Received: all images.")
    images = select_classes(images, class_names)
    num_false = math.floor(supervision.noise_rate * shots + 0.5)
    if not num_false:
        raise ValueError(
            f"{shots} shots are too few for a noise rate of {supervision.noise_rate:g}, which would make none of them a "
            "false positive. Use more shots or a higher rate."
        )
    chosen, noise = inject_false_positives(images["label"][:], shots, num_false, len(class_names), seed)
    rows = set_column(images.select(chosen), "label", noise.labels, class_label(class_names))
    return LabelledImages(rows, _noise_report(supervision, noise, rows))


def _noise_report(supervision: Supervision, noise: NoisyLabels, images: Dataset) -> dict:
    """Return what was done to the labels, and to those of which images: positions mean nothing without them."""
    return {
        "noise": {
            "kind": supervision.noise,
            "rate": supervision.noise_rate,
            "achieved_rate": noise.rate,
            "matrix": noise.matrix.tolist(),
            "wrong": np.flatnonzero(noise.mask).tolist(),
            "images": image_fingerprint(images),
        }
    }
