"""The tables of a report, from the summary of a bench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..reports import WORSE, is_worse
from .document import Table
from .grid import ZERO_SHOT
from .summary import ALL_CLASSES, MEAN, TARGETS


#: Headings of test sets that are not tasks.
HEADINGS = {"base": "Base", "novel": "Novel", ALL_CLASSES: "All classes", TARGETS: "Mean of targets"}

#: The two conventions of the harmonic mean, as every table names them.
OF_AVERAGES, MEAN_OF_EACH = "HM of averages", "Mean of HMs"

DASH = "–"


def accuracy_tables(part: Mapping, measure: str = "accuracy", whole: bool = True) -> list[Table]:
    """Return the tables of a protocol: one for each task and number of shots, or, of a few-shot curve, one for each task.

    Args:
        part: what the summary says of the protocol.
        measure: "accuracy", over all images alike, or "per_class", the mean over classes.
        whole: also those of single tasks, where there is one of the average.
    """
    scopes = scopes_of(part)
    scopes = scopes if whole or MEAN not in scopes else [MEAN]
    if part["protocol"] == "few-shot":
        return [_by_shots(part, scope, measure) for scope in scopes]
    lengths = part["shots"] or [None]
    return [_by_test(part, scope, shots, measure) for shots in lengths for scope in scopes]


def scopes_of(part: Mapping) -> list[str]:
    """Return what there are rows of, the average over tasks first."""
    return sorted(dict.fromkeys(row["scope"] for row in part["rows"]), key=lambda scope: scope != MEAN)


def _by_test(part: Mapping, scope: str, shots: int | None, measure: str) -> Table:
    """Return a table with a column for each test set, and the harmonic means, of what was trained with some shots."""
    rows = _rows(part, scope, shots)
    tests = list(dict.fromkeys(test for row in rows for test in row[measure]))
    plain = next((row for row in rows if row["method"] == ZERO_SHOT), None)
    has_hm = "novel" in tests
    shown = measure == "accuracy" and any(row["published"] for row in rows)
    columns = ["Method", *(_heading(part, test) for test in tests)]
    columns += [OF_AVERAGES, MEAN_OF_EACH] if has_hm and measure == "accuracy" else []
    columns += ["Published", "Source"] if shown else []
    lines = [["Chance", *(_number(part["chance"][scope].get(test)) for test in tests)]]
    if has_hm and measure == "accuracy":
        lines[0] += [_number(part["chance"][scope]["hm"]), DASH]
    lines[0] += [DASH, DASH] if shown else []
    for row in rows:
        line = [row["title"]]
        line += [_cell(row[measure].get(test), plain and plain[measure].get(test)) for test in tests]
        line += _harmonic(row, plain) if has_hm and measure == "accuracy" else []
        line += _published(row, tests) if shown else []
        lines.append(line)
    return Table(columns, lines, _title(part, scope, shots), texts=("Source",))


def _by_shots(part: Mapping, scope: str, measure: str) -> Table:
    """Return a table with a column for each number of shots."""
    lengths = part["shots"]
    plain = next((row for row in part["rows"] if row["scope"] == scope and row["method"] == ZERO_SHOT), None)
    chance = _number(part["chance"][scope][ALL_CLASSES])
    lines = [["Chance", *[chance] * len(lengths)]]
    by_method: dict[str, dict[int | None, Mapping]] = {}
    for row in part["rows"]:
        if row["scope"] == scope:
            by_method.setdefault(row["title"], {})[row["shots"]] = row
    for title, rows in by_method.items():
        found = [rows.get(shots) or rows.get(None) for shots in lengths]
        lines.append(
            [
                title,
                *(_cell(row and row[measure][ALL_CLASSES], plain and plain[measure][ALL_CLASSES]) for row in found),
            ]
        )
    return Table(["Method", *(_shots(shots) for shots in lengths)], lines, _title(part, scope, None))


def difference_table(part: Mapping) -> Table | None:
    """Return the intervals of the differences between methods, of the average where there are several tasks; None of none."""
    rows = [row for row in part["differences"] if row["scope"] == MEAN] or part["differences"]
    if not rows:
        return None
    titles = {row["method"]: row["title"] for row in part["rows"]}
    several = len({row["scope"] for row in rows}) > 1
    columns = ["Method", "against", *(["Task"] if several else []), "Shots", "Test set", "Difference", "95 % interval"]
    lines = [
        [
            titles[row["method"]],
            titles[row["against"]],
            *([scope_title(part, row["scope"])] if several else []),
            str(row["shots"] or DASH),
            OF_AVERAGES if row["what"] == "hm" else _heading(part, row["what"]),
            f"{row['difference']:+.1f}",
            f"{row['low']:+.1f} to {row['high']:+.1f}" + ("" if row["low"] > 0 or row["high"] < 0 else " (holds 0)"),
        ]
        for row in rows
    ]
    return Table(columns, lines, texts=("against", "Task", "Test set", "95 % interval"))


def cost_table(part: Mapping) -> Table | None:
    """Return sizes, times and memory of the methods; None where nothing was trained."""
    if not part["costs"]:
        return None
    lines = [
        [
            row["title"],
            str(row["shots"]),
            _count(row["trainable_parameters"]),
            _size(row["adapter_bytes"]),
            _count(row["steps"]),
            _number(row["train_seconds"]),
            _number(row["evaluate_seconds"]),
            _size(row["process_bytes"]),
            _size(row["device_bytes"]),
        ]
        for row in part["costs"]
    ]
    columns = ["Method", "Shots", "Trained", "Adapter", "Steps", "Training, s", "Testing, s", "Memory", "GPU memory"]
    return Table(columns, lines)


def _rows(part: Mapping, scope: str, shots: int | None) -> list[Mapping]:
    """Return the rows of a scope: what trains nothing first, then by `headline`; what has no harmonic mean comes last."""
    found = [row for row in part["rows"] if row["scope"] == scope and row["shots"] in (shots, None)]
    has_hm = any("hm" in row for row in found)
    order = lambda row: (row["shots"] is not None, has_hm and "hm" not in row, -headline(row), row["title"])  # noqa: E731
    return sorted(found, key=order)


def headline(row: Mapping) -> float:
    """Return the one number by which methods are ordered: the harmonic mean of averages, the mean of targets, or the accuracy."""
    if "hm" in row:
        return row["hm"]["of_averages"]
    accuracy = row["accuracy"]
    return (accuracy.get(TARGETS) or accuracy.get(ALL_CLASSES) or accuracy["base"])["mean"]


def _heading(part: Mapping, test: str) -> str:
    if test == ALL_CLASSES and any(TARGETS in row["accuracy"] for row in part["rows"]):
        return f"{next(iter(part['tasks'].values()))} (source)"
    titles = {name: title for tests in part["tests"].values() for name, title in tests.items()}
    return HEADINGS.get(test) or titles.get(test, test)


def scope_title(part: Mapping, scope: str) -> str:
    """Return a task, or the average over tasks, as headings name it."""
    return f"Mean of {len(part['tasks'])} tasks" if scope == MEAN else part["tasks"][scope]


def _title(part: Mapping, scope: str, shots: int | None) -> str:
    return scope_title(part, scope) + (f", {_shots(shots)}" if shots is not None else "")


def _shots(count: int) -> str:
    return f"{count} shot{'s' if count > 1 else ''}"


def _cell(found: Mapping | None, plain: Mapping | None) -> str:
    """Return mean and standard deviation as text, marked where the mean is below zero-shot's."""
    if not found:
        return DASH
    spread = "" if found["std"] is None else f" ± {found['std']:.1f}"
    worse = is_worse(found["mean"], plain["mean"] if plain else None)
    return f"{found['mean']:.1f}{spread}" + (f" {WORSE}" if worse else "")


