"""What labels are refused: several classes for an image, and shares of classes that are no probabilities.

Shapes: n = samples, c = classes.
"""

import torch
from torch import Tensor


#: How far the sum of a row of probabilities may be from 1, in single precision and in half.
SUM_TOLERANCE, HALF_SUM_TOLERANCE = 1e-3, 2e-2


def one_class_each(num_samples: int, num_classes: int) -> str:
    """Return what is said where labels name several classes for a sample, or none."""
    return (
        "Multi-label classification, with several classes or none for an image, is not supported yet: an image has one "
        f"class. Expected integer labels [{num_samples}], or probabilities [{num_samples}, {num_classes}]: values >= 0 "
        "whose rows sum to 1. Give each image the one class that fits best."
    )


def is_whole(labels: Tensor) -> bool:
    """Return whether labels are integers of any type; booleans are none."""
    return not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)


def check_shares(shares: Tensor) -> None:
    """Refuse shares of classes [n, c] that are not probabilities: multi-hot rows, negative values, NaN.

    Looked at on every device; not while a compiler traces the call.

    Raises:
        ValueError: names the first row that is none.
    """
    if torch.compiler.is_compiling() or shares.is_meta:
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
