"""Terms on features that are added to the loss in training: what is learned, held against what the frozen model says.

A regulariser is any callable that takes `Features` and returns a scalar. A method names its own with their weights
(`PromptMethod.regularizers`); their weighted sum is the output's `aux_loss`.

Shapes: b = images, c = classes, e = size of the joint space, k = read-only prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class FrozenFeatures:
    """What the model says without prompts, computed when it is asked for first and without gradients.

    Args:
        text: gives the class features [c, e].
        image: gives the features [b, e] of the same images.
        scaled: makes logits of cosines [b, c].
    """

    def __init__(self, text: Callable[[], Tensor], image: Callable[[], Tensor], scaled: Callable[[Tensor], Tensor]):
        self._make_text = text
        self._make_image = image
        self._scaled = scaled
        # Not `cached_property`: a compiler cannot follow the lock that Python 3.11 gives it.
        self._text: Tensor | None = None
        self._image: Tensor | None = None

    @property
    def text(self) -> Tensor:
        """Class features, L2-normalised [c, e]."""
        if self._text is None:
            self._text = self._make_text()
        return self._text

    @property
    def image(self) -> Tensor:
        """Features of the same images, L2-normalised [b, e]."""
        if self._image is None:
            self._image = self._make_image()
        return self._image

    # With a block, for a compiler cannot follow a decorator under `property`.
    @property
    def logits(self) -> Tensor:
        """Scaled cosines of the two, [b, c]."""
        with torch.no_grad():
            return self._scaled(self.image @ self.text.t())


@dataclass(frozen=True)
class Features:
    """What one call computed.

    Attributes:
        image: L2-normalised image features, [b, e] or [b, k, e].
        text: class features, [c, e], [c, k, e], or [b, c, e] where the image shifts the context.
        logits: [b, c].
        frozen: the same without prompts.
        multi_label: each logit is a prediction of its own, of yes or no, where else those of an image are one.
        projected: `image` before it was normalised, where prompts have a feature of their own, [b, 2, e].
        states: there, the class token and the prompts in the first layer's input and each layer's output, [b, 1 + k, d]
            (and, in most layers, the rows behind them).
        readout: what made the logits; one with vectors of its own for the classes has them.
    """

    image: Tensor
    text: Tensor
    logits: Tensor
    frozen: FrozenFeatures
    multi_label: bool = False
    projected: Tensor | None = None
    states: Sequence[Tensor] | None = None
    readout: Any = None


#: A term of the loss.
Regularizer = Callable[[Features], Tensor]


class TextConsistency:
    """Distance of the class features to those of the frozen model, whatever the images are.

    Args:
        distance: `"cosine"`, 1 minus the mean cosine (KgCoOp, equation 4; htyao89/KgCoOp `trainers/kgcoop.py`), or
            `"l1"`, the mean of absolute differences over classes and coordinates (PromptSRC, section 3.2;
            muzairkhattak/PromptSRC `trainers/promptsrc.py`).
    """

    def __init__(self, distance: str = "cosine"):
        self.distance = DISTANCES[distance]

    def __call__(self, features: Features) -> Tensor:
        """Return the term, a scalar; read-only prompts k each count alike."""
        pairs = features.image.ndim == 3 and features.text.ndim == 3
        return self.distance(features.text, features.frozen.text.unsqueeze(1) if pairs else features.frozen.text)


class ImageConsistency:
    """Distance of the image features to those that the frozen model makes of the same images.

    Args:
        distance: as for `TextConsistency` (PromptSRC: `"l1"`, MMRL: `"cosine"`).
    """

    def __init__(self, distance: str = "cosine"):
        self.distance = DISTANCES[distance]

    def __call__(self, features: Features) -> Tensor:
        """Return the term, a scalar; read-only prompts k each count alike."""
        pairs = features.image.ndim == 3
        return self.distance(features.image, features.frozen.image.unsqueeze(1) if pairs else features.frozen.image)


class LogitConsistency:
    """Divergence of the predictions from the frozen model's: KL(frozen || prompted), mean over images and classes.

    Source: PromptSRC, section 3.2; muzairkhattak/PromptSRC `trainers/promptsrc.py`, which divides by b * c. With several
    labels for an image, where the paper has nothing, each class's yes and no are compared.
    """

    def __call__(self, features: Features) -> Tensor:
        """Return the term, a scalar."""
        if features.multi_label:
            return binary_divergence(features.logits, features.frozen.logits).mean()
        prompted = F.log_softmax(features.logits, dim=-1)
        frozen = F.log_softmax(features.frozen.logits, dim=-1)
        return F.kl_div(prompted, frozen, reduction="none", log_target=True).mean()


class FeatureNorm:
    """Difference of the norms of a prompts' image feature and the class token's, to which no gradient flows.

    Source: QByteM/AlignedNorm, `FINAL_NORM`.
    """

    def __call__(self, features: Features) -> Tensor:
        """Return the mean absolute difference over images, a scalar."""
        own, of_prompts = features.projected.norm(dim=-1).unbind(1)  # pyrefly: ignore[missing-attribute]
        return (of_prompts - own.detach()).abs().mean()


class SequenceNorm:
    """Difference of the norms of prompts and class token, to which no gradient flows, behind each layer with prompts.

    Norms are averaged over the images first. Source: QByteM/AlignedNorm, `SEQ_NORM`.

    Args:
        layers: the layers, counted from 0.
        num_prompts: k.
    """

    def __init__(self, layers: Sequence[int], num_prompts: int):
        self.layers = layers
        self.num_prompts = num_prompts

    def __call__(self, features: Features) -> Tensor:
        """Return the mean absolute difference over layers and prompts, a scalar."""
        outputs = [features.states[layer + 1] for layer in self.layers]  # pyrefly: ignore[unsupported-operation]
        norms = torch.stack([rows[:, : 1 + self.num_prompts].norm(dim=-1).mean(0) for rows in outputs])
        return (norms[:, 1:] - norms[:, :1].detach()).abs().mean()


class StartDistance:
    """Squared distance of the rows of a `PrototypeReadout` to what they started as, mean over classes.

    Source: CLAP, section 4.2 (a sum there); jusiro/CLAP `trainers/adapters.py`, constraint "l2".

    Args:
        weights: what each class's distance counts, c numbers.
    """

    def __init__(self, weights: Sequence[float]):
        self.weights = weights

    def __call__(self, features: Features) -> Tensor:
        """Return the term, a scalar."""
        rows = features.readout.weight
        distances = (rows - features.readout.start).square().sum(-1)
        return (torch.tensor(self.weights, dtype=rows.dtype, device=rows.device) * distances).mean()


def binary_divergence(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return KL(wanted || ours) [b, c] of the yes and no that each pair of logits [b, c] stands for."""
    yes = wanted.sigmoid() * (F.logsigmoid(wanted) - F.logsigmoid(logits))
    no = (-wanted).sigmoid() * (F.logsigmoid(-wanted) - F.logsigmoid(-logits))
    return yes + no


def _cosine_distance(ours: Tensor, frozen: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(ours, frozen, dim=-1, eps=1e-7).mean()


def _mean_difference(ours: Tensor, frozen: Tensor) -> Tensor:
    return (ours - frozen).abs().mean()


#: Distances of features [..., e], by name: each gives a scalar.
DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cosine": _cosine_distance, "l1": _mean_difference}


def weighted_terms(terms: Mapping[str, tuple[float, Regularizer]], features: Features) -> dict[str, Tensor]:
    """Return each regulariser times its weight, by name."""
    return {name: weight * term(features) for name, (weight, term) in terms.items()}
