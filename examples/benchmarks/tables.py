"""Tables in Markdown, for the pages that are made of results."""

from __future__ import annotations


DASH = "–"


def number(value: float | None, form: str = ".1f") -> str:
    """A number, or a dash."""
    return DASH if value is None else format(value, form)


def markdown(headings: tuple[str, ...], rows: list[list[str]]) -> str:
    """A table without the columns that are empty in all rows."""
    kept = [index for index in range(len(headings)) if any(row[index] != DASH for row in rows)]
    lines = [[headings[index] for index in kept], ["---" if index == 0 else "--:" for index in kept]]
    lines += [[row[index] for index in kept] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
