"""Fields of a dataclass mean what their annotations say: `check_fields` refuses every other value, by the field's name.

Bounds are in a field's metadata: `min` and `max` (themselves allowed), `above` and `below` (themselves not), and `items`,
the most entries of a list. They hold for the entries of a list too. What has no bound of its own has the general one.
"""

from __future__ import annotations

import math
import reprlib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from enum import Enum
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


#: Bounds of what has none of its own: nothing that is counted in a config is larger.
MAX_INTEGER = 1_000_000
MAX_TEXT = 10_000
MAX_ITEMS = 200_000

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 200


def check_fields(instance: Any) -> None:
    """Refuse a dataclass object with a field whose value is not of the field's type, or is out of its bounds.

    True and False are no numbers, numbers are no truth values, and numbers in quotes are text. Numbers are finite.

    Raises:
        ValueError: names the first such field, its value, what is expected and, where it is plain, the remedy.
    """
    check_values(type(instance), {field.name: getattr(instance, field.name) for field in fields(instance)})


def check_values(cls: type, values: Mapping[str, Any]) -> None:
    """Refuse values, by field, that an object of the dataclass `cls` may not have; names that are no fields pass.

    Raises:
        ValueError: as `check_fields`.
    """
    hints = _type_hints(cls)
    for field in fields(cls):
        if field.name in values and not _matches(values[field.name], hints[field.name], field.metadata):
            value = values[field.name]
            wanted = _describe(hints[field.name], field.metadata, value)
            raise ValueError(
                f"Expected {field.name} to be {wanted}. Received: {field.name}={shown(value)}."
                + _remedy(value, list(_arms(hints[field.name])))
            )


def shown(value: Any) -> str:
    """Return a value as it is written in Python, the middle of a long one left out."""
    return _repr.repr(value)


@cache
def _type_hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _arms(hint: Any) -> Iterator[Any]:
    """Yield the alternatives of a type."""
    if get_origin(hint) in (Union, types.UnionType):
        for arm in get_args(hint):
            yield from _arms(arm)
    else:
        yield hint


def _matches(value: Any, hint: Any, bounds: Mapping) -> bool:
    return any(_matches_one(value, arm, bounds) for arm in _arms(hint))


def _matches_one(value: Any, hint: Any, bounds: Mapping) -> bool:
    origin = get_origin(hint) or hint
    if origin is Literal:
        return any(type(value) is type(allowed) and value == allowed for allowed in get_args(hint))
    if hint in (None, type(None)):
        return value is None
    if origin is bool:
        return isinstance(value, bool)
    if origin in (int, float):
        kinds = int if origin is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and _in_bounds(value, bounds, origin)
    if origin is str or isinstance(origin, type) and issubclass(origin, Enum):
        return isinstance(value, str) and len(value) <= MAX_TEXT
    if origin in (list, tuple, set, Sequence):
        return _matches_items(value, origin, get_args(hint), bounds)
    return not isinstance(origin, type) or isinstance(value, origin)


def _matches_items(value: Any, origin: Any, items: tuple, bounds: Mapping) -> bool:
    if not _is_list(value) or len(value) > bounds.get("items", MAX_ITEMS):
        return False
    if origin is tuple and Ellipsis not in items:
        return len(value) == len(items) and all(map(_matches, value, items, [bounds] * len(items)))
    return not items or all(_matches(item, items[0], bounds) for item in value)


def _in_bounds(value: float, bounds: Mapping, kind: type) -> bool:
    if kind is float and not (isinstance(value, int) or math.isfinite(value)):
        return False
    most = bounds.get("max", MAX_INTEGER if kind is int else math.inf)
    least = bounds.get("min", -most)
    return least <= value <= most and bounds.get("above", -math.inf) < value < bounds.get("below", math.inf)


def _describe(hint: Any, bounds: Mapping, value: Any = None) -> str:
    return " or ".join(dict.fromkeys(_describe_one(arm, bounds, value) for arm in _arms(hint)))


def _describe_one(hint: Any, bounds: Mapping, value: Any) -> str:
    origin = get_origin(hint) or hint
    if origin is Literal:
        return f"one of {list(get_args(hint))}"
    if hint in (None, type(None)):
        return "None"
    if origin is bool:
        return "True or False"
    if origin in (int, float):
        return _describe_number(origin, bounds, value)
    if origin is str or isinstance(origin, type) and issubclass(origin, Enum):
        return "text" + (f" of at most {MAX_TEXT:,} characters" if isinstance(value, str) else "")
    if origin in (list, tuple, set, Sequence):
        return _describe_items(origin, get_args(hint), bounds, value)
    return getattr(origin, "__name__", "a value of its type")


def _describe_items(origin: Any, items: tuple, bounds: Mapping, value: Any) -> str:
    if origin is tuple and Ellipsis not in items:
        return f"a list of {len(items)}: {', '.join(_describe(item, bounds) for item in items)}"
    most = bounds.get("items", MAX_ITEMS)
    is_long = _is_list(value) and len(value) > most
    entry = next((item for item in value if not _matches(item, items[0], bounds)), None) if _is_list(value) else None
    each = f", each {_describe(items[0], bounds, entry)}" if items else ""
    return "a list" + (f" of at most {most:,} entries" if is_long else "") + each


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple, set))


def _describe_number(kind: type, bounds: Mapping, value: Any) -> str:
    word = "an integer" if kind is int else "a finite number"
    if bounds.keys() == {"help", "min", "below"} or bounds.keys() == {"min", "below"}:
        return f"{word} in [{bounds['min']:,}, {bounds['below']:,})"
    limits = {"min": ">=", "above": ">", "max": "<=", "below": "<"}
    is_large = kind is int and isinstance(value, int) and not bounds.keys() & {"max", "below"}
    given = {**bounds, "max": MAX_INTEGER} if is_large and value > MAX_INTEGER else bounds
    said = " and ".join(f"{sign} {given[name]:,}" for name, sign in limits.items() if name in given)
    return f"{word} {said}".rstrip()


def _remedy(value: Any, arms: list) -> str:
    """Say what the value should be, where it is plain what was meant; else nothing."""
    if bool in arms and (isinstance(value, (int, float, str))):
        word = str(value).strip().lower()
        if word in ("false", "no", "off", "0", "0.0", "n", "f"):
            return " Write False, without quotes."
        if word in ("true", "yes", "on", "1", "1.0", "y", "t"):
            return " Write True, without quotes."
    if isinstance(value, str) and (int in arms or float in arms) and _is_number(value):
        return f" Write {value}, without quotes."
    if isinstance(value, str) and any(get_origin(arm) in (list, tuple) for arm in arms):
        return f" Use [{shown(value)}]."
    if isinstance(value, (int, float)) and str in arms:
        return f' Write "{value}", in quotes.'
    return ""


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
