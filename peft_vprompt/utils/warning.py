"""Warnings that point to the code of whoever called this package, however deep inside it they arise."""

import sys
import warnings


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, as of the line outside of this package from which it was called."""
    level = 2
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("peft_vprompt", "vprompt"):
        frame = frame.f_back
        level += 1
    warnings.warn(message, category, stacklevel=level)
