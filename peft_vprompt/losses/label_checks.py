"""What labels are refused: several classes for an image, and shares of classes that are no probabilities.

Shapes: n = samples, c = classes.
"""

import torch
from torch import Tensor

from ..utils.devices import hides_values


#: Label of what does not count: of an image, or of one class of an image that may have several.
IGNORED = -100

#: What transformers calls a problem whose images have several classes or none.
MULTI_LABEL = "multi_label_classification"

#: How far the sum of a row of probabilities may be from 1, in single precision and in half.
SUM_TOLERANCE, HALF_SUM_TOLERANCE = 1e-3, 2e-2


def one_class_each(num_samples: int, num_classes: int) -> str:
    """Return what is said where labels name several classes for a sample, or none."""
    return (
        "Multi-label classification, with several classes or none for an image, has to be asked for: by "
        f"problem_type={MULTI_LABEL!r} in the adapter's config, by losses.BinaryCrossEntropy() as the loss, or by --multi-label "
        f"on the command line. Else an image has one class. Expected integer labels [{num_samples}], or probabilities "
        f"[{num_samples}, {num_classes}]: values >= 0 whose rows sum to 1."
    )


def check_multi_hot(labels: Tensor, num_samples: int, num_classes: int) -> None:
    """Refuse labels that do not say of each class [n, c] whether an image is of it: 1, 0, a share, or -100 for nobody knows.

    Values are looked at on every device; not while a compiler traces the call.

    Raises:
        ValueError: another shape; or names the first row with another value.
    """
    expected = (
        f"Expected multi-label labels [{num_samples}, {num_classes}]: 1 or 0 for each class, {IGNORED} if not known."
    )
    if tuple(labels.shape) != (num_samples, num_classes) or labels.is_complex():
        raise ValueError(
            f"{expected} Received: labels of shape {list(labels.shape)} and dtype {labels.dtype}. Make class numbers such "
            "with torch.nn.functional.one_hot; for one class for each image leave problem_type out."
        )
    if hides_values(labels) or labels.dtype == torch.bool:
        return
    good = (((labels >= 0) & (labels <= 1)) | (labels == IGNORED)).all(-1)  # of NaN neither holds
    if not bool(good.all()):
        row = int((~good).nonzero()[0])
        raise ValueError(
            f"{expected} Received: row {row} with values from {float(labels[row].min()):.4g} to "
            f"{float(labels[row].max()):.4g}."
        )


def is_whole(labels: Tensor) -> bool:
    """Return whether labels are integers of any type; booleans are none."""
    return not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)


def check_shares(shares: Tensor) -> None:
    """Refuse shares of classes [n, c] that are not probabilities: multi-hot rows, negative values, NaN.

    Looked at on every device, where values can be (`hides_values`).

    Raises:
        ValueError: names the first row that is none.
    """
    if hides_values(shares):
        return
    wide = shares.detach().to(torch.promote_types(shares.dtype, torch.float32))
    tolerance = HALF_SUM_TOLERANCE if shares.dtype in (torch.float16, torch.bfloat16) else SUM_TOLERANCE
    sums = wide.sum(-1)
    good = (wide >= 0).all(-1) & ((sums - 1).abs() <= tolerance)  # of NaN neither holds
    if bool(good.all()):
        return
    row = int((~good).nonzero()[0])
    raise ValueError(
        f"{one_class_each(*shares.shape)} Received: row {row} with values from {float(wide[row].min()):.4g} to "
        f"{float(wide[row].max()):.4g} and the sum {float(sums[row]):.4g}."
    )
