"""`typed`: arguments of public functions are of the classes that their annotations name, or refused by name."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from numbers import Number
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

from .fields import alternatives, describe, shown


#: Types of numbers, of which each function knows the bounds.
NUMBERS = (int, float, bool)

P = ParamSpec("P")
R = TypeVar("R")


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function refuse arguments of other classes than its annotations name, before it does anything.

    Numbers and truth values pass: each function knows their bounds. So do annotations that name no class.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        check_arguments(function, signature.bind(*args, **kwargs).arguments)
        return function(*args, **kwargs)

    return checked


def check_arguments(function: Callable, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of a function, by name, that are of other classes than its annotations name.

    Raises:
        TypeError: names the first such argument, what is expected and what was received.
    """
    hints = hints_of(function)
    for name, value in arguments.items():
        if name in hints and not _fits(value, hints[name]):
            where = function.__qualname__.removesuffix(".__init__")
            words = " or ".join(dict.fromkeys(_words(arm) for arm in alternatives(hints[name])))
            raise TypeError(
                f"Expected {name} of {where} to be {words}. Received: {name}={shown(value)}, "
                f"of the class {type(value).__name__}."
            )


@functools.cache
def hints_of(function: Callable) -> dict[str, Any]:
    """Return the types of a function's arguments by name, but of those that stand for any number of others.

    What is imported for type checkers alone is nothing that could be looked for: such an argument is of any type.
    """
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if parameter.annotation is not parameter.empty:
            alone: Any = SimpleNamespace(__annotations__={name: parameter.annotation})
            with suppress(NameError):
                found |= get_type_hints(alone, inspect.unwrap(function).__globals__)
    return found


def _fits(value: Any, hint: Any) -> bool:
    arms = list(alternatives(hint))
    if isinstance(value, str) and not value and Path in arms:
        return False  # the current folder, by a variable that nobody set
    others = [arm for arm in arms if arm not in NUMBERS]
    if len(others) < len(arms) and (isinstance(value, Number) or set(others) <= {None, type(None)}):
        return True
    return any(_fits_one(value, arm) for arm in others)


def _fits_one(value: Any, hint: Any) -> bool:
    origin = get_origin(hint) or hint
    if origin is Literal:
        return isinstance(value, (str, Number, type(None)))  # which ones, each function knows
    if origin is Any or not isinstance(origin, type):
        return True
    if origin is Path:
        return isinstance(value, os.PathLike)
    if origin is Sequence:
        items = get_args(hint)
        return _is_indexed(value) and (items != (str,) or all(isinstance(item, str) for item in value))
    return isinstance(value, origin)


def _is_indexed(value: Any) -> bool:
    """Tell whether a value has entries by number, as lists, arrays and data sets have: text is none."""
    if isinstance(value, (str, bytes, Mapping, type)):
        return False
    return hasattr(type(value), "__len__") and hasattr(type(value), "__getitem__")


def _words(hint: Any) -> str:
    origin = get_origin(hint) or hint
    if origin is Path:
        return "a path that is not empty"
    if origin is Sequence:
        return "a list of texts" if get_args(hint) == (str,) else "a list, or another sequence of entries by number"
    if getattr(origin, "_is_protocol", False):
        return str(inspect.getdoc(origin)).splitlines()[0].rstrip(".")
    return (
        describe(hint)
        if origin in (str, dict, Literal, None, type(None))
        else getattr(origin, "__name__", "of its type")
    )
