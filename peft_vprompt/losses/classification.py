"""Losses for classification with clean and with noisy labels.

Every loss is a module that is called as `loss(logits, labels)`, or by `Trainer(compute_loss_func=loss)`, which hands
over the model's output and the number of items to divide by. Where that output has an `aux_loss`, the weighted sum of
a method's regularisers, every loss adds it. Shapes: n = samples, c = classes, p = softmax(logits).
All are computed in float32 at least, also under autocast, and from log-probabilities, so that values and gradients
are finite at p = 0 and at p = 1.

Sources: CEWu/PTNL `trainers/loss.py` and the papers named at each loss.
"""

from __future__ import annotations

import inspect
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..utils.devices import hides_values
from ..utils.fields import MAX_INTEGER, shown
from .label_checks import IGNORED, check_shares, is_whole, one_class_each


REDUCTIONS = ("mean", "sum", "none")


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits [n, c] over the labels that count; zero, with gradients, over none."""
    if labels.is_floating_point():
        return F.cross_entropy(logits, labels)
    counts = (labels != IGNORED).any()
    # A mean over nothing would be NaN, and so would its gradients. Nothing here waits for the device.
    return F.cross_entropy(logits, torch.where(counts, labels, 0), ignore_index=IGNORED) * counts.to(logits)


class ClassificationLoss(nn.Module):
    """A loss of logits [n, c] against class numbers [n] or distributions [n, c]; what all losses share.

    Args:
        weight: weight of each class [c], a tensor or a list; with it, "mean" divides by the sum of the weights of the labels.
        ignore_index: label of samples that do not count.
        reduction: "mean", "sum" or "none" ([n]).

    Raises:
        ValueError: a parameter out of range.
    """

    def __init__(self, weight: Tensor | None = None, ignore_index: int = IGNORED, reduction: str = "mean"):
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"Expected reduction to be one of {list(REDUCTIONS)}. Received: reduction={reduction!r}.")
        if isinstance(ignore_index, bool) or not isinstance(ignore_index, int) or abs(ignore_index) > MAX_INTEGER:
            raise ValueError(f"Expected ignore_index to be an integer. Received: ignore_index={shown(ignore_index)}.")
        weights = None if weight is None else _class_weights(weight)
        self.register_buffer("weight", weights, persistent=False)
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, logits, labels: Tensor, num_items_in_batch: Tensor | float | None = None) -> Tensor:
        """Return the loss of `logits` [n, c] with that of the regularisers: a number, or [n] without a reduction.

        An output's `aux_loss`, a mean as each regulariser is, is added once to the "mean"; for "sum" and "none" it is
        added to the loss of each sample that counts. With `num_items_in_batch` it is weighted by the share of the
        samples that count, so that accumulated batches add up to the mean over all of them.

        Args:
            logits: a tensor, or a model's output that has `logits` and may have `aux_loss`, a scalar or None.
            labels: class numbers [n], or a distribution over the classes for each sample [n, c].
            num_items_in_batch: what "mean" divides by instead, as `Trainer` counts it over all accumulated batches: the
                labels, which are c for each sample where they are distributions. Class weights do not change it.

        Where no label counts, the loss is zero, with zero gradients.

        Raises:
            ValueError: shapes that do not fit, distributions that are none (several classes for a sample, negative
                values, NaN), or class numbers out of range (checked where they are on the CPU).
        """
        aux_loss = read_aux_loss(logits)
        logits = read_logits(logits)
        labels = labels.long() if labels.ndim == 1 and is_whole(labels) else labels
        self._check(logits, labels)
        with torch.autocast(logits.device.type, enabled=False):
            log_p = F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
            if labels.is_floating_point():
                losses = self._soft(log_p, labels.to(log_p))
                total = logits.shape[0]
                counted = torch.ones_like(losses)
                if num_items_in_batch is not None:
                    num_items_in_batch = num_items_in_batch / labels.shape[1]
            else:
                losses, total = self._hard(log_p, labels)
                counted = (labels != self.ignore_index).to(losses)
            if self.reduction == "mean":
                divisor = total if num_items_in_batch is None else num_items_in_batch or 1.0
                share = 1.0 if num_items_in_batch is None else counted.sum() / divisor
                loss = losses.sum() / divisor
                return loss if aux_loss is None else loss + share * aux_loss.to(losses)
            if aux_loss is not None:
                losses = losses + counted * aux_loss.to(losses)
            return losses.sum() if self.reduction == "sum" else losses

    def _hard(self, log_p: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        counted = labels != self.ignore_index
        known = labels.masked_fill(~counted, 0).long()
        weights = counted.to(log_p) if self.weight is None else self.weight.to(log_p)[known] * counted
        losses = self.of_labels(log_p, known).masked_fill(~counted, 0.0) * weights
        total = weights.sum()
        return losses, torch.where(total > 0, total, 1.0)  # nothing that counts: zero, not 0 / 0

    def _soft(self, log_p: Tensor, shares: Tensor) -> Tensor:
        weights = torch.ones_like(shares) if self.weight is None else self.weight.to(log_p).expand_as(shares)
        return self.of_shares(log_p, shares, weights)

    def of_labels(self, log_p: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each sample [n] for log-probabilities [n, c] and labels [n]."""
        return self.of_log_p(log_p.gather(1, labels[:, None])[:, 0])

    def of_shares(self, log_p: Tensor, shares: Tensor, weights: Tensor) -> Tensor:
        """Return the expected loss of each sample [n] for distributions over the labels [n, c] and class weights [n, c]."""
        losses = self.of_log_p(log_p).masked_fill(shares == 0, 0.0)  # a share of zero counts for nothing, even of inf
        return (shares * weights * losses).sum(-1)

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Return the loss [...] as a function of the label's log-probability [...] alone, for losses that are one.

        Raises:
            TypeError: a loss that is no such function, and defines `of_labels` and `of_shares` instead.
        """
        raise TypeError(f"{type(self).__name__} must define of_log_p, or of_labels and of_shares")

    def _check(self, logits: Tensor, labels: Tensor) -> None:
        if logits.ndim != 2 or labels.shape not in (logits.shape, logits.shape[:1]):
            raise ValueError(
                "Expected logits [samples, classes] with labels [samples] or [samples, classes]. "
                f"Received: logits {list(logits.shape)}, labels {list(labels.shape)}."
            )
        if labels.ndim == 2 and not labels.is_floating_point():
            raise ValueError(f"{one_class_each(*logits.shape)} Received: labels of dtype {labels.dtype}.")
        if labels.ndim == 1 and not is_whole(labels):
            raise ValueError(
                f"Expected class numbers [samples] or shares [samples, classes]. Received: {labels.dtype}. Make class "
                "numbers whole with labels.long()."
            )
        if self.weight is not None and self.weight.shape[0] != logits.shape[1]:
            raise ValueError(f"Expected {logits.shape[1]} class weights. Received: {self.weight.shape[0]}.")
        if labels.ndim == 2:
            check_shares(labels)
        elif not hides_values(labels) and labels.device.type == "cpu":
            bad = (labels != self.ignore_index) & ((labels < 0) | (labels >= logits.shape[1]))
            if bool(bad.any()):
                raise ValueError(
                    f"Expected labels from 0 to {logits.shape[1] - 1}, or ignore_index={self.ignore_index}. "
                    f"Received: {sorted(set(labels[bad].tolist()))[:5]}."
                )


def read_logits(output) -> Tensor:
    """Return the logits [n, c] of a model's output, or the tensor itself."""
    if isinstance(output, Tensor):
        return output
    return output["logits"] if isinstance(output, dict) else output.logits


