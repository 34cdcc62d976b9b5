"""What may be done in the place of a module's own call, and what may be kept of it: only where the module is plain.

Hooks (Grad-CAM, feature taps, FSDP), a replaced `forward` (offloading) and classes of other libraries (quantisation, user
code) do things in a module's call that nobody sees who calls its parts one by one, or who keeps what it gave.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    _global_backward_hooks,
    _global_backward_pre_hooks,
    _global_forward_hooks,
    _global_forward_pre_hooks,
)


#: Libraries whose modules compute what they show: a function of their inputs, tensors, attributes and parts.
KNOWN = ("torch.nn.modules.", "transformers.", "peft.", "peft_vprompt.")


def is_known(module_class: type, forward: Callable) -> bool:
    """Tell whether class and `forward` of a module are of a library that is known; a class may have been patched."""
    return module_class.__module__.startswith(KNOWN) and forward.__module__.startswith(KNOWN)


_is_known = functools.cache(is_known)


def modeling_file(module: nn.Module) -> Any:
    """Return the file of transformers that a module's class is from; FSDP and users make classes of it elsewhere."""
    names = [base.__module__ for base in type(module).__mro__]
    return sys.modules[next((name for name in names if name.startswith("transformers.models.")), names[0])]


def parts(module: nn.Module) -> list[nn.Module]:
    """Return `module` and all modules inside, in a tenth of the time of `module.modules()`; shared ones come again."""
    found = [module]
    for part in found:  # it grows
        found.extend(child for child in part._modules.values() if child is not None)
    return found


def is_plain(module: nn.Module) -> bool:
    """Tell whether calling `module` does what its class says and nothing else; its parts are not looked at."""
    own = module.__dict__
    known = is_known if torch.compiler.is_compiling() else _is_known  # a compiler warns of caches
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
    ) and known(type(module), type(module).forward)


def has_global_hook() -> bool:
    """Tell whether a hook is there for all modules."""
    return bool(
        _global_forward_hooks or _global_forward_pre_hooks or _global_backward_hooks or _global_backward_pre_hooks
    )


def all_plain(module: nn.Module, allowed: Callable[[nn.Module], bool] | None = None) -> bool:
    """Tell whether `module` and all of its parts are plain, or else `allowed`, and no hook is there for all modules."""
    return not has_global_hook() and all(
        is_plain(part) or (allowed is not None and allowed(part)) for part in parts(module)
    )


def lets_gradients_in(module: nn.Module) -> bool:
    """Tell whether the only hooks on `module` are those by which gradient checkpointing asks for gradients of its output."""
    own = module.__dict__
    names = [getattr(hook, "__name__", "") for hook in own["_forward_hooks"].values()]
    others = own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"] or "forward" in own
    return set(names) == {"make_inputs_require_grads"} and not others and is_known(type(module), type(module).forward)


def in_place_of(module: nn.Module, function: Callable, *args, **kwargs) -> Any:
    """Return `function(*args, **kwargs)`, run as what `module` computes: hooks on `module` fire, and weights are there.

    Weights that are sharded (FSDP) or offloaded (Accelerate) are put into place by a module's call and by nothing else.
    Hooks are handed a stand-in that shares everything with `module` but its `forward`.
    """
    if is_plain(module) and not has_global_hook():
        return function(*args, **kwargs)
    stand_in = object.__new__(type(module))
    own = dict(module.__dict__)
    if "_old_forward" in own:  # Accelerate's: its replaced `forward` calls the one before it
        own["_old_forward"] = function
        own["forward"] = functools.partial(own["forward"].func, stand_in)
    else:
        own["forward"] = function
    stand_in.__dict__ = own
    return nn.Module.__call__(stand_in, *args, **kwargs)  # without what a class adds to it, such as checkpointing
