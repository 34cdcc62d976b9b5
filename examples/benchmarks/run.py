"""Measure: `python -m examples.benchmarks.run --help`.

Every measurement has a process of its own: one times all sides of a cell in turn, one for each side finds its peak
memory. A cell that is in the JSON already, from the same commit, machine and versions, is not measured again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from fnmatch import fnmatch
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from .cases import EXPERIMENTS, TITLES, Case, Experiment, quick
from .inputs import Inputs
from .measure import CLOCKS, Limits, keep_freed_memory, measure_memory, measure_rates, measure_times, prepare
from .results import ROOT, Results


#: Sides whose memory is of interest.
MEMORY_SIDES = ("ours", "plain", "bf16")


def _isolated(function: Callable, inputs: Inputs, max_bytes: int, keep_memory: bool, *arguments):
    """What a process does: set itself up, then measure."""
    prepare(inputs, max_bytes)
    if keep_memory:
        keep_freed_memory()
    return function(*arguments)


class Runner:
    """Measures cells.

    Args:
        inputs: models and names.
        limits: what is too large.
        isolated: each measurement in a process of its own; otherwise all here (for tests).
    """

    def __init__(self, inputs: Inputs, limits: Limits, isolated: bool = True):
        self.inputs, self.limits, self.isolated = inputs, limits, isolated
        self.context = get_context("forkserver")
        self.context.set_forkserver_preload(["examples.benchmarks.measure"])  # imports once, not in every process
        self.rates = self.call(measure_rates, True, inputs) if isolated else {}

    def call(self, function: Callable, keep_memory: bool, *arguments):
        """Run `function`, in a new process if isolated.

        Raises:
            MemoryError: the process ended at the memory limit.
        """
        if not self.isolated:
            return function(*arguments)
        with ProcessPoolExecutor(1, mp_context=self.context) as pool:
            job = (function, self.inputs, self.limits.bytes, keep_memory, *arguments)
            try:
                return pool.submit(_isolated, *job).result()
            except BrokenProcessPool as error:
                raise MemoryError("was ended by the system, most likely for want of memory") from error
            except RuntimeError as error:
                if "allocate memory" in str(error):
                    raise MemoryError(f"needs more than {self.limits.bytes / 1e9:.0f} GB") from error
                raise

    def measure_times(self, case: Case) -> dict:
        """Times of all sides; without the plain side where memory runs out against the estimate."""
        try:
            return self.call(measure_times, True, case, self.inputs, self.limits, self.rates)
        except MemoryError as error:
            if "plain" not in case.sides:
                raise
            others = tuple(side for side in case.sides if side != "plain")
            cell = self.measure_times(replace(case, sides=others))
            cell["sides"]["plain"] = {"skipped": str(error)}
            return cell

    def measure(self, case: Case) -> dict:
        """All there is to know of one cell."""
        cell = self.measure_times(case) if case.timed else {"sides": {"ours": {}}, "repeats": 1}
        sides = cell["sides"]
        for name in MEMORY_SIDES:
            if name in sides and "skipped" not in sides[name]:
                try:
                    sides[name] = self.call(measure_memory, False, case, self.inputs, name) | sides[name]
                except MemoryError as error:
                    sides[name]["memory"] = str(error)
        peaks = [sides.get(name, {}).get("peak_bytes") for name in ("ours", "plain")]
        if all(peaks):
            cell["memory_ratio"] = peaks[1] / peaks[0]
        return cell | {"process_bytes": sides["ours"].get("process_bytes")}


def table(results: Results) -> Table:
    """The cells of an experiment on the screen."""
    view = Table(title=results.experiment.title)
    for heading in ("Cell", "Ours, ms", "Other, ms", "Ratio", "Memory", "x floor", "Agreement"):
        view.add_column(heading, justify="left" if heading == "Cell" else "right")
    for case in results.experiment.cases:
        if (cell := results.cells.get(case.key)) is None:
            continue
        sides = cell["sides"]
        other = sides.get("plain") or sides.get("bare") or sides.get("bf16") or {}
        ratio = (
            cell.get("ratio") or cell.get("bf16_ratio") or (1 / cell["bare_ratio"] if "bare_ratio" in cell else None)
        )
        view.add_row(
            case.key.replace(case.method, TITLES[case.method], 1),
            show(sides["ours"].get("ms"), ".1f"),
            show(other.get("ms"), ".1f") if "skipped" not in other else other["skipped"],
            show(ratio, ".2f"),
            show(cell.get("memory_ratio"), ".1f"),
            show(cell.get("floor_ratio"), ".2f"),
            show(max(cell["agreement"].values()) if cell.get("agreement") else None, ".0e"),
        )
    return view


def show(value: float | None, form: str) -> str:
    """A number, or a dash."""
    return "–" if value is None else format(value, form)


def run_experiment(experiment: Experiment, runner: Runner, results: Results, again: bool, progress: Progress) -> None:
    """Measure the cells of one experiment that are missing."""
    missing = [case for case in experiment.cases if again or not results.has(case)]
    task = progress.add_task(experiment.name, total=len(missing))
    for case in missing:
        progress.update(task, description=case.key)
        try:
            results.add(case, runner.measure(case))
        except MemoryError as error:
            results.add(case, {"sides": {"ours": {"skipped": str(error)}}})
        progress.advance(task)


def main(
    experiment: Annotated[list[str] | None, typer.Option(help="Which; default: all. May be repeated.")] = None,
    only: Annotated[str, typer.Option(help="Only cells whose name fits, e.g. 'coop/*/batch 4'.")] = "*",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    threads: Annotated[int, typer.Option(help="Threads on the CPU.")] = 2,
    clock: Annotated[
        str, typer.Option(help="wall, or processor (with one thread): on a machine shared with other work.")
    ] = "wall",
    tokenizer: Annotated[str | None, typer.Option(help="Folder or Hub id; default: the embedded model's.")] = None,
    class_names: Annotated[
        str | None, typer.Option(help="JSON list of names, or object of lists (the longest); default: made up.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the JSON files.")] = ROOT / "docs/results/benchmarks",
    again: Annotated[bool, typer.Option(help="Measure cells that are there already, too.")] = False,
    quickly: Annotated[
        bool, typer.Option("--quick", help="Tiny shapes and few cells: does it run and agree?")
    ] = False,
    max_seconds: Annotated[float, typer.Option(help="Longest run of a side; longer ones are estimated.")] = 60,
    max_gigabytes: Annotated[float, typer.Option(help="Most memory of a process; more is estimated.")] = 12,
    budget: Annotated[float, typer.Option(help="Seconds for the repeats of a cell.")] = 20,
    repeats: Annotated[int, typer.Option(help="Fewest repeats of a cell.")] = 3,
):
    """Time our path against the plain path and write one JSON file per experiment."""
    if clock not in CLOCKS:
        raise typer.BadParameter(f"Expected a clock among {', '.join(CLOCKS)}. Received: {clock}.")
    if unknown := set(experiment or ()) - EXPERIMENTS.keys():
        raise typer.BadParameter(f"Expected experiments among {', '.join(EXPERIMENTS)}. Received: {sorted(unknown)}.")
    console = Console()
    inputs = Inputs("tiny" if quickly else "ViT-B/16", tokenizer, class_names, device, dtype, threads, clock)
    limits = Limits(max_seconds, int(max_gigabytes * 1e9), 0 if quickly else budget, repeats)
    torch.set_num_threads(threads)  # so that the results name the number; each measurement sets it for itself
    runner = Runner(inputs, limits, isolated=not quickly)
    failures = []
    for name in experiment or EXPERIMENTS:
        chosen = quick(EXPERIMENTS[name]) if quickly else EXPERIMENTS[name]
        results = Results(chosen, inputs, output)
        wanted = Experiment(
            name, chosen.title, tuple(case for case in chosen.cases if fnmatch(case.key, only)), chosen.bars
        )
        with Progress(console=console, transient=True) as progress:
            run_experiment(wanted, runner, results, again, progress)
        console.print(table(results))
        for bar in json.loads(results.path.read_text(encoding="utf-8"))["bars"] if results.path.is_file() else []:
            mark = {True: "[green]reached", False: "[red]missed", None: "not measured"}[bar["passed"]]
            console.print(
                f"{mark}[/]: {bar['text']} ({show(bar['value'], '.3g')})" if bar["passed"] is not None else mark
            )
        failures += results.disagreements
    if failures:
        console.print(f"[red]Ours and plain differ by more than the tolerance in {', '.join(failures)}.")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