def read_aux_loss(output) -> Tensor | None:
    """Return the weighted sum of the regularisers in a model's output; None without any, or for a tensor of logits."""
    if isinstance(output, Tensor):
        return None
    return output.get("aux_loss") if isinstance(output, dict) else getattr(output, "aux_loss", None)


class CrossEntropy(ClassificationLoss):
    """-log p_y; with `label_smoothing` s, labels are (1 - s) one-hot + s / c."""

    def __init__(self, label_smoothing: float = 0.0, **shared):
        super().__init__(**shared)
        self.label_smoothing = _between("label_smoothing", label_smoothing, 0, 1)

    def of_labels(self, log_p: Tensor, labels: Tensor) -> Tensor:
        """Return `torch.nn.functional.cross_entropy` of each sample [n] for log-probabilities [n, c], labels [n]."""
        return F.cross_entropy(log_p, labels, reduction="none", label_smoothing=self.label_smoothing)

    def of_shares(self, log_p: Tensor, shares: Tensor, weights: Tensor) -> Tensor:
        """Return the expected loss [n] of the smoothed distributions [n, c]."""
        shares = (1 - self.label_smoothing) * shares + self.label_smoothing / shares.shape[1]
        return super().of_shares(log_p, shares, weights)

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Return -log p [...]."""
        return -log_p


class GeneralizedCrossEntropy(ClassificationLoss):
    """(1 - p_y^q) / q: cross-entropy as q goes to 0, mean absolute error at q = 1 (Zhang and Sabuncu 2018).

    Args:
        q: in [0, 1]; the PTNL paper uses 0.7, the authors' code 0.5.
        epsilon: added to p; the authors add 1e-6.
    """

    def __init__(self, q: float = 0.7, epsilon: float = 0.0, **shared):
        super().__init__(**shared)
        self.q = _between("q", q, 0, 1)
        self.epsilon = _between("epsilon", epsilon, 0, 1)

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Return -expm1(q log p) / q [...], which is (1 - p^q) / q without a loss of digits near p = 1."""
        if self.epsilon:
            log_p = torch.logaddexp(log_p, log_p.new_tensor(math.log(self.epsilon)))
        return -torch.expm1(self.q * log_p) / self.q if self.q else -log_p


