"""The report of a grid search on screen and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from ..utils.plotting import saved_figure
from .reports import WORSE, is_worse


def sweep_table(report: dict, title: str | None = None) -> Table:
    """Return a rich table of the validation accuracy of every pair, and below it the test accuracy with the best."""
    rates, decays, accuracy = _grid(report)
    best = report["best"]
    table = Table(
        title=f"{report['title']}{f', {title}' if title else ''}: validation accuracy",
        caption=f"Best: base rate {best['base_rate']:g}, weight decay {best['weight_decay']:g}. Test accuracy "
        f"{report['accuracy']['mean']:.2f} ± {report['accuracy']['std']:.2f} over {len(report['runs'])} runs, "
        f"{report['trainable_parameters']:,} trained parameters. {_beside(report)}",
    )
    table.add_column("Base rate \\ weight decay")
    for decay in decays:
        table.add_column(f"{decay:g}", justify="right")
    for rate in rates:
        cells = [f"{accuracy[rate, decay]:.2f}" for decay in decays]
        chosen = [rate == best["base_rate"] and decay == best["weight_decay"] for decay in decays]
        table.add_row(f"{rate:g}", *(f"[bold]{c}[/]" if b else c for c, b in zip(cells, chosen, strict=True)))
    return table


def _beside(report: dict) -> str:
    """Return what guessing and zero-shot reach on the test images, and whether the runs are worse."""
    known = {"Chance": report.get("chance"), "zero-shot": report.get("zero_shot")}
    said = ", ".join(f"{name} {values['all']:.2f}" for name, values in known.items() if values)
    plain = (report.get("zero_shot") or {}).get("all")
    worse = f" ({WORSE} worse than zero-shot)" if is_worse(report["accuracy"]["mean"], plain) else ""
    return f"{said}{worse}." if said else ""


def means_table(means: Mapping[str, float]) -> Table:
    """Return a rich table of the means of the groups of a benchmark."""
    table = Table(title="Mean test accuracy")
    table.add_column("Group")
    table.add_column("Accuracy", justify="right")
    for group, mean in means.items():
        table.add_row(group, f"{mean:.2f}")
    return table


def plot_sweep(report: dict, path: str | Path) -> None:
    """Draw the validation accuracies of the grid as a heat map and write it as PNG."""
    rates, decays, accuracy = _grid(report)
    values = [[accuracy[rate, decay] for decay in decays] for rate in rates]
    with saved_figure(path, size=(1.2 * len(decays) + 3, 0.5 * len(rates) + 2)) as (axes,):
        image = axes.imshow(values, aspect="auto")
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", color="white", fontsize=8)
        axes.set_xticks(range(len(decays)), [f"{decay:g}" for decay in decays])
        axes.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        axes.set_xlabel("weight decay")
        axes.set_ylabel("learning rate for a batch of 256")
        axes.set_title(report["title"])
        axes.figure.colorbar(image, label="validation accuracy (%)")


def _grid(report: dict) -> tuple[list[float], list[float], dict[tuple[float, float], float]]:
    """Return rates, weight decays, and accuracy by pair."""
    accuracy = {(trial["base_rate"], trial["weight_decay"]): trial["accuracy"] for trial in report["trials"]}
    rates = list(dict.fromkeys(rate for rate, _ in accuracy))
    return rates, list(dict.fromkeys(decay for _, decay in accuracy)), accuracy
