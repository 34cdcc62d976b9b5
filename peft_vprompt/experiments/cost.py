"""What a training costs on this machine, in hours and gigabytes, from a few measured steps.

Each cell (a method, a number of classes, a precision, images or their cached features) is measured in a process of its own,
so that its peak of memory is its own. Loading images is not counted: the loader works beside the step (`training.loading`).
Neither is the evaluation afterwards.
"""

from __future__ import annotations

import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers.utils import logging

from ..backbones.image_size import MAX_IMAGE_SIZE
from ..data.transforms import EvalTransform
from ..training.cached_features import FEATURES, encode_frozen
from ..training.recipes import make_optimizer
from ..tuners.base.classifier import text_classifier
from ..tuners.base.recipe import Recipe, SupportViews
from ..tuners.base.registry import get_method
from ..utils.arguments import typed
from ..utils.environment import environment
from ..utils.fields import MAX_INTEGER
from ..utils.io import read_json, write_json
from ..utils.locks import only_writer
from ..utils.memory import peak_memory
from ..utils.precision import Precision
from ..utils.progress import make_bar
from ..utils.validation import require_int
from .models import ModelBundle, build_model


#: Images whose encoding is timed.
ENCODED = 8

#: Most steps that are timed, and fewest.
MOST_STEPS, FEWEST_STEPS = 50, 2

#: Most classes.
MAX_CLASSES = 100_000

#: Words of the class names that are made up: an adjective, a place and a noun make three or four tokens, as names of birds do.
_WORDS = (
    "red green blue black white small large old young wild tame fast slow soft hard round",
    "sea river forest desert mountain garden island meadow city valley cave lake beach house farm road",
    "cat dog bird fish horse tree flower stone boat car chair lamp bridge clock apple bread",
)

#: Entries of a report on which its cells depend.
ABOUT = "about"


@dataclass(frozen=True)
class CostCell:
    """What one measurement is of.

    Attributes:
        method: a name in `METHODS`.
        classes: number of classes.
        precision: what frozen weights are held in.
        cached: train on image features that were computed once.
    """

    method: str
    classes: int
    precision: Precision = "float32"
    cached: bool = False

    @property
    def key(self) -> str:
        """Name of the cell in a report."""
        return f"{self.method}/{self.classes} classes/{self.precision}/{'features' if self.cached else 'images'}"


@dataclass(frozen=True)
class CostTask:
    """What all cells have in common.

    Attributes:
        model: folder or Hub id of the base model; None for the embedded one.
        shots: training images per class.
        image_size: edge of the images in pixels; None for the model's own.
        device: where to compute.
        seconds: how long steps of a cell are repeated, after a first one.
    """

    model: str | None = None
    shots: int = 16
    image_size: int | None = None
    device: str = "cpu"
    seconds: float = 10.0


@typed
def training_costs(
    task: CostTask,
    methods: Sequence[str],
    classes: Sequence[int],
    precisions: Sequence[Precision] = ("float32",),
    *,
    output: str | Path | None = None,
    name: str | None = None,
    wait: bool = False,
    progress: str | None = None,
    isolated: bool = True,
) -> dict:
    """Measure every combination of methods, numbers of classes and precisions, and cached features where these will do.

    Args:
        task: what they have in common.
        methods: names of methods.
        classes: numbers of classes.
        precisions: what frozen weights are held in.
        output: JSON file that is written after every cell; cells that it has stay, which must be of the same task, machine
            and versions.
        name: what the report calls the model, where its folder does not matter; default: its folder or id.
        wait: wait while another process writes there; else refuse.
        progress: label of a progress bar; None for no bar.
        isolated: measure each cell in a process of its own; else all in this one, where only the first peak of memory is
            honest.

    Returns:
        The report: `about` (task, machine and versions) and `cells` by their keys.

    Raises:
        ValueError: a method that does not exist or trains nothing, or does not fit the model; a number out of range; the
            file has cells of another task or machine, whose times do not compare.
        CannotWriteError: the file cannot be written.
        FolderInUseError: another process writes it.
    """
    for method in methods:
        _require_trained(method)
    for count in classes:
        require_int("classes", count, 2, MAX_CLASSES)
    require_int("shots", task.shots, 1, MAX_INTEGER)
    if task.image_size is not None:
        require_int("image_size", task.image_size, 1, MAX_IMAGE_SIZE)
    plain = [CostCell(*values) for values in itertools.product(methods, classes, precisions)]
    measure = _measurer(task, isolated)
    with nullcontext() if output is None else only_writer(output, wait, is_file=True), _bar(progress) as advance:
        report = _begun(replace(task, model=name or task.model), output)
        for done, cell in enumerate(plain):
            for each in (cell, replace(cell, cached=True)):
                advance(each.key, done, len(plain))
                if each.key not in report["cells"]:
                    report["cells"][each.key] = asdict(each) | measure(each)
                    _save(report, output)
                if not report["cells"][each.key].get("can_cache"):
                    break
    return report


