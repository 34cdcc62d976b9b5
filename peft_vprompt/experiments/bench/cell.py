"""One cell of a bench: a run of a method that also says which test images it gets right, of its own task and of others."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ...data import base_novel_split
from ...errors import TrainingDivergedError
from ...training.cached_features import cache_features, feature_rows
from ...training.evaluation import (
    EvalSet,
    among_own_classes,
    compares_with_text,
    fields_replaced,
    leaves_images,
    predict_logits,
    set_class_names,
    with_harmonic_mean,
)
from ...tuners.base.recipe import Recipe
from ...tuners.base.registry import get_method
from ...utils.memory import PeakMemory
from ..authors import fields_elsewhere, published_choices
from ..eval_sets import class_names_of, eval_sets, split_classes
from ..identity import Contents, finished_run, report_diverged
from ..models import as_published, recipe_on
from ..run import Run
from ..run_state import RunOptions
from ..settings import Settings
from ..settings_checks import check_settings
from .outcomes import outcome
from .protocols import Protocol
from .tasks import BenchTask


#: Entry of `results.json` by which a run is known as a cell of a bench, and that of its test sets.
BENCH, TESTS = "bench", "tests"

#: Least epochs where the length is bounded: the first is warm-up in most recipes, or nothing would be learned.
LEAST_EPOCHS = 2


@dataclass(frozen=True)
class Cell:
    """A method on a task, with some shots and a seed.

    Attributes:
        protocol: what is trained on what and tested on what.
        task: the images to train on.
        method: as it was asked for, such as `coop:num_virtual_tokens=4`.
        settings: what to run.
        targets: further tasks to test on.
        max_steps: optimiser steps that bound the length, in whole epochs; None for that of the recipe.
    """

    protocol: Protocol
    task: BenchTask
    method: str
    settings: Settings
    targets: tuple[BenchTask, ...] = ()
    max_steps: int | None = None

    @property
    def description(self) -> dict:
        """What is asked for, as JSON has it, the same on machines that have model and images in other places."""
        tasks = [(task.name, task.benchmark) for task in (self.task, *self.targets)]
        settings = asdict(self.settings) | {"model": Path(self.settings.model).name if self.settings.model else None}
        return self.about | {"tasks": tasks, "settings": settings}

    @property
    def about(self) -> dict:
        """What the cell is in words, for its report."""
        about = {"protocol": self.protocol.name, "task": self.task.name, "title": self.task.title}
        return about | {"method": self.method, "max_steps": self.max_steps}

    @property
    def classes(self) -> dict[str, list[str]]:
        """Class names by test set of the own task. A method that has nothing for novel classes sees the base classes alone."""
        names = class_names_of(self.task.data)
        if self.protocol.base_novel and not self.settings.base_novel:
            return {"base": base_novel_split(names)[0]}
        return split_classes(names, self.settings.base_novel)

    def bounded(self) -> Settings:
        """Return the settings with the length that the bound on the steps gives."""
        if self.max_steps is None:
            return self.settings
        recipe = recipe_on(self.settings.model, get_method(self.settings.method))
        recipe = published_choices(self.settings, self.task.benchmark).vary(recipe)
        if recipe is None:
            return self.settings
        trained = len(next(iter(self.classes.values())))
        shots = self.settings.shots
        images = len(self.task.data["train"]) if shots is None else shots * trained
        changed = recipe.override(batch_size=self.settings.batch_size, epochs=self.settings.epochs)
        return replace(self.settings, epochs=bounded_epochs(changed, shots, images, self.max_steps))


def bounded_epochs(recipe: Recipe, shots: int | None, images: int, max_steps: int) -> int:
    """Return the epochs of a recipe, cut to `max_steps` in whole epochs, and `LEAST_EPOCHS` at least.

    Args:
        recipe: how to train.
        shots: images per class; None for all.
        images: images in all.
        max_steps: optimiser steps that are exceeded by less than an epoch, but for the shortest length.
    """
    per_epoch = max(1, images // recipe.batch_size)  # full batches only, as the training has it
    steps = recipe.steps_for(shots)
    epochs = math.ceil(steps / per_epoch) if steps is not None else recipe.epochs_for(shots)
    return min(epochs or LEAST_EPOCHS, max(LEAST_EPOCHS, max_steps // per_epoch))


def run_cell(cell: Cell, folder: str | Path, *, cached: bool = False, **options) -> dict:
    """Return the report of a cell, which is run unless the folder has the same one by content.

    Args:
        cell: what to run.
        folder: for the adapter and `results.json`.
        cached: augment every training image once; where the image features do not depend on what is trained, they are
            computed once for all cells with these shots.
        **options: further fields of `RunOptions`.

    Returns:
        What `results.json` holds: that of a run, with `bench` (what the cell is), `tests` (each test set with which images
        are right), `evaluate_seconds` and `peak_memory`. That of a run that diverged has `diverged`, and no test set.

    Raises:
        As `run_experiment`, but for a run that diverged.
    """
    cell = replace(cell, settings=cell.bounded())
    check_settings(cell.settings)
    contents = cell.task.contents(cached)
    identity = contents.identity(cell.settings, _names(cell)) | _tested_on(cell)
    report = finished_run(Path(folder), identity)
    if report is not None:
        return report
    run_options = RunOptions(data_description=cell.task.description, cached=cached, compare=False, **options)
    try:
        return CellRun(cell.settings, cell.task.data, Path(folder), run_options, cell).carry_out(contents)
    except TrainingDivergedError as error:
        return report_diverged(error, cell.settings, Path(folder), contents, identity, {BENCH: cell.about, TESTS: {}})


def _named(task: BenchTask) -> dict[str, str | None]:
    """Return what a test set of a task is called in a report."""
    return {"title": task.title, "benchmark": task.benchmark}


def _names(cell: Cell) -> list[str]:
    return [name for names in cell.classes.values() for name in names]


def _tested_on(cell: Cell) -> dict:
    """Return what a cell is beside its run: the test sets, and the images of the targets."""
    targets = {
        task.name: task.test_content | {"class names": task.test.features["label"].names} for task in cell.targets
    }
    return {"protocol": cell.protocol.name, "targets": targets}


@dataclass
class CellRun(Run):
    """The run of a cell, in the steps of `Run`.

    Attributes:
        cell: what to run.
        memory: what is held at most.
        tests: what it gets right of each test set; from `evaluate`.
        evaluate_seconds: how long that took.
    """

    cell: Cell
    memory: PeakMemory = field(default_factory=PeakMemory, init=False)
    tests: dict[str, dict] = field(default_factory=dict, init=False)
    evaluate_seconds: float = field(default=0.0, init=False)

    def __post_init__(self):
        super().__post_init__()
        self.classes = self.cell.classes

    def content(self, contents: Contents) -> dict:
        """Return what the cell is by content: that of the run, and what it is tested on beside it."""
        return super().content(contents) | _tested_on(self.cell)

    def evaluate(self) -> None:
        """Find out which images are right, of every split and of every target, each among its own class names."""
        model, start = self.bundle.model, time.perf_counter()
        content = self.cell.task.contents(self.options.cached).of_split("test")
        with nullcontext() if self.spec.trains else model.disable_adapter():
            for name, test_set in self.test_sets.items():
                self.tests[name] = self._outcome(test_set, content) | _named(self.cell.task)
            for target in self.cell.targets:
                self.tests[target.name] = self._transfer(target) | _named(target)
        set_class_names(model, self.trained_classes)
        self.evaluate_seconds = time.perf_counter() - start
        self.accuracy = with_harmonic_mean({name: found["accuracy"] for name, found in self.tests.items()})
        self.per_class = with_harmonic_mean({name: found["per_class"] for name, found in self.tests.items()})
        self.zero_shot = None if self.spec.trains else self.accuracy

    def report(self) -> dict:
        """Return what `results.json` holds, with what is known of a cell."""
        return super().report() | {
            BENCH: self.cell.about,
            TESTS: self.tests,
            "evaluate_seconds": self.evaluate_seconds,
            "peak_memory": self.memory.so_far(),
        }

    def _transfer(self, target: BenchTask) -> dict:
        """Return what is right of a target, with its class names, its texts and its preprocessing."""
        names = target.test.features["label"].names
        processor = as_published(self.bundle, target.benchmark).image_processor
        (test_set,) = eval_sets(target.test, {"all": names}, processor, self._tested).values()
        config = self.bundle.model.active_peft_config
        with fields_replaced(config, fields_elsewhere(config, target.benchmark, self.spec.name)):
            return self._outcome(test_set, target.test_content)

    def _outcome(self, test_set: EvalSet, content: dict) -> dict:
        model, shown = self.bundle.model, None if self.options.quiet else "Test"
        names = list(test_set.class_names)
        if self.spec.new_classes or self.trained_classes == names or not self.spec.trains:
            rows, compared = among_own_classes(model, test_set)
            set_class_names(model, compared)
            logits, labels = predict_logits(model, rows, progress=shown)
        else:  # some of the trained classes, for a method that knows nothing else
            set_class_names(model, self.trained_classes)
            logits, labels = predict_logits(model, test_set.rows, progress=shown)
            logits = logits[:, _columns(names, self.trained_classes)]
        return outcome(logits.argmax(1), labels, names, content)

    def _tested(self, images: Dataset, transform) -> Any:
        """Return images to test on: as features that all cells share, where these depend on nothing that is trained."""
        return self._features(images, transform) if self._shares_features else super()._tested(images, transform)

    def _rows(self, images: Dataset, transform, views: int = 1, in_memory: bool = False):
        if in_memory and self._shares_features:  # every image is augmented once
            return self._features(images, transform)
        return super()._rows(images, transform, views, in_memory)

    @property
    def _shares_features(self) -> bool:
        model = self.bundle.model
        return compares_with_text(model) and leaves_images(model)

    def _features(self, images: Dataset, transform) -> Any:
        model, seed = self.bundle.model, self.settings.seed
        with nullcontext() if self.spec.trains else model.disable_adapter():
            return feature_rows(cache_features(model, images, transform, seed=seed, workers=self.options.workers))


def _columns(names: list[str], trained: list[str]) -> np.ndarray:
    """Return where classes stand among those that were trained.

    Raises:
        ValueError: a name is none of theirs, or of several.
    """
    if unknown := [name for name in names if trained.count(name) != 1]:
        raise ValueError(
            f"Expected classes among the trained ones, each name once, for a method that learns its classes one by one. "
            f"Received: {unknown[0]!r}. Leave the method out, or take targets of the same classes."
        )
    return np.array([trained.index(name) for name in names])
