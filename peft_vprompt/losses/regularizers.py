"""Terms on features that are added to the loss in training: what is learned, held against what the frozen model says.

A regulariser is any callable that takes `Features` and returns a scalar. A method names its own with their weights
(`PromptMethod.regularizers`); their weighted sum is the output's `aux_loss`.

Shapes: b = images, c = classes, e = size of the joint space, k = read-only prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn import functional as F


class FrozenFeatures(Protocol):
    """What the model says without prompts, computed when it is asked for and without gradients."""

    @property
    def text(self) -> Tensor:
        """Class features, L2-normalised [c, e]."""

    @property
    def image(self) -> Tensor:
        """Features of the same images, L2-normalised [b, e]."""

    @property
    def logits(self) -> Tensor:
        """Scaled cosines of the two, [b, c]."""


@dataclass(frozen=True)
class Features:
    """What one call computed.

    Attributes:
        image: L2-normalised image features, [b, e] or [b, k, e].
        text: class features, [c, e], [c, k, e], or [b, c, e] where the image shifts the context.
        logits: [b, c].
        frozen: the same without prompts.
    """

    image: Tensor
    text: Tensor
    logits: Tensor
    frozen: FrozenFeatures


#: A term of the loss.
Regularizer = Callable[[Features], Tensor]


class TextConsistency:
    """1 minus the mean cosine of the class features to those of the frozen model (KgCoOp, equation 4).

    All classes count alike, whatever the images are. Source: htyao89/KgCoOp `trainers/kgcoop.py`.
    """

    def __call__(self, features: Features) -> Tensor:
        """Return the term, a scalar from 0 to 2."""
        return 1 - F.cosine_similarity(features.text, features.frozen.text, dim=-1, eps=1e-7).mean()


def weighted_terms(terms: Mapping[str, tuple[float, Regularizer]], features: Features) -> dict[str, Tensor]:
    """Return each regulariser times its weight, by name."""
    return {name: weight * term(features) for name, (weight, term) in terms.items()}