def _harmonic(row: Mapping, plain: Mapping | None) -> list[str]:
    if "hm" not in row:
        return [DASH, DASH]
    found, other = row["hm"], (plain or {}).get("hm")
    averages = {"mean": found["of_averages"], "std": found["std"]}
    each = {"mean": found["mean_of_each"], "std": None}
    return [
        _cell(averages, {"mean": other["of_averages"]} if other else None),
        _cell(each, {"mean": other["mean_of_each"]} if other else None),
    ]


def _published(row: Mapping, tests: Sequence[str]) -> list[str]:
    """Return published accuracies in the order of the columns, and where they are from."""
    if not row["published"]:
        return [DASH, DASH]
    values = row["published"]["values"]
    names = [*tests, *(["hm"] if "hm" in values else [])]
    shown = [f"{values[name]:.2f}" for name in names if name in values]
    return [" / ".join(shown), row["published"]["source"]]


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.1f}"


def _count(value: float | None) -> str:
    return DASH if value is None else f"{value:,.0f}"


def _size(value: float | None) -> str:
    if value is None:
        return DASH
    units = {"KB": 2**10, "MB": 2**20, "GB": 2**30}
    unit = next((unit for unit in reversed(units) if value >= units[unit]), "KB")
    return f"{value / units[unit]:,.0f} {unit}" if unit == "KB" else f"{value / units[unit]:.1f} {unit}"
