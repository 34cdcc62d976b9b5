"""Where the weights are that Accelerate has offloaded or FSDP has sharded: outside of a module's call they are elsewhere.

A module's call brings its weights (see `plain_modules.in_place_of`); here is what is needed outside of a call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate.hooks import remove_hook_from_module
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


def bring(module: nn.Module) -> nn.Module:
    """Give the copy of an offloaded module weights of its own, in memory, that can be trained.

    The copy's hooks would put the original's weights into their place in every call.
    """
    for part in parts(module):
        if not any(getattr(hook, "weights_map", None) is not None for hook in hooks_of(part)):
            continue
        own = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
        kept = {name: (tensor_of(part, name).clone(), tensor.requires_grad) for name, tensor in own}
        remove_hook_from_module(part)
        vars(part).pop("forward", None)
        for name, (tensor, requires_grad) in kept.items():
            if name in part._parameters:
                part._parameters[name] = nn.Parameter(tensor, requires_grad)
            else:
                part._buffers[name] = tensor
    return module


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
