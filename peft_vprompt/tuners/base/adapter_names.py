"""What an adapter may be called: its modules stand in a `ModuleDict` under its name, its files in a folder of that name."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...utils.fields import shown
from .switching import BASE


#: What a `ModuleDict` has already under a name.
_TAKEN = nn.ModuleDict()


def check_names(names: Any) -> list[str]:
    """Return a list of names of adapters, which may be there or not.

    Raises:
        TypeError: something else.
    """
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"Expected adapter_names as a list of names. Received: adapter_names={shown(names)}.")
    return list(names)


def check_adapter_name(name: Any) -> None:
    """Refuse a name under which no module or folder can stand.

    Raises:
        ValueError: names it, and what is allowed.
    """
    plain = isinstance(name, str) and bool(name.strip()) and not set(name) & {".", "\\", "\0"} and name[0] != "/"
    if not plain or len(name) > 200:
        raise ValueError(
            "Expected an adapter name of at most 200 characters without dots and backslashes, which is part of the names of "
            f"tensors and of a folder. Received: adapter_name={name!r:.300}. Use another, such as 'my_adapter'."
        )
    if name == BASE or hasattr(_TAKEN, name):
        raise ValueError(
            f"Expected an adapter name that torch and PEFT have no other use for. Received: adapter_name={name!r}. Use another, "
            f"such as 'my_{name.strip('_')}'."
        )
