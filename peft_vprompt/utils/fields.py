"""Fields of a dataclass mean what their annotations say: `check_fields` refuses every other value, by the field's name.

Bounds are in a field's metadata: `min` and `max` (themselves allowed), `above` and `below` (themselves not), `items`, the
most entries of a list, and `form`, a key of `FORMS` for texts. They hold for the entries of a list too. What has no bound of
its own has the general one.
"""

from __future__ import annotations

import math
import re
import reprlib
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from enum import Enum
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


#: Bounds of what has none of its own: nothing that is counted in a config is larger.
MAX_INTEGER = 1_000_000
#: Largest integer in the place of a float: torch multiplies by integers of 64 bits.
MAX_FACTOR = 2**63 - 1
MAX_TEXT = 10_000
MAX_ITEMS = 200_000

#: Forms of texts: what they match, and what they are in words. PEFT reads names of modules as regular expressions.
FORMS = {
    "module": (re.compile(r"\w+(\.\w+)*"), "the name of a module, such as 'visual_projection'"),
    "filled": (re.compile(r".*\S.*", re.DOTALL), "text that is not empty"),
}

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
            value, hint = values[field.name], hints[field.name]
            raise ValueError(
                f"Expected {_expectation(field.name, value, hint, field.metadata)}. "
                f"Received: {field.name}={shown(value)}.{_remedy(value, list(alternatives(hint)))}"
            )


def is_text(value: str) -> bool:
    """Tell whether a text is not too long and can be written and read: JSON may have halves of characters."""
    if len(value) > MAX_TEXT:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: Any) -> str:
    """Return a value as it is written in Python, the middle of a long one left out."""
    return _repr.repr(value)


@cache
def _type_hints(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls)
    except NameError:  # a class made inside a function: what its annotations name cannot be found from here
        base = next(base for base in cls.__mro__[1:] if base is object or "__dataclass_fields__" in vars(base))
        inherited = {} if base is object else _type_hints(base)
        return {field.name: inherited.get(field.name, Any) for field in fields(cls)}


def alternatives(hint: Any) -> Iterator[Any]:
    """Yield the alternatives of a type: those of a union, or itself."""
    if get_origin(hint) in (Union, types.UnionType):
        for arm in get_args(hint):
            yield from alternatives(arm)
    else:
        yield hint


def _matches(value: Any, hint: Any, bounds: Mapping) -> bool:
    return any(_matches_one(value, arm, bounds) for arm in alternatives(hint))


def _matches_one(value: Any, hint: Any, bounds: Mapping) -> bool:
    origin = get_origin(hint) or hint
    if origin is Literal:
        return any(type(value) is type(allowed) and value == allowed for allowed in get_args(hint))
    if hint in (None, type(None)):
        return value is None
    if origin is bool:
        return isinstance(value, bool)
    if origin in (int, float):
        return _is_number(value) and (origin is float or isinstance(value, int)) and _in_bounds(value, bounds, origin)
    if origin is str or isinstance(origin, type) and issubclass(origin, Enum):
        return isinstance(value, str) and is_text(value) and _has_form(value, bounds)
    if origin in (list, tuple, set, Sequence):
        return _matches_items(value, origin, get_args(hint), bounds)
    if origin is dict and get_args(hint):
        keys, values = get_args(hint)
        return (
            isinstance(value, dict)
            and len(value) <= MAX_ITEMS
            and all(_matches(key, keys, bounds) and _matches(item, values, bounds) for key, item in value.items())
        )
    return origin is Any or not isinstance(origin, type) or isinstance(value, origin)


def _matches_items(value: Any, origin: Any, items: tuple, bounds: Mapping) -> bool:
    if not _is_list(value, origin) or len(value) > bounds.get("items", MAX_ITEMS):
        return False
    if origin is tuple and Ellipsis not in items:
        return len(value) == len(items) and all(map(_matches, value, items, [bounds] * len(items)))
    return not items or all(_matches(item, items[0], bounds) for item in value)


def _has_form(value: str, bounds: Mapping) -> bool:
    return "form" not in bounds or FORMS[bounds["form"]][0].fullmatch(value) is not None


def _in_bounds(value: float, bounds: Mapping, kind: type) -> bool:
    if kind is float and not abs(value) <= (MAX_FACTOR if isinstance(value, int) else sys.float_info.max):
        return False  # infinite, NaN, or an integer that no tensor can be multiplied by
    most = bounds.get("max", MAX_INTEGER if kind is int else math.inf)
    least = bounds.get("min", -most)
    return least <= value <= most and bounds.get("above", -math.inf) < value < bounds.get("below", math.inf)