class Unhinged(ClassificationLoss):
    """1 - p_y, half the mean absolute error of p to the one-hot label (van Rooyen et al. 2015; Ghosh et al. 2017)."""

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Return -expm1(log p) [...], which is 1 - p without a loss of digits near p = 1."""
        return -torch.expm1(log_p)


class PHuberCrossEntropy(ClassificationLoss):
    """Cross-entropy that is continued as a line where its slope exceeds `tau` (Menon et al. 2020).

    -log p_y for p_y > 1 / tau, else -tau p_y + log(tau) + 1.
    """

    def __init__(self, tau: float = 10.0, **shared):
        super().__init__(**shared)
        self.tau = _above("tau", tau, 1)

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Return the curve where p is large and the line below it [...]."""
        line = -self.tau * log_p.exp() + math.log(self.tau) + 1
        return torch.where(log_p <= -math.log(self.tau), line, -log_p)


class PHuberGeneralizedCrossEntropy(ClassificationLoss):
    """GCE that is continued as a line where its slope p_y^(q - 1) exceeds `tau` (Menon et al. 2020).

    (1 - p_y^q) / q for p_y > t = tau^(1 / (q - 1)), else (1 - t^q) / q - tau (p_y - t).
    """

    def __init__(self, q: float = 0.7, tau: float = 10.0, **shared):
        super().__init__(**shared)
        self.q = _between("q", q, 0, 1)
        if q in (0, 1):
            raise ValueError(
                f"Expected q strictly between 0 and 1. Received: q={q}. Use PHuberCrossEntropy or Unhinged."
            )
        self.tau = _above("tau", tau, 1)

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Return the curve where p is large and the line below it [...]."""
        log_t = math.log(self.tau) / (self.q - 1)
        line = -math.expm1(self.q * log_t) / self.q - self.tau * (log_p.exp() - math.exp(log_t))
        return torch.where(log_p <= log_t, line, -torch.expm1(self.q * log_p) / self.q)


class ReverseCrossEntropy(ClassificationLoss):
    """-sum_k p_k log t_k, the cross-entropy of the label to the prediction (Wang et al. 2019).

    Probabilities are kept above `min_p`, and labels t above `min_t` before the logarithm: log 0 stands for -9.21.
    """

    min_p = 1e-7
    min_t = 1e-4

    def of_labels(self, log_p: Tensor, labels: Tensor) -> Tensor:
        """Return 9.21 times the probability of the other classes [n] for log-probabilities [n, c] and labels [n]."""
        others = log_p.exp().clamp(self.min_p, 1).scatter(1, labels[:, None], 0.0)
        return -math.log(self.min_t) * others.sum(-1)

    def of_shares(self, log_p: Tensor, shares: Tensor, weights: Tensor) -> Tensor:
        """Return the loss [n] for distributions t [n, c]; the weight of a sample is its expected class weight."""
        losses = -(log_p.exp().clamp(self.min_p, 1) * shares.clamp(self.min_t, 1).log()).sum(-1)
        return losses * (shares * weights).sum(-1)


class NormalizedCrossEntropy(ClassificationLoss):
    """log p_y / sum_k log p_k: between 0 and 1 (Ma et al. 2020)."""

    def of_labels(self, log_p: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each sample [n] for log-probabilities [n, c] and labels [n].

        Raises:
            ValueError: a single class, for which the loss is 0 / 0.
        """
        return self._normalise(log_p).gather(1, labels[:, None])[:, 0]

    def of_shares(self, log_p: Tensor, shares: Tensor, weights: Tensor) -> Tensor:
        """Return the expected loss of each sample [n] for distributions over the labels [n, c].

        Raises:
            ValueError: a single class, for which the loss is 0 / 0.
        """
        return (shares * weights * self._normalise(log_p)).sum(-1)

    @staticmethod
    def _normalise(log_p: Tensor) -> Tensor:
        if log_p.shape[1] < 2:
            raise ValueError("Expected at least two classes for a normalised cross-entropy. Received: one.")
        return log_p / log_p.sum(-1, keepdim=True)


