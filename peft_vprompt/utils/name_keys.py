"""Class names as keys: how a name is read, and where it is found among others; never by its position."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

import torch

from .warning import warn_caller


def readable(name: str) -> str:
    """Make a class name readable: underscores are spaces (the CoOp authors' rule)."""
    return name.replace("_", " ")


@torch.compiler.assume_constant_result  # a compiler follows it no further
def composed(name: str) -> str:
    """Return a name with its accents as parts of the letters (NFC), which may stand behind them and look the same."""
    return unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """Return what names have in common that differ in capitals, hyphens, underscores, blanks and forms of accents alone."""
    return composed(" ".join(readable(name).replace("-", " ").split()).casefold())


def as_read(name: str) -> str:
    """Return what names have in common that are read as the same one."""
    return composed(readable(name))


def places_of(names: Sequence[str], form: Callable[[str], object]) -> dict:
    """Return the positions of names, by what `form` makes of them; without those of which it makes None."""
    places: dict = {}
    for position, name in enumerate(names):
        if (written := form(name)) is not None:
            places.setdefault(written, []).append(position)
    return places


def rows_of(names: Sequence[str], known: Sequence[str], alike: Callable[[str], str] = as_read) -> list[int | None]:
    """Return the row of each name among those that are known; None for a name that is none of them.

    Names are found as they are written, else `alike`. Of a name that stands for several rows each is found once, in their
    order; where it is asked for less or more often, a warning says so.
    """
    if list(names) == list(known):
        return list(range(len(known)))
    exact = places_of(known, str)
    written_alike = places_of(known, alike)
    found = [tuple(exact.get(name) or written_alike.get(alike(name), ())) for name in names]
    asked = Counter(found)
    seen: Counter = Counter()
    rows: list[int | None] = []
    for name, places in zip(names, found, strict=True):
        taken = seen[places]
        seen[places] += 1
        rows.append(places[min(taken, len(places) - 1)] if places else None)
        if len(places) > 1 and taken == 0 and asked[places] != len(places):
            warn_caller(f"{name!r} is the name of {len(places)} classes of the adapter, of which the first is taken.")
    return rows


def all_known(names: Sequence[str], known: Sequence[str]) -> bool:
    """Return whether all names are among those that are known, as they are read; a compiler can follow it."""
    if list(names) == list(known):
        return True
    forms = dict.fromkeys([as_read(name) for name in known])
    return all([as_read(name) in forms for name in names])  # noqa: C419 - a compiler follows no generator
