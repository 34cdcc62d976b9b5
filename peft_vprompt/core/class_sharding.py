"""Classes shared out over processes: each encodes its share, and all get all features, with gradients."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def share(count: int) -> tuple[int, int] | None:
    """Return the first and last + 1 of `count` classes that this process encodes; None where nothing is to be shared."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    if processes == 1 or count < processes:  # a process without a class would leave its prompts without a gradient
        return None
    return count * rank // processes, count * (rank + 1) // processes


class _Gather(torch.autograd.Function):
    """Stack all processes' tensors of one shape; the gradients for each are summed over the processes."""

    @staticmethod
    def forward(ctx, mine: Tensor) -> Tensor:
        parts = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, mine.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient)
        return gradient[distributed.get_rank()]


def gather_classes(mine: Tensor, count: int) -> Tensor:
    """Return the features of all `count` classes, [count, ...], from `mine`, those of this process's share.

    Each process compares all of them with its own images, so the gradient that reaches a share is the sum over
    processes, and the mean that `DistributedDataParallel` takes afterwards is that of one process with all images.
    """
    processes = distributed.get_world_size()
    sizes = [count * (rank + 1) // processes - count * rank // processes for rank in range(processes)]
    padding = mine.new_zeros(max(sizes) - mine.shape[0], *mine.shape[1:])
    gathered = _Gather.apply(torch.cat([mine, padding]))
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])
