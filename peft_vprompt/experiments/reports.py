"""The results of runs as a table and as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from ..training.evaluation import chance
from ..utils.plotting import saved_figure
from .several_labels import metric_of


#: What stands behind an accuracy that is lower than zero-shot's.
WORSE = "▼"

#: What the columns of a table mean, by their headings.
MEANINGS = {
    "base": "base: the classes trained on",
    "novel": "novel: classes never trained on",
    "hm": "hm: harmonic mean of both",
    "all": "all: every class, all trained on",
}
#: Likewise where nothing was trained.
UNTRAINED = {
    "base": "base: the first half of the classes",
    "novel": "novel: the other half",
    "all": "all: every class",
}


def results_table(runs: Sequence[dict], title: str | None = None) -> Table:
    """Return a rich table with one row per run of `run.run_experiment`, below guessing and zero-shot.

    Missing numbers show as a dash; accuracies lower than zero-shot's are marked. What it all means: see `explain`.
    """
    columns = _accuracy_columns(runs)
    table = Table(title=title)
    table.add_column("Method", no_wrap=True)
    for heading in ("Trained", "Adapter\nbytes", "s/step", "Train s", *columns):
        table.add_column(heading, justify="right")
    for name, accuracies in references(runs).items():
        table.add_row(name, *["–"] * 4, *(_show(accuracies.get(column), ".2f") for column in columns))
    for run in runs:
        if run["adapter_bytes"] is None and run.get("zero_shot"):
            continue  # zero-shot itself, which is above
        table.add_row(
            run["title"],
            _show(run["trainable_parameters"], ",d"),
            _show(run["adapter_bytes"], ",d"),
            _show(run["seconds_per_step"], ".3f"),
            _show(run["train_seconds"], ".1f"),
            *(show_accuracy(run, column) for column in columns),
        )
    return table


def references(runs: Sequence[dict]) -> dict[str, dict]:
    """Return the accuracies of guessing and of zero-shot, by name; those that no run knows are left out."""
    classes = next((run["classes"] for run in runs if run.get("classes")), None)
    zero_shot = next((run["zero_shot"] for run in runs if run.get("zero_shot")), None)
    guessed = next((run["chance"] for run in runs if run.get("metric")), chance(classes) if classes else None)
    rows = {"Chance": guessed, "Zero-shot": zero_shot}
    return {name: accuracies for name, accuracies in rows.items() if accuracies}


def show_accuracy(run: dict, column: str) -> str:
    """Return an accuracy in percent as text, marked where it is lower than zero-shot's."""
    accuracy = run["accuracy"].get(column)
    plain = (run.get("zero_shot") or {}).get(column)
    return _show(accuracy, ".2f") + (f" {WORSE}" if is_worse(accuracy, plain) else "")


def is_worse(accuracy: float | None, zero_shot: float | None) -> bool:
    """Return whether an accuracy is lower than zero-shot's; one that is not known is not."""
    return accuracy is not None and zero_shot is not None and accuracy < zero_shot


def explain(runs: Sequence[dict]) -> str:
    """Return what the columns and marks of a table mean, in one line."""
    columns = _accuracy_columns(runs)
    meanings = MEANINGS | ({} if any(run.get("adapter_bytes") for run in runs) else UNTRAINED)
    said = [
        f"{metric_of(runs[0]).capitalize()} in percent",
        *(meanings[column] for column in columns if column in meanings),
    ]
    if any(WORSE in show_accuracy(run, column) for run in runs for column in columns):
        said.append(f"{WORSE}: worse than zero-shot")
    return "; ".join(said) + "."


def plot_results(runs: Sequence[dict], path: str | Path, title: str = "") -> None:
    """Draw the accuracies of the runs as grouped bars and write them as PNG."""
    columns = _accuracy_columns(runs)
    width = 0.8 / len(columns)
    with saved_figure(path, size=(1.6 * len(runs) + 2, 4)) as (axes,):
        for offset, column in enumerate(columns):
            positions = [index + (offset - (len(columns) - 1) / 2) * width for index in range(len(runs))]
            bars = axes.bar(positions, [run["accuracy"].get(column, 0) for run in runs], width, label=column)
            axes.bar_label(bars, fmt="%.0f", fontsize=8)
        axes.set_xticks(range(len(runs)), [run["title"] for run in runs])
        axes.set_ylabel(f"{metric_of(runs[0])} (%)")
        axes.set_ylim(0, 105)
        axes.set_title(title)
        axes.legend(ncols=len(columns), loc="upper left", frameon=False)


def _accuracy_columns(runs: Sequence[Mapping]) -> list[str]:
    return list(dict.fromkeys(column for run in runs for column in run["accuracy"]))


def _show(value, form: str) -> str:
    return "–" if value is None or value != value else format(value, form)
