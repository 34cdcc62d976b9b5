"""Every method that learns from class names on two small tasks, base against novel classes; docs/results/methods.json.

python examples/studies/compare_methods.py runs/methods                    # the embedded task; goes on where it was stopped
python examples/studies/compare_methods.py runs/methods --task emoji --model emoji-clip --data emoji.parquet
python docs/render/methods.py                                              # the page from the JSON

Options: `--minutes 30` starts no new run after half an hour, `--shots 16` makes the runs of one size alone. Each run is
entered into the JSON when it is done, and what stands there is not run again.

One recipe per method, none chosen by an accuracy: the authors' of the method table, with its length cut by `epochs_of`, the
same rule for all, whose number of steps was set by the time that runs take. Base classes are the first half of the classes.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import datasets
import transformers
import typer
from datasets import DatasetDict

from peft_vprompt.data import DataOptions, base_novel_split, load_images, select_classes
from peft_vprompt.demo import demo_task
from peft_vprompt.experiments.bench.cell import LEAST_EPOCHS, bounded_epochs
from peft_vprompt.experiments.identity import Contents
from peft_vprompt.experiments.run import run_once
from peft_vprompt.experiments.settings import Settings
from peft_vprompt.tuners.base.recipe import Recipe
from peft_vprompt.tuners.base.registry import METHODS
from peft_vprompt.tuners.base.spec import MethodSpec
from peft_vprompt.utils.io import read_json, write_json


RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results" / "methods.json"

#: Optimiser steps that no run exceeds by more than an epoch, but for the shortest length.
MOST_STEPS = 192

#: Shots in the order in which they are run, and seeds, of which the first is run on all methods before the second.
SHOTS, SEEDS = (16, 4), (1, 2, 3)

#: Methods that the study leaves out, and why.
LEFT_OUT = {"promptkd": "needs a larger teacher, and both tasks have one CLIP"}

#: Methods whose image features are the frozen model's: computed once for each draw of the shots, and shared by them.
ON_FEATURES = {
    "zero-shot",
    "coop",
    "class-name",
    "full-prompt",
    "cocoop",
    "kgcoop",
    "prograd",
    "tcp",
    "classifier-r",
    "classifier-c",
    "tip-adapter",
    "tip-adapter-f",
    "clap",
    "zs-lp",
    "tenc-ft",
}

#: How the emoji drawings are read.
EMOJI = {
    "label_column": "subgroup",
    "where": ("vendor=openmoji", "style=color", "group!=flags"),
    "min_images": 24,
    "test_fraction": 0.33,
}


class Row(NamedTuple):
    """A row of the table: a method, and changes to its config."""

    spec: MethodSpec
    config: dict
    title: str

    @property
    def name(self) -> str:
        """What the runs of the row are called."""
        return self.title.lower().replace(" ", "-").replace("(", "").replace(")", "")


def rows() -> list[Row]:
    """Return every method that learns from class names, VPT both deep and shallow; zero-shot comes first."""
    found = []
    for spec in METHODS.values():
        if spec.is_baseline or spec.name in LEFT_OUT:
            continue
        if spec.name == "vpt":
            found.append(Row(spec, {"deep": False, "num_deep_layers": None}, "VPT (shallow)"))
        found.append(Row(spec, {}, "VPT (deep)" if spec.name == "vpt" else spec.title))
    return found


def epochs_of(recipe: Recipe, shots: int, images: int) -> int:
    """Return the epochs of a run: those of the authors, cut to `MOST_STEPS` in whole epochs, and `LEAST_EPOCHS` at least.

    Args:
        recipe: the authors'.
        shots: images per class.
        images: images in all.
    """
    return bounded_epochs(recipe, shots, images, MOST_STEPS)


class Task:
    """Images of one task with all that its runs share.

    Args:
        name: its name in the results.
        model: base model; None for the embedded one.
        data: training and test images.
    """

    def __init__(self, name: str, model: str | None, data: DatasetDict):
        self.name, self.model = name, model
        names = data["test"].features["label"].names
        self.base = base_novel_split(names)[0]
        base_alone = DatasetDict({split: select_classes(images, self.base) for split, images in data.items()})
        self._data = {True: data, False: base_alone}
        self._contents = {novel: Contents(images, cached=True) for novel, images in self._data.items()}

    def run(self, row: Row, shots: int, seed: int, folder: Path) -> dict:
        """Return the report of one run; a method that has nothing for novel classes sees the base classes alone."""
        images = shots * len(self.base)
        settings = Settings(
            method=row.spec.name,
            model=self.model,
            config=row.config,
            shots=shots,
            seed=seed,
            base_novel=row.spec.new_classes,
            epochs=None if row.spec.recipe is None else epochs_of(row.spec.recipe, shots, images),
            cache_features=row.spec.name in ON_FEATURES,
        )
        data, contents = self._data[row.spec.new_classes], self._contents[row.spec.new_classes]
        options = {"cached": True, "checkpoints": False, "compare": False, "quiet": True}
        place = folder / self.name / f"{row.name}-{shots}-{seed}"
        return run_once(settings, data, place, contents, **options)


def read_task(name: str, model: str | None, data: str | None) -> Task:
    """Read the images of a task.

    Raises:
        typer.BadParameter: the emoji drawings without their model and file.
    """
    if name == "embedded":
        return Task(name, None, DatasetDict({split: demo_task(split) for split in ("train", "test")}))
    if model is None or data is None:
        raise typer.BadParameter("Expected --model and --data for the emoji drawings.")
    return Task(name, model, load_images(DataOptions(data, **EMOJI)))


def cells(shots: tuple[int, ...]) -> Iterator[tuple[Row, int, int]]:
    """Yield row, shots and seed of every run, all rows before the next seed."""
    for count in shots:
        for seed in SEEDS:
            yield from ((row, count, seed) for row in rows() if row.spec.trains)


def read_results() -> dict:
    """Return what the JSON holds; nothing, where its runs followed another rule."""
    found = read_json(RESULTS, missing_ok=True) or {}
    rule = {"most_steps": MOST_STEPS, "least_epochs": LEAST_EPOCHS}
    kept = (
        {name: found[name] for name in ("tasks", "runs")} if found.get("rule") == rule else {"tasks": {}, "runs": []}
    )
    return {
        "rule": rule,
        "shots": list(SHOTS),
        "seeds": list(SEEDS),
        "left_out": {METHODS[name].title: why for name, why in LEFT_OUT.items()},
        "rows": {row.name: describe(row) for row in rows()},
        **kept,
    }


def enter(task: Task, row: Row, shots: int, seed: int, report: dict) -> None:
    """Enter a run into the JSON."""
    results = read_results()
    accuracy = {{"all": "base"}.get(name, name): round(value, 3) for name, value in report["accuracy"].items()}
    if row.spec.trains:
        names = ("trainable_parameters", "adapter_bytes", "steps")
        results["runs"].append(
            {"task": task.name, "method": row.name, "shots": shots, "seed": seed}
            | {name: report[name] for name in names}
            | {"epochs": (report["recipe"] or {}).get("epochs"), "seconds": round(report["train_seconds"] or 0.0, 2)}
            | accuracy
        )
        results["runs"].sort(key=lambda run: tuple(run[name] for name in ("task", "shots", "method", "seed")))
    else:
        results["tasks"][task.name] = {
            "classes": {split: len(names) for split, names in report["classes"].items()},
            "test_images": report["test_images"],
            "chance": report["chance"],
            "zero_shot": accuracy,
        }
    machines = dict.fromkeys([*results.get("machines", []), report["environment"]["machine"]["cpu"]])
    write_json(results | {"environment": report["environment"], "machines": list(machines)}, RESULTS)


def describe(row: Row) -> dict:
    """Return what the page says of a row, with the authors' recipe."""
    spec, recipe = row.spec, row.spec.recipe
    about = {"title": row.title, "trains": spec.trains, "novel": spec.new_classes, "recipe": None}
    if recipe is None:
        return about
    length = {str(shots): {"epochs": recipe.epochs_for(shots), "steps": recipe.steps_for(shots)} for shots in SHOTS}
    names = ("learning_rate", "batch_size", "optimizer")
    return about | {"recipe": {name: getattr(recipe, name) for name in names} | {"length": length}}


