"""The tasks of a bench: embedded ones, those of a published benchmark, or a user's own images. Read when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from ... import demo
from ...data import TASKS, DataOptions, find_task, find_tasks, load_images, load_split
from ...data.folders import split_name
from ...data.options import describe
from ...utils.validation import shorten
from ..eval_sets import require_test_images
from ..identity import Contents
from ..templates import published_template
from .protocols import Protocol


#: Source of cross-data-set transfer and of domain generalisation in the papers.
SOURCE = "coop-11/imagenet"

#: What no target can be called: tables have other columns of these names.
RESERVED = ("all", "base", "novel", "hm", "mean", "targets")


@dataclass(frozen=True)
class BenchTask:
    """Images to train on and to test on.

    Attributes:
        name: in folders, such as `caltech101`.
        title: in tables.
        options: where the images are; None for an embedded task, which has that name.
    """

    name: str
    title: str
    options: DataOptions | None = None

    @property
    def benchmark(self) -> str | None:
        """Full name of the published task, whose preprocessing, template and draws are followed."""
        return self.options.benchmark if self.options else None

    @property
    def template(self) -> str | None:
        """Text that the papers put class names into; None where none is published."""
        return published_template(self.benchmark)

    @property
    def description(self) -> dict | None:
        """Where the images are, as results say it; None for an embedded task."""
        return describe(self.options) if self.options else None

    @cached_property
    def data(self) -> DatasetDict:
        """The images to train on and those to test on.

        Raises:
            FileNotFoundError, ValueError: as `load_images`; also where there are no test images.
        """
        if self.options is None:
            splits: Any = ("train", "test")
            return DatasetDict({split: demo.demo_task(split, self.name) for split in splits})
        images = load_images(self.options)
        require_test_images(images, "A bench")
        return images

    def contents(self, cached: bool) -> Contents:
        """Return the digests of the images, made once for all cells.

        Args:
            cached: whether every training image is augmented once.
        """
        if cached not in self._contents:
            self._contents[cached] = Contents(self.data, self.description, cached)
        return self._contents[cached]

    @cached_property
    def _contents(self) -> dict[bool, Contents]:
        return {}

    @cached_property
    def test(self) -> Dataset:
        """The images to test on, of a target that is not trained on.

        Raises:
            FileNotFoundError, ValueError: as `load_split`.
        """
        return demo.demo_task("test", self.name) if self.options is None else load_split(self.options)

    @cached_property
    def test_content(self) -> dict:
        """Digests of the images to test on and of their labels."""
        return Contents(DatasetDict(test=self.test), self.description).of_split("test")


def find_bench_tasks(
    protocol: Protocol,
    data: DataOptions | None = None,
    names: Sequence[str] = (),
    source: str | None = None,
    targets: Sequence[str] = (),
) -> tuple[list[BenchTask], list[BenchTask]]:
    """Return the tasks to train on, and the targets to test on beside them, of which only transfers have some.

    Args:
        protocol: what is done with them.
        data: where the images are, of a whole benchmark or one of its tasks too; None for the embedded tasks.
        names: tasks to take, by their short names; default: all of the benchmark. Of a transfer these are targets.
        source: task to train on in a transfer; default: ImageNet, the first embedded task, or the user's images.
        targets: folders or files of other images, read as `data` are, or published tasks by full name.

    Raises:
        ValueError: an unknown task, names where there is one task alone, or a transfer without targets.
    """
    _check_roles(protocol, source, targets)
    if data is None:
        known = [BenchTask(name, task.title) for name, task in demo.DEMO_TASKS.items()]
    elif data.benchmark is not None:
        known = [_published(task.full_name, data) for task in find_tasks(data.benchmark)]
    else:
        known = [BenchTask(Path(data.path.rstrip("/")).stem or "images", "Own images", data)]
    if not protocol.transfers:
        return _chosen([task for task in known if not _is_shift(task)], names), []
    first = _source(source, data, known)
    others = [_target(place, data) for place in targets]
    _require_distinct([first, *others])
    possible = others or [task for task in known if task.name != first.name and _fits(task, first, protocol)]
    chosen = _chosen(possible, names)
    if not chosen:
        raise ValueError(
            f"Expected targets for {protocol.name}. Received none beside {first.name!r}. Name some by --targets, or a whole "
            "benchmark by --benchmark."
        )
    return [first], chosen


def _check_roles(protocol: Protocol, source: str | None, targets: Sequence[str]) -> None:
    given = ["--source"] * (source is not None) + ["--targets"] * bool(targets)
    if given and not protocol.transfers:
        raise ValueError(
            f"{protocol.title} trains and tests on the same tasks. Received: {' and '.join(given)}. Leave it out, or take the "
            "protocol cross-dataset or domain-generalization."
        )


def _target(place: str, data: DataOptions | None) -> BenchTask:
    """Return a target that was named: a published task, or images of one's own."""
    if data is None:
        return _chosen([BenchTask(name, task.title) for name, task in demo.DEMO_TASKS.items()], [place])[0]
    if place in TASKS:
        return _published(place, data)
    name = _name_of(place)
    return BenchTask(name, name, replace(data, path=place, benchmark=None))