def _begun(task: CostTask, output: str | Path | None) -> dict:
    """Return the report to go on with, and make sure that it can be written."""
    report = {ABOUT: asdict(task) | {"environment": environment()}, "cells": {}}
    old = None if output is None else read_json(output, missing_ok=True)
    if old and old["cells"]:
        if changes := list(_changes(old[ABOUT], report[ABOUT])):
            raise ValueError(
                f"Expected a file of costs that were measured alike. Received: {str(output)!r}, which has others: "
                f"{'; '.join(changes)}. Measure as there, or give another file."
            )
        report = old
    _save(report, output)
    return report


def _changes(old: dict, new: dict) -> Iterator[str]:
    """Say of every entry that is another one what it was and what it is."""
    for name in dict.fromkeys([*old, *new]):
        was, now = old.get(name), new.get(name)
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _changes(was, now)
        elif was != now:
            yield f"{name} was {was}, now {now}"


def _save(report: dict, output: str | Path | None) -> None:
    if output is not None:
        write_json(report, output)


def _require_trained(name: str) -> None:
    spec = get_method(name)
    if name == "promptkd" or not spec.trains:
        why = "needs a teacher, on which its cost depends" if spec.trains else "trains nothing"
        raise ValueError(f"Expected methods that are trained on labelled images alone. Received: {name}, which {why}.")


