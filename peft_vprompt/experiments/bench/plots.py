"""The plots of a report, from the summary of a bench: few-shot curves, base against novel, time against accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...utils.plotting import saved_figure
from .document import Picture
from .grid import ZERO_SHOT
from .summary import ALL_CLASSES
from .tables import headline, scope_title, scopes_of


#: Panels beside each other in one picture.
PANELS = 4

#: Marks of methods beyond the ten colours.
_MARKS = "osD^v<>pP*Xhd"


def draw(part: Mapping, folder: Path) -> list[Picture]:
    """Draw what a protocol has plots of, and write them as PNG.

    Args:
        part: what the summary says of the protocol.
        folder: where the files go.

    Raises:
        CannotWriteError: the disk is full, or the folder is not to be written.
    """
    start = part["protocol"]
    pictures = []
    if part["protocol"] == "few-shot" and len(part["shots"]) > 1:
        pictures += _paged(
            part, folder / f"{start}-curves", _curve, "Accuracy by images per class, mean and spread over seeds"
        )
    if any("hm" in row for row in part["rows"]):
        pictures += _paged(
            part, folder / f"{start}-base-novel", _scatter, "Novel against base accuracy, means over seeds"
        )
    if any(row["train_seconds"] for row in part["costs"]):
        pictures += _paged(part, folder / f"{start}-time", _time, "Accuracy against the time of training")
    return pictures


def _paged(part: Mapping, path: Path, panel, caption: str) -> list[Picture]:
    """Draw a panel for every scope, the average first, a few in each file."""
    order = scopes_of(part)
    pictures = []
    pages = [order[start : start + PANELS] for start in range(0, len(order), PANELS)]
    for number, chosen in enumerate(pages, start=1):
        file = path.with_name(f"{path.name}-{number}.png")
        with saved_figure(file, columns=len(chosen), size=(4.4 * len(chosen) + 1.6, 4.2)) as axes:
            for ax, scope in zip(axes, chosen, strict=True):
                panel(ax, part, scope)
                ax.set_title(scope_title(part, scope))
            shown = dict(pair for ax in axes for pair in zip(*reversed(ax.get_legend_handles_labels()), strict=True))
            axes[-1].legend(
                shown.values(), shown.keys(), fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5)
            )
        pictures.append(Picture(file, caption))
    return pictures


def _curve(ax: Any, part: Mapping, scope: str) -> None:
    """Draw accuracy against the number of shots, a line for each method, and zero-shot as a level."""
    for index, (title, rows) in enumerate(_by_title(part, scope).items()):
        points = sorted(rows, key=lambda row: row["shots"])
        x = [row["shots"] for row in points]
        y = [row["accuracy"][ALL_CLASSES]["mean"] for row in points]
        error = [row["accuracy"][ALL_CLASSES]["std"] or 0 for row in points]
        ax.errorbar(
            x, y, error, None, f"{_MARKS[index % len(_MARKS)]}-", c=f"C{index % 10}", capsize=2, ms=4, label=title
        )
    _level(ax.axhline, part, scope, lambda row: row["accuracy"][ALL_CLASSES]["mean"])
    ax.set_xscale("log", base=2)
    ax.set_xticks(part["shots"], [str(shots) for shots in part["shots"]])
    ax.set(xlabel="images per class", ylabel="accuracy (%)")


def _scatter(ax: Any, part: Mapping, scope: str) -> None:
    """Draw novel against base accuracy with the largest number of shots, a mark for each method."""
    for index, (title, rows) in enumerate(_by_title(part, scope).items()):
        row = max(rows, key=lambda row: row["shots"])
        if "novel" in row["accuracy"]:
            x, y = (row["accuracy"][test]["mean"] for test in ("base", "novel"))
            ax.plot(x, y, _MARKS[index % len(_MARKS)], c=f"C{index % 10}", label=title)
    _level(ax.axvline, part, scope, lambda row: row["accuracy"]["base"]["mean"], label=False)
    _level(ax.axhline, part, scope, lambda row: row["accuracy"]["novel"]["mean"])
    ax.set(xlabel="base classes, accuracy (%)", ylabel="novel classes, accuracy (%)")


def _time(ax: Any, part: Mapping, scope: str) -> None:
    """Draw the accuracy by which methods are ordered against the median time of training, a mark for each method."""
    seconds = {(row["title"], row["shots"]): row["train_seconds"] for row in part["costs"]}
    for index, (title, rows) in enumerate(_by_title(part, scope).items()):
        points = [(seconds.get((title, row["shots"])), headline(row)) for row in rows]
        points = [(x, y) for x, y in points if x]
        if points:
            ax.plot(*zip(*points, strict=True), _MARKS[index % len(_MARKS)], c=f"C{index % 10}", label=title)
    _level(ax.axhline, part, scope, headline)
    has_hm = any("hm" in row for row in part["rows"])
    ax.set(xscale="log", xlabel="training (s)", ylabel="harmonic mean of averages (%)" if has_hm else "accuracy (%)")


def _by_title(part: Mapping, scope: str) -> dict[str, Sequence[Mapping]]:
    """Return the rows of what was trained, by title: a colour for each method, the same in every panel."""
    titles = dict.fromkeys(row["title"] for row in part["rows"] if row["shots"] is not None)
    rows = [row for row in part["rows"] if row["scope"] == scope and row["shots"] is not None]
    return {
        title: [row for row in rows if row["title"] == title]
        for title in titles
        if any(row["title"] == title for row in rows)
    }


def _level(line: Any, part: Mapping, scope: str, value, label: bool = True) -> None:
    """Draw zero-shot as a dotted line."""
    for row in part["rows"]:
        if (row["scope"], row["method"]) == (scope, ZERO_SHOT):
            line(value(row), color="gray", linestyle=":", label="Zero-shot" if label else None)
