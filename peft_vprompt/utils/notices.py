"""What the package tells its user while it works, as warnings that point to the user's own line."""

import sys
import warnings


_PACKAGE = __name__.partition(".")[0]


def tell(message: str) -> None:
    """Warn at the line outside of the package that led here, so that it is shown once for each such line."""
    level = 2
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        frame = frame.f_back
        level += 1
    warnings.warn(message, stacklevel=level)