def done(task: Task) -> set[tuple]:
    """Return row, shots and seed of the runs of a task that the JSON holds."""
    return {(run["method"], run["shots"], run["seed"]) for run in read_results()["runs"] if run["task"] == task.name}


def compare(task: Task, shots: tuple[int, ...], folder: Path, deadline: float) -> bool:
    """Make the runs that are missing while there is time; return whether none is missing any more."""
    if task.name not in read_results()["tasks"]:
        zero_shot = rows()[0]
        enter(task, zero_shot, SHOTS[0], SEEDS[0], task.run(zero_shot, SHOTS[0], SEEDS[0], folder))
    for row, count, seed in cells(shots):
        if (row.name, count, seed) in done(task):
            continue
        if time.monotonic() > deadline:
            return False
        start = time.monotonic()
        report = task.run(row, count, seed, folder)
        enter(task, row, count, seed, report)
        values = {name: round(value, 1) for name, value in report["accuracy"].items()}
        print(task.name, row.title, count, seed, values, f"{time.monotonic() - start:.1f} s", flush=True)
    return True


def main(
    folder: Annotated[Path, typer.Argument(help="Folder for the runs.")],
    task: Annotated[Literal["embedded", "emoji"], typer.Option(help="Which images.")] = "embedded",
    model: Annotated[str | None, typer.Option(help="CLIP of the emoji drawings.")] = None,
    data: Annotated[str | None, typer.Option(help="File of the emoji drawings.")] = None,
    shots: Annotated[list[int], typer.Option(help="Images per class; of each number its own runs.")] = list(SHOTS),  # noqa: B006
    minutes: Annotated[float, typer.Option(help="Start no new run after this time.")] = float("inf"),
):
    """Make the runs that docs/results/methods.json does not hold yet, and enter each."""
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    complete = compare(read_task(task, model, data), tuple(shots), folder, time.monotonic() + 60 * minutes)
    raise typer.Exit(0 if complete else 3)


if __name__ == "__main__":
    typer.run(main)
