"""What a method gets right of a test set, small enough to keep for every cell: two methods are compared image by image."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ...metrics import accuracy, mean_per_class_accuracy
from ...utils.digests import digest_json


def outcome(predicted: NDArray, labels: NDArray, class_names: Sequence[str], images: Mapping) -> dict:
    """Return what is kept of a test set, for JSON.

    Args:
        predicted: predicted labels, int [images].
        labels: true labels, int [images].
        class_names: names of the classes that the images were told apart among, in label order.
        images: digests of the images and their labels.

    Returns:
        `images`, `classes` (how many there are), `accuracy` over all images alike, `per_class`, the mean of the
        accuracies of the classes, and `chance`, in percent; `correct`, a bit for each image in base64; `content`, by
        which test sets are the same or not.
    """
    return {
        "images": len(labels),
        "classes": len(class_names),
        "accuracy": 100 * accuracy(predicted, labels),
        "per_class": 100 * mean_per_class_accuracy(predicted, labels),
        "chance": 100 / len(class_names),
        "correct": pack(predicted == labels),
        "content": digest_json([dict(images), list(class_names)], 32),
    }


def pack(right: NDArray) -> str:
    """Return truth values [images] as text, eight to a byte, in base64."""
    return base64.b64encode(np.packbits(right).tobytes()).decode("ascii")


def unpack(text: str, images: int) -> NDArray:
    """Return the truth values [images] of a text that `pack` made.

    Raises:
        ValueError: the text holds another number of images, or is none of base64.
    """
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8))
    if not 0 <= len(bits) - images < 8:
        raise ValueError(f"Expected {images} images. Received: {len(bits)} bits.")
    return bits[:images].astype(bool)
