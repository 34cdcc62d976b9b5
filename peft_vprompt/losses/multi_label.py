"""The sigmoid loss, for images of several classes or none: each class is a question of its own, yes or no."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .classification import REDUCTIONS, read_aux_loss, read_logits
from .label_checks import IGNORED, check_multi_hot


class BinaryCrossEntropy(nn.Module):
    """-y log sigmoid(z) - (1 - y) log sigmoid(-z) of each class's logit z, the mean over images and classes.

    Called as `loss(logits, labels)`, or by `Trainer(compute_loss_func=loss)`, as the losses of one class for an image are.
    A model with a bias of its own (SigLIP) has it in the logits. Times the number of classes it is SigLIP's own loss.

    Args:
        reduction: "mean", "sum" or "none" ([n, c]).

    Raises:
        ValueError: an unknown reduction.
    """

    def __init__(self, reduction: str = "mean"):
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"Expected reduction to be one of {list(REDUCTIONS)}. Received: reduction={reduction!r}.")
        self.reduction = reduction

    def forward(self, logits, labels: Tensor, num_items_in_batch: Tensor | float | None = None) -> Tensor:
        """Return the loss of `logits` [n, c], with that of the regularisers where "mean" is taken.

        Args:
            logits: a tensor, or a model's output that has `logits` and may have `aux_loss`, a scalar or None.
            labels: 1 where an image is of a class, 0 where not, -100 where nobody knows [n, c]; of any type, also shares.
            num_items_in_batch: what "mean" divides by instead, as `Trainer` counts it over all accumulated batches: the
                entries that count.

        Where no entry counts, the loss is zero, with zero gradients.

        Raises:
            ValueError: labels of another shape, or with other values.
        """
        aux_loss = read_aux_loss(logits)
        logits = read_logits(logits)
        check_multi_hot(labels, *logits.shape)
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            counted = labels != IGNORED
            targets = torch.where(counted, labels.to(logits), 0)
            losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * counted
            if self.reduction != "mean":
                return losses.sum() if self.reduction == "sum" else losses
            total = counted.sum()
            divisor = total.clamp(min=1) if num_items_in_batch is None else num_items_in_batch or 1.0
            loss = losses.sum() / divisor
            share = 1.0 if num_items_in_batch is None else total / divisor
            return loss if aux_loss is None else loss + share * aux_loss.to(loss)
