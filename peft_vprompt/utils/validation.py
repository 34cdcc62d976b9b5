"""Checks of values, whose errors say what was expected and what was received."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence


def require_choice(name: str, value, allowed: Sequence) -> None:
    """Refuse a value that is not one of `allowed`.

    Raises:
        ValueError: another value; names it and the allowed ones.
    """
    if value not in allowed:
        raise ValueError(f"Expected {name} to be one of {list(allowed)}. Received: {name}={value!r}.")


def parse_fields(items: Sequence[str] | None, where: str) -> dict:
    """Read fields of a config from items NAME=VALUE; values are JSON where they can be, else text.

    Raises:
        ValueError: an item of another form; names `where` it was given.
    """
    fields = {}
    for item in items or ():
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise ValueError(f"{where} takes NAME=VALUE. Received: {item!r}.")
        try:
            fields[name] = json.loads(value)
        except json.JSONDecodeError:
            fields[name] = value
    return fields


def require_number(name: str, value, minimum: float) -> None:
    """Refuse a value that is not a finite number of at least `minimum`.

    Raises:
        ValueError: another value.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not minimum <= value < math.inf:
        raise ValueError(f"Expected {name} to be a finite number >= {minimum}. Received: {name}={value!r}.")


def require_int(name: str, value, minimum: int) -> None:
    """Refuse a value that is not an integer of at least `minimum`.

    Raises:
        ValueError: another value.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"Expected {name} to be an integer >= {minimum}. Received: {name}={value!r}.")


def shorten(items: Sequence[str], limit: int = 12) -> str:
    """Join names for a message, leaving out the end of a long list."""
    shown = ", ".join(map(str, items[:limit]))
    return shown if len(items) <= limit else f"{shown}, ... ({len(items)} in all)"
