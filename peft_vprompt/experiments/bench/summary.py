"""What a bench says, as plain data: means and spreads over seeds, harmonic means, costs, and intervals of differences."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...utils.digests import digest_json
from ...utils.validation import shorten
from ..settings import as_json, changed_settings
from .cell import BENCH
from .grid import ZERO_SHOT, require_method
from .protocols import Protocol
from .published import SEEDS, TASKS, published
from .results import BenchResults, common_seeds, first, title_of
from .statistics import Measure, harmonic, harmonic_means, harmonic_of, mean_of_all, paired_bootstrap, spread


#: Name of the average over all tasks, and over all targets of a transfer.
MEAN, TARGETS = "mean", "targets"

#: Name of the test set of all classes of a task; of a transfer, of the source's.
ALL_CLASSES = "all"

#: Stands for the one seed of what no seed changes.
_ANY_SEED = -1


def summarise(results: BenchResults, against: str | None = None) -> dict:
    """Return what the cells of a bench say, as JSON has it.

    Args:
        results: the cells.
        against: the method that others are compared with, beside zero-shot, as it was asked for; default: the first one.

    Raises:
        ValueError: `against` was not run, or cells are of several base models.
    """
    require_method(against, [*results.untrained(), *results.methods()])
    if len(models := max(map(results.base_models, (False, True)), key=len)) > 1:
        raise ValueError(
            f"Expected cells of one base model, to be compared. Received those of {len(models)}: "
            f"{', '.join(sorted(models.values()))}. Take a folder for each, or remove the cells of the other one."
        )
    parts = [_summarise(results.of_protocol(protocol), protocol, against) for protocol in results.protocols()]
    found = [report.get("environment") for by in results.cells.values() for report in by.values()]
    environments = {digest_json(each): each for each in found if each}
    return as_json({"protocols": parts, "environments": list(environments.values())})


def _summarise(results: BenchResults, protocol: Protocol, against: str | None) -> dict:
    tasks = list(results.tasks())
    scopes = {name: [name] for name in tasks} | ({MEAN: tasks} if len(tasks) > 1 else {})
    lengths: list[int | None] = [*results.shots()]
    cells = [(method, None) for method in results.untrained()]
    cells += [(method, shots) for shots in lengths for method in results.methods()]
    rows = [
        row
        for scope, names in scopes.items()
        for method, shots in cells
        if (row := _row(results, scope, names, method, shots)) is not None
    ]
    return {
        "protocol": protocol.name,
        "title": protocol.title,
        "about": protocol.about,
        "tasks": results.tasks(),
        "tests": {task: results.tests(task) for task in tasks},
        "shots": lengths,
        "chance": {scope: _chance(results, names) for scope, names in scopes.items()},
        "rows": rows,
        "costs": [_cost(results, method, shots) for method, shots in cells if shots is not None],
        "differences": _differences(results, scopes, lengths or [None], against),
        "notes": _notes(results),
    }


# ---- accuracies -----------------------------------------------------------------------------------------------------


def _row(results: BenchResults, scope: str, tasks: list[str], method: str, shots: int | None) -> dict | None:
    """Return the accuracies of a method in a scope; None where it was not run on all of its tasks."""
    tests = [test for test in results.tests(tasks[0]) if _has(results, tasks, method, shots, test)]
    if not tests:
        return None
    tables = {test: _table(results, tasks, method, shots, test) for test in tests}
    classes = {test: _table(results, tasks, method, shots, test, "per_class") for test in tests}
    row = {
        "scope": scope,
        "method": method,
        "title": title_of(method),
        "shots": shots,
        "seeds": next(iter(tables.values())).shape[1],
        "accuracy": {test: _spread(table) for test, table in tables.items()},
        "per_class": {test: _spread(table) for test, table in classes.items()},
    }
    if {"base", "novel"} <= tables.keys():
        base, novel = tables["base"], tables["novel"]
        found = harmonic_means(base, novel)
        row["hm"] = found._asdict() | {"std": spread(harmonic(base.mean(0), novel.mean(0))).std}
    if targets := _targets(tests):
        row["accuracy"][TARGETS] = _spread(np.mean([tables[test] for test in targets], axis=0))
        row["per_class"][TARGETS] = _spread(np.mean([classes[test] for test in targets], axis=0))
    report = first(results.seeds(tasks[0], method, shots))
    row["published"] = _published(report, scope, tasks, row["seeds"])
    return row


def _targets(tests: Sequence[str]) -> list[str]:
    """Return those of the test sets that are of other tasks than the one that was trained on."""
    return [test for test in tests if test not in (ALL_CLASSES, "base", "novel")]


def _has(results: BenchResults, tasks: list[str], method: str, shots: int | None, test: str) -> bool:
    tables = [results.values(task, method, shots, test) for task in tasks]
    return all(tables) and bool(common_seeds(tables))


def _table(
    results: BenchResults, tasks: list[str], method: str, shots: int | None, test: str, measure: str = "accuracy"
) -> NDArray:
    """Return a number of a test set, float [tasks, seeds], of the seeds that all tasks have."""
    by_seed = [results.values(task, method, shots, test, measure) for task in tasks]
    seeds = common_seeds(by_seed)
    return np.array([[table[seed] for seed in seeds] for table in by_seed])


def _spread(table: NDArray) -> dict:
    """Return mean and standard deviation over seeds of the means over tasks."""
    found = spread(table.mean(0))
    return {"mean": found.mean, "std": found.std}


def _chance(results: BenchResults, tasks: list[str]) -> dict[str, float]:
    """Return the accuracies of guessing by test set, means over tasks, with `hm` or `targets`."""
    tests = [test for test in results.tests(tasks[0]) if all(test in results.tests(task) for task in tasks)]
    values = {test: np.array([results.chance(task, test) for task in tasks]) for test in tests}
    means = {test: float(table.mean()) for test, table in values.items()}
    if {"base", "novel"} <= values.keys():
        means["hm"] = harmonic_means(values["base"], values["novel"]).of_averages
    if targets := _targets(tests):
        means[TARGETS] = statistics.mean(means[test] for test in targets)
    return means


def _published(report: dict, scope: str, tasks: list[str], seeds: int) -> dict | None:
    """Return what is published for the same setting and scope; None where there is nothing."""
    found = published(report)
    if found is None or (seeds != SEEDS and report["settings"]["method"] != ZERO_SHOT):
        return None
    if "base" not in report["tests"]:  # a transfer: one source, and targets
        # Not those of a folder of one's own that has a data set's name.
        tests = [test for test, result in report["tests"].items() if result.get("benchmark")]
        values = {test: found.values[test] for test in tests if test in found.values}
        whole = len(found.values) == len(tests) + 1
        return {"source": found.source, "values": values | ({TARGETS: found.values["mean"]} if whole else {})}
    key = "mean" if scope == MEAN else scope
    whole = scope != MEAN or len(tasks) == TASKS
    return {"source": found.source, "values": found.values[key]} if key in found.values and whole else None


# ---- costs ----------------------------------------------------------------------------------------------------------


def _cost(results: BenchResults, method: str, shots: int | None) -> dict:
    """Return sizes, and the medians of times and memory over tasks and seeds."""

    def median(*path: str):
        found = results.each(method, shots, lambda report: _at(report, path))
        return statistics.median(found) if found else None

    return {
        "method": method,
        "title": title_of(method),
        "shots": shots,
        "trainable_parameters": median("trainable_parameters"),
        "adapter_bytes": median("adapter_bytes"),
        "steps": median("steps"),
        "train_seconds": median("train_seconds"),
        "evaluate_seconds": median("evaluate_seconds"),
        "process_bytes": median("peak_memory", "process_bytes"),
        "device_bytes": median("peak_memory", "device_bytes"),
    }


def _at(report: dict, path: Sequence[str]):
    value = report
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


# ---- differences ----------------------------------------------------------------------------------------------------


def _differences(
    results: BenchResults, scopes: dict, lengths: Sequence[int | None], against: str | None
) -> list[dict]:
    """Return intervals of every method against zero-shot, and against another method."""
    methods = results.methods()
    reference = against or (methods[0] if methods else None)
    found = []
    for scope, tasks in scopes.items():
        if any(len(results.content(task, test)) > 1 for task in tasks for test in results.tests(task)):
            continue
        for shots in lengths:
            for other in dict.fromkeys(filter(None, (ZERO_SHOT, reference))):
                for method in methods:
                    if method != other:
                        found += intervals(results, scope, tasks, (method, other), shots)
    return found


def intervals(
    results: BenchResults, scope: str, tasks: list[str], pair: tuple[str, str], shots: int | None
) -> list[dict]:
    """Return the intervals of one method against another: of each test set, their harmonic mean, or all targets."""
    tests = [test for test in results.tests(tasks[0]) if all(_has(results, tasks, each, shots, test) for each in pair)]
    sides = [_right(results, tasks, each, shots, tests) for each in pair]
    seeds = _seeds_of_both(sides)
    if not tests or not seeds:
        return []
    first_side, second_side = (
        {key: np.stack([by[seed if seed in by else _ANY_SEED] for seed in seeds]) for key, by in side.items()}
        for side in sides
    )
    wanted: dict[str, tuple[Measure, list[tuple[str, str]]]]
    wanted = {test: (mean_of_all, [(task, test) for task in tasks]) for test in tests}
    if {"base", "novel"} <= set(tests):
        pairs = [(f"{task}/base", f"{task}/novel") for task in tasks]
        wanted["hm"] = harmonic_of(pairs), [(task, test) for task in tasks for test in ("base", "novel")]
    if len(targets := _targets(tests)) > 1:
        wanted[TARGETS] = mean_of_all, [(task, test) for task in tasks for test in targets]
    rows = []
    for what, (measure, places) in wanted.items():
        keys = [f"{task}/{test}" for task, test in places]
        interval = paired_bootstrap(
            {key: first_side[key] for key in keys}, {key: second_side[key] for key in keys}, measure
        )
        about = {"scope": scope, "shots": shots, "method": pair[0], "against": pair[1], "what": what}
        rows.append(about | interval._asdict() | {"seeds": len(seeds)})
    return rows


def _right(
    results: BenchResults, tasks: list[str], method: str, shots: int | None, tests: list[str]
) -> dict[str, dict[int, NDArray]]:
    """Return which images are right by seed, by task and test set; what no seed changes has `_ANY_SEED`."""
    fixed = method in results.untrained()
    found = {f"{task}/{test}": results.correct(task, method, shots, test) for task in tasks for test in tests}
    return {key: {_ANY_SEED: next(iter(by.values()))} if fixed else by for key, by in found.items()}


def _seeds_of_both(sides: list[dict[str, dict[int, NDArray]]]) -> list[int]:
    """Return the seeds that both methods have everywhere, of what a seed changes; `_ANY_SEED` where that is nothing."""
    changing = [by for side in sides for by in side.values() if _ANY_SEED not in by]
    return common_seeds(changing) if changing else [_ANY_SEED]


# ---- what a reader has to know --------------------------------------------------------------------------------------


#: What all cells of a comparison should have in common, by what it is called.
_CONDITIONS: dict[str, Callable[[dict], object]] = {
    "bounds on the steps": lambda report: report[BENCH].get("max_steps"),
    "augmentation (cached)": lambda report: bool(report.get("cached")),
    "precision": lambda report: report["settings"].get("precision", "float32"),
    "image sizes": lambda report: report["settings"].get("image_size"),
}


def _unlike(results: BenchResults) -> list[str]:
    """Return what trained cells do not have in common that the names of methods do not say."""
    notes = []
    for what, read in _CONDITIONS.items():
        by_value: dict[str, dict[str, None]] = {}
        for group, by in results.cells.items():
            for report in by.values() if group.shots is not None else ():
                value = json.dumps(read(report))
                by_value.setdefault(value, {})[f"{title_of(group.method)} on {group.task}"] = None
        if len(by_value) > 1:
            said = "; ".join(f"{value} ({shorten(list(cells), 4)})" for value, cells in by_value.items())
            notes.append(f"Cells were run with unlike {what}: {said}.")
    return notes


#: Settings in which cells of one method may differ: what the table tells, and what is said of all methods together.
_TOLD = ("method", "seed", "shots", "model", "precision", "image_size")


def _unlike_recipes(results: BenchResults) -> list[str]:
    """Return where cells of one method and number of shots, whose mean is one number, were run with unlike settings."""
    notes = []
    for method, shots in itertools.product(results.methods(), results.shots()):
        cells = [
            (
                f"{first(by)[BENCH]['title']}, {group.shots} shots, seed {seed}",
                changed_settings(_as_now(report["settings"])),
            )
            for group, by in results.cells.items()
            if (group.method, group.shots) == (method, shots)
            for seed, report in by.items()
        ]
        for name in sorted({name for _, settings in cells for name in settings} - {*_TOLD}):
            by_value: dict[str, list[str]] = {}
            for where, settings in cells:
                value = json.dumps(settings[name], sort_keys=True) if name in settings else "the default"
                by_value.setdefault(value, []).append(where)
            if len(by_value) > 1:
                said = "; ".join(f"{value} ({shorten(places, 4)})" for value, places in by_value.items())
                notes.append(
                    f"{title_of(method)} was run with unlike {name}, so that its means are of no one recipe: {said}."
                )
    return notes


def _as_now(settings: dict) -> dict:
    """Return settings as they are written now: before there was a protocol among them, one view was said as such."""
    return settings | {"views": None} if "protocol" not in settings and settings.get("views") == 1 else settings


def _notes(results: BenchResults) -> list[str]:
    """Return what is not as it should be: cells that are missing, and test sets that are not the same."""
    notes = []
    seeds = {seed for group, by in results.cells.items() if group.shots is not None for seed in by}
    for group, diverged in results.diverged.items():
        which = ", ".join(map(str, sorted(diverged)))
        notes.append(f"{title_of(group.method)} diverged on {group.task}, {group.shots} shots, seeds {which}.")
    notes += [*_unlike(results), *_unlike_recipes(results)]
    for task, name in results.tasks().items():
        fewer = [
            f"{title_of(method)}, {shots} shots ({found} of {len(seeds)})"
            for shots in results.shots()
            for method in results.methods()
            if (found := len(results.seeds(task, method, shots))) < len(seeds)
        ]
        if fewer:
            notes.append(f"{name}: not all seeds were run of {'; '.join(fewer)}.")
        for test, title in results.tests(task).items():
            if len(results.content(task, test)) > 1:
                notes.append(
                    f"{title} ({test}): cells were tested on other images, so methods are not compared there."
                )
    return notes