@contextmanager
def _bar(label: str | None) -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar that names what is measured at present; without a label none."""
    if label is None:
        yield lambda note, done, total: None
        return
    with make_bar(label, "cells", transient=True) as bar:
        row = bar.add_task("", total=None, note="")
        yield lambda note, done, total: bar.update(row, completed=done, total=total, note=note)


def _measurer(task: CostTask, isolated: bool) -> Callable[[CostCell], dict]:
    """Return what measures a cell, in a process of its own or in this one."""
    if not isolated:
        return lambda cell: measure_cell(cell, task)
    server = "forkserver" in get_all_start_methods()
    context: Any = get_context("forkserver" if server else "spawn")
    if server:
        context.set_forkserver_preload([__name__])  # what is imported once is not imported in every process

    def measure(cell: CostCell) -> dict:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            try:
                return pool.submit(_in_process, cell, task, torch.get_num_threads()).result()
            except BrokenProcessPool:
                return {"skipped": "was ended by the system, most likely for want of memory"}

    return measure


def _in_process(cell: CostCell, task: CostTask, threads: int) -> dict:
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")  # what there is to say of a model is said where it is trained
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return measure_cell(cell, task)


def class_names(count: int) -> list[str]:
    """Return so many different class names that mean nothing."""
    words = [" ".join(triple) for triple in itertools.product(*map(str.split, _WORDS))]
    words = words[:: max(1, len(words) // count)]
    rounds = -(-count // len(words))
    return [f"{name} {k + 1}" if k else name for k in range(rounds) for name in words][:count]


def measure_cell(cell: CostCell, task: CostTask) -> dict:
    """Measure one cell in this process.

    Returns:
        `hours` of the whole training and what they are made of: `steps`, `seconds_per_step` (the median of each stage's,
        by steps), `encode_seconds` (images that are encoded once); `first_step_seconds`; `peak_bytes` of the process (on a
        graphics card: of torch there) and `model_bytes` before the first step; `batch_size`; `can_cache`, whether image
        features may stand for images.
    """
    spec = get_method(cell.method)
    bundle = build_model(
        task.model,
        cell.method,
        class_names(cell.classes),
        image_size=task.image_size,
        device=task.device,
        precision=cell.precision,
    )
    recipe = bundle.recipe
    with peak_memory(task.device) as peak:
        encode = _encode_seconds(bundle, cell, task, spec.support)
        stages = [] if recipe is None else list(_stages(bundle, recipe, cell, task, spec.support))
    steps = sum(length for length, _, _ in stages)
    seconds = sum(length * taken for length, taken, _ in stages)
    return {
        "title": spec.title,
        "batch_size": recipe.batch_size if recipe else None,
        "steps": steps,
        "seconds_per_step": seconds / steps if steps else None,
        "first_step_seconds": stages[0][2] if stages else None,
        "encode_seconds": encode,
        "hours": (seconds + encode) / 3600,
        "model_bytes": peak.before,
        "peak_bytes": peak.bytes,
        "trainable_parameters": bundle.trainable_parameters,
        "can_cache": not cell.cached and spec.support is None and _features_will_do(bundle),
    }


def _stages(
    bundle: ModelBundle, recipe: Recipe, cell: CostCell, task: CostTask, support: SupportViews | None
) -> Iterator[tuple[int, float, float]]:
    """Measure each stage: number of steps, seconds of one, and of the first one."""
    images = cell.classes * task.shots
    batch = min(recipe.batch_size, images)
    of_features = cell.cached or (support is not None and support.trained_on)
    if support is not None and support.trained_on:
        images *= support.views
    if support is not None and bundle.model.uses_support:
        _give_support(bundle, cell, task)
    inputs = _inputs(bundle, batch, of_features)
    inputs["labels"] = (torch.arange(batch) % cell.classes).to(task.device)
    per_epoch = max(1, images // recipe.batch_size)
    lengths = recipe.stages(recipe.epochs_for(task.shots), recipe.steps_for(task.shots))
    for stage, (epochs, steps) in enumerate(lengths):
        if stage:
            bundle.model.start_class_head()
        first, median = _step_seconds(bundle.model, recipe, inputs, task)
        yield (epochs * per_epoch if steps is None else steps), median, first  # pyrefly: ignore[unsupported-operation]  # there is one of both


def _step_seconds(model: Any, recipe: Recipe, inputs: dict[str, Tensor], task: CostTask) -> tuple[float, float]:
    """Return the seconds of a first step and the median of those after it."""
    model.train()
    optimizer = make_optimizer(model, recipe)
    # Finite at any learning rate: what is measured is time, and nobody keeps what was learned.
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    samples: list[float] = []
    while len(samples) <= FEWEST_STEPS or (sum(samples[1:]) < task.seconds and len(samples) <= MOST_STEPS):
        start = time.perf_counter()
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        _wait(task.device)
        samples.append(time.perf_counter() - start)
    return samples[0], statistics.median(samples[1:])


def _encode_seconds(bundle: ModelBundle, cell: CostCell, task: CostTask, support: SupportViews | None) -> float:
    """Return the seconds that it takes to encode all training images once, where a training begins with that; else 0."""
    if not cell.cached and support is None:
        return 0.0
    images = _inputs(bundle, ENCODED, False)
    samples = []
    for _ in range(3):
        start = time.perf_counter()
        encode_frozen(bundle.model, images)
        _wait(task.device)
        samples.append(time.perf_counter() - start)
    views = 1 if support is None else support.views
    return min(samples[1:]) / ENCODED * views * cell.classes * task.shots


def _inputs(bundle: ModelBundle, count: int, of_features: bool) -> dict[str, Tensor]:
    """Return a batch of what the model takes of images that mean nothing, on its device."""
    device = next(bundle.model.parameters()).device
    if of_features:
        size = bundle.model.class_name_classifier.adapted.dual.feature_dim
        return {FEATURES: F.normalize(torch.randn(count, size), dim=-1).to(device)}
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    batch = EvalTransform(bundle.image_processor)({"image": [Image.fromarray(noise)] * count})
    return {name: torch.as_tensor(value).to(device) for name, value in batch.items()}


def _give_support(bundle: ModelBundle, cell: CostCell, task: CostTask) -> None:
    """Let a cache hold as many features as it would have."""
    size = bundle.model.class_name_classifier.adapted.dual.feature_dim
    features = F.normalize(torch.randn(1, cell.classes * task.shots, size), dim=-1)
    bundle.model.set_support(features, [label for label in range(cell.classes) for _ in range(task.shots)])


def _features_will_do(bundle: ModelBundle) -> bool:
    """Tell whether nothing that is trained changes the image features."""
    classifier = text_classifier(bundle.model)
    return classifier is not None and classifier.images.is_fixed


def _wait(device: str) -> None:
    """Wait for what a graphics card has been told to do."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