def _expectation(name: str, value: Any, hint: Any, bounds: Mapping) -> str:
    """Say what is expected of a field: all that it may be, or the bound that a value of the right kind is out of."""
    for arm in alternatives(hint):
        kind, items = get_origin(arm) or arm, get_args(arm)
        if kind in (int, float) and _is_number(value) and (kind is float or isinstance(value, int)):
            return name + _of_number(value, kind, bounds)
        if kind is str and isinstance(value, str) and is_text(value):
            return f"{name} to be {FORMS[bounds['form']][1]}"
        if kind is str and isinstance(value, str):
            return f"{name} to be text of at most {MAX_TEXT:,} whole characters"
        if kind in (list, tuple, set, Sequence) and _is_list(value, kind) and _is_of_one_kind(value, kind, items):
            entry = next((item for item in value if items and not _matches(item, items[0], bounds)), None)
            if len(value) > bounds.get("items", MAX_ITEMS) or not items:
                return f"{name} to be a list of at most {bounds.get('items', MAX_ITEMS):,} entries"
            return "each of " + _expectation(name, entry, items[0], bounds).removeprefix("each of ")
    return f"{name} to be {describe(hint, bounds)}"


def _of_number(value: float, kind: type, bounds: Mapping) -> str:
    """Say the bounds of a number: a lower one, and an upper one where both belong together or the value is above it."""
    if "below" in bounds and ("min" in bounds or "above" in bounds):
        least = f"[{bounds['min']:,}" if "min" in bounds else f"({bounds['above']:,}"
        return f" in {least}, {bounds['below']:,})"
    most = bounds.get("max", MAX_INTEGER if kind is int else math.inf)
    return f" to be {_describe_number(kind, bounds)}" + (f" and <= {most:,}" if most < value < math.inf else "")


def describe(hint: Any, bounds: Mapping = types.MappingProxyType({})) -> str:
    """Say in words what a value of a type may be."""
    return " or ".join(dict.fromkeys(_describe_one(arm, bounds) for arm in alternatives(hint)))


def _describe_one(hint: Any, bounds: Mapping) -> str:
    origin, items = get_origin(hint) or hint, get_args(hint)
    if origin is Literal:
        return f"one of {list(items)}"
    if hint in (None, type(None)):
        return "None"
    if origin in (int, float):
        return _describe_number(origin, bounds)
    if origin is tuple and Ellipsis not in items:
        return f"a list of {len(items)} ({', '.join(describe(item, bounds) for item in items)})"
    if origin in (list, tuple, set, Sequence):
        return "a list" + (f", each {describe(items[0], bounds)}" if items else "")
    if isinstance(origin, type) and issubclass(origin, (str, Enum)):
        return "text"
    if origin is dict and items:
        return f"a dict from {describe(items[0], bounds)} to {describe(items[1], bounds)}"
    return _WORDS.get(origin, getattr(origin, "__name__", "a value of its type"))


_WORDS = {bool: "True or False", dict: "a dict"}


def _describe_number(kind: type, bounds: Mapping) -> str:
    signs = {"min": ">=", "above": ">"}
    least = [f" {sign} {bounds[name]:,}" for name, sign in signs.items() if name in bounds]
    return f"{'an integer' if kind is int else 'a finite number'}{''.join(least)}"


def _is_list(value: Any, kind: Any) -> bool:
    return isinstance(value, (list, tuple) if kind is tuple else (list, tuple, set))


def _is_of_one_kind(value: Any, kind: Any, items: tuple) -> bool:
    """Tell whether all entries of a list are to be the same, and it has as many as it should."""
    return kind is not tuple or Ellipsis in items or len(set(items)) == 1 and len(value) == len(items)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _remedy(value: Any, arms: list) -> str:
    """Say what the value should be, where it is plain what was meant; else nothing."""
    if bool in arms and (isinstance(value, (int, float, str))):
        word = str(value).strip().lower()
        if word in ("false", "no", "off", "0", "0.0", "n", "f"):
            return " Write False, without quotes."
        if word in ("true", "yes", "on", "1", "1.0", "y", "t"):
            return " Write True, without quotes."
    if isinstance(value, str) and (int in arms or float in arms) and _reads_as_number(value):
        return f" Write {value}, without quotes."
    if isinstance(value, str) and any(get_origin(arm) in (list, tuple) for arm in arms):
        return f" Use [{shown(value)}]."
    if isinstance(value, (int, float)) and str in arms:
        return f' Write "{value}", in quotes.'
    return ""


def _reads_as_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
