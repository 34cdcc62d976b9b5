"""The cells of a bench as they lie in its folder: read with what a report relies on checked, and asked by what they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from ...peft_models.adapter_files import PREVIOUS
from ...tuners.base.registry import METHODS
from ...utils.hub import split_revision
from ...utils.warning import warn_caller
from ..identity import IDENTITY, RESULTS, finished_report
from ..settings import parse_method
from .cell import BENCH, TESTS
from .grid import ZERO_SHOT
from .outcomes import unpack
from .protocols import PROTOCOLS, Protocol


#: Folder of the cells in that of a bench.
CELLS = "cells"

#: What a report relies on: numbers of each test set.
_NUMBERS = ("images", "classes", "accuracy", "per_class", "chance")

#: Names of the fine-tuning baselines.
_BASELINES = {name for name, spec in METHODS.items() if spec.is_baseline}


class Group(NamedTuple):
    """What is one row of a table: the cells of all seeds.

    Attributes:
        protocol: name of the protocol.
        task: name of the task that was trained on.
        method: as it was asked for.
        shots: images per class; None where nothing was trained.
    """

    protocol: str
    task: str
    method: str
    shots: int | None


@dataclass(frozen=True)
class BenchResults:
    """Reports of cells, by group and seed.

    Attributes:
        cells: reports of `run_cell` by seed, in the order of the seeds, by group; without those that diverged.
        diverged: seeds of those, by group.
    """

    cells: Mapping[Group, Mapping[int, dict]]
    diverged: Mapping[Group, list[int]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path) -> BenchResults:
        """Read the cells in the folder of a bench; one that is damaged is told and left out.

        Raises:
            FileNotFoundError: there is no such folder, or no cell in it.
        """
        reports = [report for place in _places(folder) if (report := _read(place)) is not None]
        if not reports:
            raise FileNotFoundError(
                f"Expected the folder of a bench, with results in {CELLS}/. Received: {str(folder)!r} without any. Make them "
                f"with `vprompt bench`."
            )
        return cls.of(reports)

    @classmethod
    def of(cls, reports: Iterable[dict]) -> BenchResults:
        """Return reports of cells by group and seed."""
        found: dict[Group, dict[int, dict]] = {}
        diverged: dict[Group, list[int]] = {}
        for report in reports:
            about, settings = report[BENCH], report["settings"]
            shots = settings["shots"] if _trains(about["method"]) else None
            group = Group(about["protocol"], about["task"], about["method"], shots)
            if report[TESTS]:
                found.setdefault(group, {})[settings["seed"]] = report
            else:
                diverged.setdefault(group, []).append(settings["seed"])
        return cls({group: dict(sorted(found[group].items())) for group in sorted(found, key=_order)}, diverged)

    def protocols(self) -> list[Protocol]:
        """Return the protocols that there are cells of."""
        names = {group.protocol for group in self.cells}
        return [protocol for name, protocol in PROTOCOLS.items() if name in names]

    def of_protocol(self, protocol: Protocol) -> BenchResults:
        """Return the cells of a protocol alone."""
        cells = {group: by for group, by in self.cells.items() if group.protocol == protocol.name}
        return BenchResults(
            cells, {group: seeds for group, seeds in self.diverged.items() if group.protocol == protocol.name}
        )

    def tasks(self) -> dict[str, str]:
        """Return the titles of the tasks that were trained on, by name."""
        return {group.task: first(by)[BENCH]["title"] for group, by in self.cells.items()}

    def methods(self) -> list[str]:
        """Return the methods that were trained, as they were asked for."""
        return list(dict.fromkeys(group.method for group in self.cells if group.shots is not None))

    def untrained(self) -> list[str]:
        """Return the methods that train nothing, zero-shot among them."""
        return list(dict.fromkeys(group.method for group in self.cells if group.shots is None))

    def shots(self) -> list[int]:
        """Return the numbers of shots, in order."""
        return sorted({group.shots for group in self.cells if group.shots is not None})

    def tests(self, task: str) -> dict[str, str]:
        """Return the titles of the test sets of a task, by name."""
        found = [by for group, by in self.cells.items() if group.task == task]
        return {name: test["title"] for by in found for name, test in first(by)[TESTS].items()}

    def seeds(self, task: str, method: str, shots: int | None) -> Mapping[int, dict]:
        """Return the reports of a method by seed; none where it was not run. What trains nothing has one for all shots."""
        names = [group for group in self.cells if (group.task, group.method) == (task, method)]
        fitting = [group for group in names if group.shots in (shots, None)]
        return self.cells[fitting[0]] if fitting else {}

    def values(
        self, task: str, method: str, shots: int | None, test: str, measure: str = "accuracy"
    ) -> dict[int, float]:
        """Return a number of a test set by seed; none where it was not measured."""
        reports = self.seeds(task, method, shots).items()
        return {seed: report[TESTS][test][measure] for seed, report in reports if test in report[TESTS]}

    def correct(self, task: str, method: str, shots: int | None, test: str) -> dict[int, NDArray]:
        """Return which images of a test set are right, bool [images], by seed."""
        return {
            seed: unpack(report[TESTS][test]["correct"], report[TESTS][test]["images"])
            for seed, report in self.seeds(task, method, shots).items()
            if test in report[TESTS]
        }

    def content(self, task: str, test: str) -> set[str]:
        """Return the digests of the images of a test set: several where cells were tested on others."""
        found = [report for group, by in self.cells.items() if group.task == task for report in by.values()]
        return {report[TESTS][test]["content"] for report in found if test in report[TESTS]}

    def base_models(self, baselines: bool) -> dict[str, str]:
        """Return the base models of cells, names by content: of baselines, which take a dual encoder's images alone, or others."""
        found = [report for by in self.cells.values() for report in by.values()]
        found = [each for each in found if (each["settings"]["method"] in _BASELINES) is baselines]
        contents = [(report.get(IDENTITY) or {}).get("base model") for report in found]
        return {
            content: _name_of(report["settings"].get("model"))
            for content, report in zip(contents, found, strict=True)
            if content is not None
        }

    def chance(self, task: str, test: str) -> float:
        """Return the accuracy of guessing on a test set, in percent."""
        found = [by for group, by in self.cells.items() if group.task == task and test in first(by)[TESTS]]
        return first(found[0])[TESTS][test]["chance"]

    def each(self, method: str, shots: int | None, read: Callable[[dict], Any]) -> list:
        """Return what every cell of a method with some shots says, where it says something."""
        found = [by for group, by in self.cells.items() if group.method == method and group.shots in (shots, None)]
        values = [read(report) for by in found for report in by.values()]
        return [value for value in values if value is not None]