class WeightedSum(ClassificationLoss):
    """alpha times one loss plus beta times another."""

    def __init__(self, first: ClassificationLoss, second: ClassificationLoss, alpha: float, beta: float, **shared):
        super().__init__(**shared)
        self.first = first
        self.second = second
        self.alpha = _above("alpha", alpha, 0, equal=True)
        self.beta = _above("beta", beta, 0, equal=True)

    def of_labels(self, log_p: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted sum of both losses of each sample [n]."""
        return self.alpha * self.first.of_labels(log_p, labels) + self.beta * self.second.of_labels(log_p, labels)

    def of_shares(self, log_p: Tensor, shares: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of both expected losses of each sample [n]."""
        first, second = (loss.of_shares(log_p, shares, weights) for loss in (self.first, self.second))
        return self.alpha * first + self.beta * second


class SymmetricCrossEntropy(WeightedSum):
    """alpha CE + beta RCE (Wang et al. 2019)."""

    def __init__(self, alpha: float = 0.1, beta: float = 1.0, **shared):
        super().__init__(CrossEntropy(), ReverseCrossEntropy(), alpha, beta, **shared)


class NCEandRCE(WeightedSum):
    """alpha NCE + beta RCE, an active and a passive loss (Ma et al. 2020)."""

    def __init__(self, alpha: float = 1.0, beta: float = 1.0, **shared):
        super().__init__(NormalizedCrossEntropy(), ReverseCrossEntropy(), alpha, beta, **shared)


#: Every loss by its name on the command line.
LOSSES: dict[str, type[ClassificationLoss]] = {
    "ce": CrossEntropy,
    "gce": GeneralizedCrossEntropy,
    "unhinged": Unhinged,
    "phuber-ce": PHuberCrossEntropy,
    "phuber-gce": PHuberGeneralizedCrossEntropy,
    "rce": ReverseCrossEntropy,
    "sce": SymmetricCrossEntropy,
    "nce": NormalizedCrossEntropy,
    "nce-rce": NCEandRCE,
}


def make_loss(name: str, **options) -> ClassificationLoss:
    """Make the loss of a name in `LOSSES`.

    Args:
        name: the name.
        **options: parameters of the loss, and those that all losses share.

    Raises:
        ValueError: an unknown name or option, or an option out of range.
    """
    if not isinstance(name, str) or name not in LOSSES:
        raise ValueError(f"No loss {shown(name)}. Choose one of: {', '.join(LOSSES)}.")
    own = [option for option in inspect.signature(LOSSES[name]).parameters if option != "shared"]
    allowed = [*dict.fromkeys([*own, *inspect.signature(ClassificationLoss).parameters])]
    if unknown := [option for option in options if option not in allowed]:
        raise ValueError(f"The loss {name} has no option {', '.join(unknown)}. It has: {', '.join(allowed)}.")
    return LOSSES[name](**options)


def _class_weights(weight) -> Tensor:
    try:
        weights = torch.as_tensor(weight, dtype=torch.get_default_dtype())
    except (TypeError, ValueError, RuntimeError, OverflowError):
        weights = torch.empty(0)
    if weights.ndim != 1 or not len(weights) or not bool(((weights >= 0) & (weights <= MAX_INTEGER)).all()):
        raise ValueError(
            f"Expected one weight >= 0 for each class, of at most {MAX_INTEGER:,}. Received: weight={shown(weight)}."
        )
    return weights


def _between(name: str, value: float, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"Expected {name} from {low} to {high}. Received: {name}={shown(value)}.")
    return float(value)


def _above(name: str, value: float, low: float, equal: bool = False) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not (low < value <= MAX_INTEGER or (equal and value == low)):
        most = f" and at most {MAX_INTEGER:,}" if is_number and not value <= MAX_INTEGER else ""
        raise ValueError(f"Expected {name} {'>=' if equal else '>'} {low}{most}. Received: {name}={shown(value)}.")
    return float(value)
