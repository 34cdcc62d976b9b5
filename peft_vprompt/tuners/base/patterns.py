"""How configs name modules: PEFT matches names by regular expressions, of which some never end, and some fit nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from peft.utils.error import NoMatchingPeftModuleError

from ...errors import AdapterMismatchError
from ...utils.fields import shown


#: Most patterns of one field, and characters of one.
MAX_PATTERNS = 1000
MAX_PATTERN = 2000

#: Most repetitions without an end in a pattern, and parts that may be left out: the time grows by a power of their number.
MAX_REPEATS = 3
MAX_OPTIONS = 3

#: How the names end of the fields that PEFT takes patterns from.
_FIELDS = ("_modules", "_pattern")


def check_patterns(saved: Mapping[str, Any], place: str | os.PathLike) -> None:
    """Refuse a saved config with a pattern that could take longer than the model does.

    Args:
        saved: fields of the config of an adapter of any method of PEFT.
        place: its file, folder or Hub id.

    Raises:
        AdapterMismatchError: names the field and the pattern.
    """
    for name, value in saved.items():
        if not name.endswith(_FIELDS) or not isinstance(value, (str, dict)):
            continue
        patterns = [value] if isinstance(value, str) else list(value)
        bad = next((pattern for pattern in patterns if not _is_simple(pattern)), None)
        if bad is not None or len(patterns) > MAX_PATTERNS:
            received = f"{len(patterns):,} patterns" if bad is None else f"{name}={shown(bad)}"
            raise AdapterMismatchError(
                f"Expected {name} of the adapter in {os.fspath(place)!r} to be at most {MAX_PATTERNS:,} plain patterns, "
                f"without repeated groups and with at most {MAX_REPEATS} repetitions. Received: {received}. Write the "
                "modules' names as a list in its adapter_config.json."
            )


@contextmanager
def targets_named(config: Any) -> Iterator[None]:
    """Say by the field's name that no module of the base model fits what a config names.

    Raises:
        ValueError: as PEFT does.
    """
    try:
        yield
    except NoMatchingPeftModuleError as error:
        raise ValueError(
            "Expected target_modules to name modules of the base model that are not excluded. Received: "
            f"target_modules={shown(config.target_modules)}. Leave it out for the method's own."
        ) from error


def _is_simple(pattern: Any) -> bool:
    """Tell whether matching a pattern takes no longer than a power of the length of a name."""
    if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN:
        return False
    plain = re.sub(r"\\.", "x", pattern, flags=re.DOTALL)
    plain = re.sub(r"\[\^?\]?[^\]]*\]", "x", plain)
    plain = re.sub(r"\(\?(:|=|!|<=|<!|P<\w+>)", "(", plain)
    repeats = len(re.findall(r"[*+{]", plain))
    options = len(re.findall(r"(?<![*+?}])\?", plain))
    return not re.search(r"\)[*+{]", plain) and repeats <= MAX_REPEATS and options <= MAX_OPTIONS
