"""Checks of values, whose errors say what was expected and what was received."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from .fields import shown


#: The largest seed that both NumPy and torch take.
MAX_SEED = 2**32 - 1

#: Most processes that load images.
MAX_WORKERS = 1024

#: What Python writes otherwise than JSON.
_PYTHON_CONSTANTS = {"True": True, "False": False, "None": None}


def require_choice(name: str, value, allowed: Sequence) -> None:
    """Refuse a value that is not one of `allowed`.

    Raises:
        ValueError: another value; names it and the allowed ones.
    """
    if value not in allowed:
        raise ValueError(f"Expected {name} to be one of {list(allowed)}. Received: {name}={value!r}.")


def parse_fields(items: Sequence[str] | None, where: str) -> dict:
    """Read fields of a config from items NAME=VALUE.

    Values are JSON where they can be, or Python's True, False and None; else they are text. A number or a truth value that
    should be text is put in double quotes.

    Raises:
        ValueError: an item of another form, or a name that is given twice; names `where` it was given.
    """
    fields = {}
    for item in items or ():
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise ValueError(f"{where} takes NAME=VALUE. Received: {item!r}.")
        if name in fields:
            raise ValueError(f"{where} takes each field once. Received: {name} twice. Leave one of them out.")
        fields[name] = _parse_value(value, where)
    return fields


def _parse_value(text: str, where: str):
    if text in _PYTHON_CONSTANTS:
        return _PYTHON_CONSTANTS[text]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
    except (RecursionError, ValueError) as error:  # lists in lists without end, integers of thousands of digits
        raise ValueError(
            f"{where} takes a plain value. Received: {text[:60]!r}... of {len(text)} characters."
        ) from error


def require_int(name: str, value: Any, minimum: int, maximum: int | None = None) -> None:
    """Refuse a value that is not an integer of at least `minimum`, and at most `maximum` where there is one.

    Raises:
        ValueError: another value.
    """
    is_integer = issubclass(type(value), Integral) and type(value) is not bool
    too_large = is_integer and maximum is not None and value > maximum
    if not is_integer or value < minimum or too_large:
        most = f" and <= {maximum:,}" if too_large else ""
        raise ValueError(f"Expected {name} to be an integer >= {minimum}{most}. Received: {name}={shown(value)}.")


def require_seed(seed) -> None:
    """Refuse a value that NumPy and torch do not take as a seed.

    Raises:
        ValueError: another value.
    """
    require_int("seed", seed, 0, MAX_SEED)


def require_different(name: str, values: Sequence) -> None:
    """Refuse a list of nothing, or one in which a value stands twice.

    Raises:
        ValueError: names the list and the value.
    """
    if not values:
        raise ValueError(f"Expected at least one of {name}. Received: {name}=[].")
    if twice := [value for index, value in enumerate(values) if value in values[:index]]:
        raise ValueError(f"Expected {name} that differ, as each counts once. Received twice: {twice[0]!r}.")


def is_number(value) -> bool:
    """Tell whether a value is a number, of Python or NumPy; truth values are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def first_line(error: Exception) -> str:
    """Return the first line of another library's message, without colours and without its full stop."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__


def shorten(items: Sequence[str], limit: int = 12) -> str:
    """Join names for a message, leaving out the end of a long list."""
    shown = ", ".join(map(str, items[:limit]))
    return shown if len(items) <= limit else f"{shown}, ... ({len(items)} in all)"