def require_base_model(folder: str | Path, model: str | None) -> None:
    """Refuse a folder with cells of another base model, by its name, before any is run: one report is of one model.

    Raises:
        ValueError: names both.
    """
    for place in _places(folder):
        report = finished_report(place)
        if report is None or not _is_cell(report):
            continue  # it is run again
        other = report["settings"].get("model")
        if _name_of(other) != _name_of(model):
            raise ValueError(
                f"Expected a folder for each base model. Received: {str(folder)!r}, with results of {_name_of(other)}, for "
                f"{_name_of(model)}. Take another --output."
            )


def title_of(method: str) -> str:
    """Return a method's title, with what was changed of it."""
    name, changes = parse_method(method)
    changed = "".join(f", {key}={value}" for key, value in changes.items())
    return (METHODS[name].title if name in METHODS else name) + changed


def first(by_seed: Mapping[int, dict]) -> dict:
    """Return the report of the first seed."""
    return next(iter(by_seed.values()))


def common_seeds(tables: Sequence[Mapping[int, Any]]) -> list[int]:
    """Return the seeds that all have."""
    return [seed for seed in tables[0] if all(seed in table for table in tables)]


def _order(group: Group) -> tuple:
    """Tasks and shots in order, zero-shot before all that learns; methods by title."""
    is_trained = group.shots is not None
    return group.protocol, group.task, is_trained, group.shots or 0, group.method != ZERO_SHOT, title_of(group.method)


def _trains(method: str) -> bool:
    spec = METHODS.get(parse_method(method)[0])
    return spec is None or spec.trains


def _name_of(model: str | None) -> str:
    return "the embedded model" if model is None else Path(split_revision(model)[0]).name


def _places(folder: str | Path) -> list[Path]:
    """Return where the cells of a bench lie; not those of which a new run took the place."""
    places = sorted(path.parent for path in Path(folder, CELLS).rglob(RESULTS))
    return [place for place in places if place.parent.name != PREVIOUS or not (place.parents[1] / RESULTS).is_file()]


def _read(place: Path) -> dict | None:
    """Return the report of a cell; None, with a warning, of a file that is none."""
    report = finished_report(place)
    if report is None or not _is_cell(report):
        warn_caller(f"{str(place / RESULTS)!r} is no result of a bench. It is left out: run `vprompt bench` again.")
        return None
    return report


def _is_cell(report: dict) -> bool:
    about, tests, settings = report.get(BENCH), report.get(TESTS), report.get("settings")
    if not isinstance(about, dict) or not isinstance(tests, dict) or not isinstance(settings, dict):
        return False
    if not all(isinstance(about.get(name), str) for name in ("protocol", "task", "title", "method")):
        return False
    if about["protocol"] not in PROTOCOLS or not isinstance(settings.get("seed"), int):
        return False
    measured = bool(tests) and all(map(_is_test, tests.values()))
    return isinstance(settings.get("shots"), int) and (measured or "diverged" in report)


def _is_test(test: Any) -> bool:
    return (
        isinstance(test, dict)
        and all(isinstance(test.get(name), str) for name in ("correct", "content", "title"))
        and all(isinstance(test.get(name), (int, float)) for name in _NUMBERS)
    )