def _name_of(place: str) -> str:
    """Return what a folder or file is called; where that is a split's name, with the folder it is in."""
    path = Path(place.rstrip("/"))
    name = path.name if path.is_dir() else path.stem
    return f"{path.parent.name}-{name}" if split_name(name) and path.parent.name else name


def _require_distinct(tasks: Sequence[BenchTask]) -> None:
    """Refuse targets that tables could not tell apart.

    Raises:
        ValueError: names them.
    """
    names = [task.name for task in tasks]
    taken = [name for name in names[1:] if names.count(name) > 1 or name in RESERVED]
    if taken:
        places = [task.options.path for task in tasks if task.name == taken[0] and task.options]
        raise ValueError(
            f"Expected a source and targets of different names, none of them {', '.join(RESERVED)}. Received {taken[0]!r} "
            f"for {' and '.join(dict.fromkeys(places)) or 'several'}. Rename the folders or files."
        )


def _published(full_name: str, data: DataOptions) -> BenchTask:
    task = find_task(full_name)
    return BenchTask(task.name, task.title, replace(data, benchmark=task.full_name))


def _source(source: str | None, data: DataOptions | None, known: list[BenchTask]) -> BenchTask:
    """Return the task that a transfer trains on.

    Raises:
        ValueError: an unknown task.
    """
    if data is None:
        return _chosen(known, [source])[0] if source else known[0]
    if data.benchmark is None:
        if source is not None:
            raise ValueError(
                f"Of your own images those of --data are trained on. Received: --source {source}. Leave it out."
            )
        return known[0]
    return _published(source or SOURCE, data)


def _is_shift(task: BenchTask) -> bool:
    """Tell whether an embedded task is another one seen otherwise, or a published one has nothing to train on."""
    if task.options is None:
        return demo.DEMO_TASKS[task.name].shift_of is not None
    return (task.benchmark or "").startswith("imagenet-shifts/")


def _fits(task: BenchTask, source: BenchTask, protocol: Protocol) -> bool:
    """Tell whether a task is a target of the source: of other classes, or of the same ones seen otherwise."""
    if task.options is None:
        is_same = demo.DEMO_TASKS[task.name].shift_of == source.name
        return not _is_shift(task) if protocol.new_classes else is_same
    return _is_shift(task) is not protocol.new_classes


def _chosen(tasks: list[BenchTask], names: Sequence[str]) -> list[BenchTask]:
    """Return the tasks of these names, in that order; without names all.

    Raises:
        ValueError: there is none of a name.
    """
    by_name = {task.name: task for task in tasks} | {task.benchmark: task for task in tasks if task.benchmark}
    if unknown := [name for name in names if name not in by_name]:
        raise ValueError(
            f"Expected tasks among: {shorten([task.name for task in tasks], 20)}. Received: {shorten(unknown)}."
        )
    return [by_name[name] for name in names] or tasks
