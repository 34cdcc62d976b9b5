"""What a study of label noise shows: a table and plots, all from `study.json`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from ..utils.plotting import saved_figure
from .noise_study import LINEAR_PROBE, parse_method
from .reports import WORSE, is_worse


#: A legend to the right of the last panel.
BESIDE = {"fontsize": 8, "frameon": False, "loc": "center left", "bbox_to_anchor": (1.0, 0.5)}


def study_table(result: dict) -> Table:
    """Return a rich table with a row for each method, loss and noise, and a column for each rate."""
    rates = sorted({row["rate"] for row in result["summary"]})
    table = Table(title="Accuracy (%) at each share of wrong labels")
    for heading in ("Method", "Loss", "Noise"):
        table.add_column(heading)
    for rate in rates:
        table.add_column(f"{100 * rate:g} %", justify="right")
    groups: dict[tuple, dict] = {}
    for row in with_clean(result["summary"]):
        label = row["unlabelled"] or row["noise"] or "none"
        groups.setdefault((name_of(row), row["loss"], label), {})[row["rate"]] = row
    for key, by_rate in groups.items():
        table.add_row(*key, *(_cell(by_rate.get(rate), result.get("zero_shot")) for rate in rates))
    return table


def _cell(row: dict | None, zero_shot: float | None) -> str:
    if row is None:
        return "–"
    return show(row) + (f" {WORSE}" if is_worse(row["mean"], zero_shot) else "")


def explain_study(result: dict) -> str:
    """Return what guessing and zero-shot reach on the same test images, and what the mark means, in one line."""
    known = {"Chance": result.get("chance"), "zero-shot": result.get("zero_shot")}
    said = [f"{name} {value:.1f} %" for name, value in known.items() if value is not None]
    return f"{', '.join(said)}; {WORSE}: worse than zero-shot."


def show(row: dict) -> str:
    """Return mean and standard deviation over seeds as text, and how many runs diverged."""
    diverged = f" ({row['diverged']} diverged)" if row.get("diverged") else ""
    return f"{row['mean']:.1f}" + ("" if row["std"] is None else f" ± {row['std']:.1f}") + diverged


def name_of(row: dict) -> str:
    """Return the method's title, with the fields of its config that were set."""
    _, config = parse_method(row["method"])
    return row["title"] + "".join(f", {name}={value}" for name, value in config.items())


def with_clean(summary: list[dict]) -> list[dict]:
    """Return the rows, with those of clean labels once for each kind of noise: the noise of rate 0 is none."""
    labelled = [row for row in summary if row["unlabelled"] is None]
    kinds = sorted({row["noise"] for row in labelled if row["noise"]}) or [None]
    rows = [row | {"noise": kind} for kind in kinds for row in labelled if row["noise"] in (kind, None)]
    return rows + [row for row in summary if row["unlabelled"] is not None]


def plot_study(result: dict, folder: str | Path) -> list[Path]:
    """Draw the plots that the study has data for and write them as PNG.

    Returns:
        The files: accuracy against the noise rate (one for each kind of noise, a panel for each loss), one loss
        against another, gradients of clean and noisy samples, context length.
    """
    rows = [row for row in with_clean(result["summary"]) if row["noise"]]
    files = []
    for kind in dict.fromkeys(row["noise"] for row in rows):
        tried = {(row["method"], row["loss"]) for row in rows if row["noise"] == kind and row["rate"]}
        of_kind = [row for row in rows if row["noise"] == kind and (row["method"], row["loss"]) in tried]
        probe = [row for row in of_kind if row["method"] == LINEAR_PROBE]  # has no loss, and a place in every panel
        methods = [row for row in of_kind if ":" not in row["method"] and row not in probe]
        losses = list(dict.fromkeys(row["loss"] for row in methods)) or ["ce"]
        beside = [row | {"loss": loss} for loss in losses for row in probe]
        files += plot_lines(Path(folder) / f"methods_{kind}.png", methods + beside, "loss", name_of)
        several = {row["title"] for row in methods if row["loss"] != losses[0]}
        compared = [row for row in methods if row["title"] in several]
        files += plot_lines(Path(folder) / f"losses_{kind}.png", compared, "title", lambda row: row["loss"])
        lengths = [row for row in of_kind if context_length(row) is not None]
        if len({context_length(row) for row in lengths}) > 1:
            label = lambda row: f"{context_length(row)} tokens"  # noqa: E731
            files += plot_lines(Path(folder) / f"context_length_{kind}.png", lengths, "loss", label)
    return files + _gradients(Path(folder) / "gradients.png", result["runs"])


def context_length(row: dict) -> int | None:
    """Return the number of context tokens of a run of CoOp that starts at random; None for others."""
    method, config = parse_method(row["method"])
    return config.get("num_virtual_tokens", 16) if method == "coop" and "prompt_init" not in config else None


def plot_lines(path: Path, rows: list[dict], panel: str, label: Callable[[dict], str]) -> list[Path]:
    """Draw accuracy against the noise rate and write it as PNG.

    Args:
        path: the file.
        rows: rows of a summary, with `rate`, `mean` and `std`.
        panel: entry of the rows, each of whose values has a panel.
        label: names the line that a row is on.

    Returns:
        The file; none where there are fewer than two rates.
    """
    panels = list(dict.fromkeys(row[panel] for row in rows))
    if not panels or len({row["rate"] for row in rows}) < 2:
        return []
    names = list(dict.fromkeys(label(row) for row in rows))
    with saved_figure(path, columns=len(panels)) as axes:
        for ax, value in zip(axes, panels, strict=True):
            lines: dict[str, list[dict]] = {}
            for row in rows:
                if row[panel] == value:
                    lines.setdefault(label(row), []).append(row)
            for name, points in lines.items():
                points = sorted(points, key=lambda row: row["rate"])
                x = [100 * row["rate"] for row in points]
                y = [row["mean"] for row in points]
                colour = f"C{names.index(name)}"
                ax.errorbar(x, y, [row["std"] or 0 for row in points], None, "o-", c=colour, capsize=2, label=name)
            ax.set(title=value, xlabel="wrong labels (%)", ylabel="accuracy (%)", ylim=(0, 100))
        # Where the panels differ in their lines, the fullest has the legend of all.
        fullest = max(axes, key=lambda ax: len(ax.containers))
        axes[-1].legend(*fullest.get_legend_handles_labels(), **BESIDE)
    return [path]


def _gradients(path: Path, runs: list[dict]) -> list[Path]:
    """Draw norms and cosine over training of the first seed of every method and loss that was probed."""
    probed = {}
    for run in runs:
        if run["gradients"]:
            probed.setdefault((name_of(run), run["loss"]), run["gradients"])
    if not probed:
        return []
    names = list(dict.fromkeys(name for name, _ in probed))
    panels = {"clean_norm": "gradient norm, right labels", "noisy_norm": "gradient norm, wrong labels",
              "cosine": "cosine of the two gradients"}  # fmt: skip
    with saved_figure(path, columns=len(panels)) as axes:
        for ax, (quantity, title) in zip(axes, panels.items(), strict=True):
            for (name, loss), history in probed.items():
                colour = f"C{names.index(name)}"
                style = "-" if loss == "ce" else "--"
                x = [entry["epoch"] for entry in history]
                y = [entry[quantity] for entry in history]
                ax.plot(x, y, style, color=colour, label=f"{name}, {loss}")
            ax.set(title=title, xlabel="epoch", yscale="linear" if quantity == "cosine" else "log")
        axes[-1].legend(**BESIDE)
    return [path]
