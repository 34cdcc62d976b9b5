"""Measured costs as a table on the screen and in words; what is measured is in `cost`."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from .cost import ABOUT


#: What the columns are called.
HEADINGS = ("Method", "Classes", "On", "Precision", "Images a step", "Steps", "s/step", "Time", "Memory, GB")


def cost_table(report: dict) -> Table:
    """Return a rich table with a row for each cell of `cost.training_costs`."""
    about = report[ABOUT]
    table = Table(title=f"{about['model'] or 'The embedded model'}, {about['shots']} shots, on {about['device']}")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("Method", "On", "Precision") else "right")
    for cell in report["cells"].values():
        table.add_row(*cost_row(cell))
    return table


def cost_row(cell: dict) -> list[str]:
    """Return one row as text, in the order of `HEADINGS`."""
    first = [
        cell.get("title", cell["method"]),
        f"{cell['classes']:,}",
        "features" if cell["cached"] else "images",
        cell["precision"],
    ]
    if "skipped" in cell:
        return [*first, "–", "–", "–", cell["skipped"], "–"]
    step = cell["seconds_per_step"]
    return [
        *first,
        "–" if cell["batch_size"] is None else str(cell["batch_size"]),
        f"{cell['steps']:,}",
        "–" if step is None else f"{step:.2g}" if step < 1 else f"{step:.1f}",
        duration(3600 * cell["hours"]),
        f"{cell['peak_bytes'] / 1e9:.1f}",
    ]


def duration(seconds: float) -> str:
    """Return a time in the unit that it is told in: seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def explain_costs(report: dict) -> str:
    """Return what the columns of the table mean."""
    cached = any(cell["cached"] for cell in report["cells"].values())
    features = " On features: `--cache-features`, the encoding of all images once included." if cached else ""
    return (
        "Time: all steps of the authors' recipe, without evaluation, and without loading images where that takes longer than "
        f"a step. Memory: the most that the process had, the model included.{features}"
    )


def quickest(report: dict) -> dict[str, Any] | None:
    """Return the cell that trains in the shortest time; None where none does."""
    cells = [cell for cell in report["cells"].values() if cell.get("steps")]
    return min(cells, key=lambda cell: cell["hours"]) if cells else None
