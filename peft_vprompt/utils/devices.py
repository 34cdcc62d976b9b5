"""Where a model computes, and whether its numbers can be seen there."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter, to which its inputs go."""
    return next(model.parameters()).device


def available_devices() -> list[str]:
    """Return the devices of this machine, the one that `transformers.Trainer` takes first and the CPU last."""
    mps = ["mps"] if torch.backends.mps.is_available() else []
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    xpu = [f"xpu:{index}" for index in range(torch.xpu.device_count())] if torch.xpu.is_available() else []
    return [*mps, *cuda, *xpu, "cpu"]


def find_device(name: str | None = None) -> torch.device:
    """Return the device of a name, or the one that `transformers.Trainer` takes where none is named.

    Args:
        name: such as "cpu", "cuda", "cuda:1" or "mps"; "auto" or None for the Trainer's. Of several processes that a
            launcher started, each has its own.

    Raises:
        ValueError: this machine has no such device; names those that it has.
    """
    there = available_devices()
    if name in (None, "auto"):
        own = f"{there[0].partition(':')[0]}:{os.environ.get('LOCAL_RANK', '0')}"
        return torch.device(own if own in there else there[0])
    for device in (name, f"{name}:0"):
        if device in there:
            return torch.device(device)
    raise ValueError(
        f"Expected a device of this machine: auto, {', '.join(there)}. Received: {name!r}. Take one of these; a graphics "
        "card that is not among them needs a build of torch that is made for it."
    )


def hides_values(tensor: Tensor) -> bool:
    """Tell whether nobody can look at a tensor's values: a compiler reads the call, it has none, or `vmap` maps over it."""
    if torch.compiler.is_compiling() or tensor.is_meta:
        return True
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        if torch._C._functorch.is_batchedtensor(tensor):
            return True
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return False
