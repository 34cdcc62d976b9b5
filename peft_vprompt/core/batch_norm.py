"""Norms with running statistics, in encoders that are frozen."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def hold_statistics(encoder: nn.Module) -> None:
    """Put every BatchNorm whose weights are frozen into evaluation mode.

    In training mode it would normalise by the statistics of the batch, so that an image's feature depends on its neighbours,
    and move its running statistics, which no adapter saves. CoOp's code trains in this way: its frozen CLIP stays in
    evaluation mode.
    """
    for module in encoder.modules():
        if isinstance(module, _BatchNorm) and not any(parameter.requires_grad for parameter in module.parameters()):
            module.eval()
