"""The results of runs as a table and as a plot."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from ..utils.plotting import saved_figure


def results_table(runs: Sequence[dict], title: str | None = None) -> Table:
    """Return a rich table with one row per run of `run.run_experiment`; missing numbers show as a dash."""
    table = Table(title=title)
    table.add_column("Method")
    for heading in ("Trainable", "Adapter bytes", "s/step", "Train s", *_accuracy_columns(runs)):
        table.add_column(heading, justify="right")
    for run in runs:
        table.add_row(
            run["title"],
            _show(run["trainable_parameters"], ",d"),
            _show(run["adapter_bytes"], ",d"),
            _show(run["seconds_per_step"], ".3f"),
            _show(run["train_seconds"], ".1f"),
            *(_show(run["accuracy"].get(column), ".2f") for column in _accuracy_columns(runs)),
        )
    return table


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
        axes.set_ylabel("accuracy (%)")
        axes.set_ylim(0, 105)
        axes.set_title(title)
        axes.legend(ncols=len(columns), loc="upper left", frameon=False)


def _accuracy_columns(runs: Sequence[dict]) -> list[str]:
    return list(dict.fromkeys(column for run in runs for column in run["accuracy"]))


def _show(value, form: str) -> str:
    return "–" if value is None or value != value else format(value, form)
