"""Reports of a bench's cells, made up: as they lie in a folder, without a model."""

import json

import numpy as np

from peft_vprompt.experiments.bench.outcomes import outcome


ENVIRONMENT = {
    "machine": {"cpu": "a CPU", "cores": 2, "torch_threads": 1, "gpus": [], "system": "Linux"},
    "versions": {"peft": "1", "transformers": "2", "torch": "3"},
}


def test_set(right: list[int], classes: int = 2, title: str = "A", images: str = "images") -> dict:
    """What is kept of a test set of which these images are right; labels go round."""
    labels = np.arange(len(right)) % classes
    predicted = np.where(right, labels, (labels + 1) % classes)
    names = [f"class {label}" for label in range(classes)]
    return outcome(predicted, labels, names, {"images": images}) | {"title": title}


def cell(protocol: str, task: str, method: str, seed: int, tests: dict, shots: int = 16, **more) -> dict:
    """The report of a cell; `more` goes into the settings."""
    name = method.split(":")[0]
    settings = {"method": name, "shots": shots, "seed": seed, "model": None, "config": {}} | more
    return {
        "settings": settings,
        "bench": {"protocol": protocol, "task": task, "title": task.upper(), "method": method, "max_steps": None},
        "tests": tests,
        "cached": False,
        "trainable_parameters": 2048,
        "adapter_bytes": 8192,
        "steps": 10,
        "train_seconds": 1.5,
        "evaluate_seconds": 0.5,
        "peak_memory": {"process_bytes": 3 * 2**30, "device_bytes": None},
        "environment": ENVIRONMENT,
    }


def save_cells(folder, cells) -> None:
    """Write cells as a bench does."""
    for number, each in enumerate(cells):
        place = folder / "cells" / each["bench"]["task"] / f"{number}"
        place.mkdir(parents=True)
        (place / "results.json").write_text(json.dumps(each))


def base_to_novel() -> list[dict]:
    """Two tasks, zero-shot and two methods with two seeds, and one that has nothing for novel classes."""
    cells = []
    for task, plain in (("a", [1, 1, 0, 0]), ("b", [1, 0, 0, 0])):
        half = {"base": test_set(plain, images=f"{task} base"), "novel": test_set(plain, images=f"{task} novel")}
        cells.append(cell("base-to-novel", task, "zero-shot", 1, half))
        for seed in (1, 2):
            base = [1, 1, 1, seed - 1]
            tests = {
                "base": test_set(base, images=f"{task} base"),
                "novel": test_set([1, 0, 0, 0], images=f"{task} novel"),
            }
            cells.append(cell("base-to-novel", task, "coop", seed, tests))
            better = tests | {"novel": test_set([1, 1, seed - 1, 0], images=f"{task} novel")}
            cells.append(cell("base-to-novel", task, "maple:epochs=3", seed, better))
            cells.append(cell("base-to-novel", task, "classifier-r", seed, {"base": tests["base"]}))
    return cells
