"""Where the weights are that Accelerate has offloaded or FSDP has sharded: outside of a module's call they are elsewhere.

A module's call brings its weights (see `plain_modules.in_place_of`); here is what is needed outside of a call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .plain_modules import parts


def is_brought(tensor: Tensor) -> bool:
    """Tell whether the call of a module puts another tensor into the place of this one, which is offloaded or sharded."""
    return tensor.is_meta or is_sharded(tensor)


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether a tensor is FSDP's, a `DTensor`: a shard of it is in this process."""
    return hasattr(tensor, "full_tensor")


def tensor_of(module: nn.Module, name: str) -> Tensor:
    """Return a module's own parameter or buffer, from where it is kept if it is offloaded."""
    tensor = getattr(module, name)
    if tensor.is_meta:
        for hook in hooks_of(module):
            if getattr(hook, "weights_map", None) is not None:
                return hook.weights_map[name].to(hook.execution_device)
    return tensor


def computing_device(module: nn.Module, tensor: Tensor) -> torch.device:
    """Return where `module` computes with `tensor`, one of its parameters or of those inside."""
    if tensor.is_meta:
        for hook in (hook for part in parts(module) for hook in hooks_of(part)):
            if getattr(hook, "execution_device", None) is not None:
                return torch.device(hook.execution_device)
    return tensor.device


def hooks_of(module: nn.Module) -> Sequence:
    """Return Accelerate's hooks on a module."""
    hook = module.__dict__.get("_hf_hook")
    return () if hook is None else getattr(hook, "hooks", (hook,))
