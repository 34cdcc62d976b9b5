"""Results on disk and on screen: JSON that names its machine and versions, a table, a plot. Never half-written."""

import json
import math
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.table import Table


#: Packages whose versions can change a number.
PACKAGES = ("peft-vprompt", "peft", "transformers", "torch", "accelerate", "datasets", "tokenizers", "numpy", "pillow")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; renamed to `path` on success, removed on an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(data: dict, path: str | Path) -> None:
    """Write `data` as readable JSON. Infinity and not-a-number become null, which other JSON readers accept."""
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(_finite(data), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def environment() -> dict:
    """The machine and the versions a result was measured with."""
    return {
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
    }


def cpu_model() -> str:
    """Name of the processor, as the operating system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def results_table(runs: Sequence[dict], title: str | None = None) -> Table:
    """A rich table with one row per run of `experiment.run_experiment`; missing numbers show as a dash."""
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


@contextmanager
def saved_figure(path: str | Path, columns: int = 1, size: tuple[float, float] | None = None) -> Iterator:
    """A row of axes to draw on; written as PNG at the end of the block. `size` is in inches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=size or (4.2 * columns, 3.8), layout="constrained", squeeze=False)
    try:
        yield tuple(axes[0])
        with atomic_path(path) as partial:
            figure.savefig(partial, format="png", dpi=150)
    finally:
        plt.close(figure)


def _accuracy_columns(runs: Sequence[dict]) -> list[str]:
    return list(dict.fromkeys(column for run in runs for column in run["accuracy"]))


def _show(value, form: str) -> str:
    return "–" if value is None or value != value else format(value, form)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
