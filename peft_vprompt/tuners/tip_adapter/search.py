"""The search for alpha and beta on validation images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Found(NamedTuple):
    """What the search found.

    Attributes:
        alpha, beta: the first of the best pairs.
        accuracy: in percent, on the validation images.
    """

    alpha: float
    beta: float
    accuracy: float


def search_alpha_beta(
    cached: Callable[[float], Tensor],
    plain_logits: Tensor,
    labels: Tensor,
    scale: Sequence[float],
    step: Sequence[int],
) -> Found:
    """Return the pair with the best accuracy, of a grid of both.

    Value i of `step` values up to `scale` is 0.1 + i (scale - 0.1) / step, i from 0: the bound itself is not tried. Beta
    changes slower than alpha, and the first of the best wins, as in `search_hp` of the authors' `utils.py`.

    Args:
        cached: what the filled cache says of the validation images, [b, c], by beta.
        plain_logits: logits [b, c] without it.
        labels: their labels [b].
        scale: bounds of beta and of alpha.
        step: numbers of values of beta and of alpha.
    """
    betas, alphas = (
        [0.1 + i * (top - 0.1) / count for i in range(count)] for top, count in zip(scale, step, strict=True)
    )
    best = None
    for beta in betas:
        added = cached(beta)
        right = torch.stack([((plain_logits + alpha * added).argmax(-1) == labels).sum() for alpha in alphas]).tolist()
        most = max(right)
        if best is None or most > best[0]:
            best = most, alphas[right.index(most)], beta
    most, alpha, beta = best  # pyrefly: ignore[not-iterable]  # there is one beta at least
    return Found(alpha, beta, 100 * most / len(labels))
