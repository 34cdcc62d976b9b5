"""Visual prompts and the fine-tuning baselines on a small ViT and the embedded task; collects docs/results/transfer.json.

python examples/studies/compare_transfer.py runs/transfer               # goes on where it was stopped
python examples/studies/compare_transfer.py runs/transfer --minutes 9   # starts no new run after nine minutes
python docs/render/transfer.py                          # the page from the JSON

The ViT is the one that pretrain_vit.py trains, in runs/transfer/vit; it is made if it is not there. Every method gets the
same images, schedule and report. At 1, 4, 8 and 16 shots per class its learning rate is the best on the validation images,
from a grid that is extended until the best is inside or no rate is left; with that rate it is trained with three seeds and
tested.
"""

import json
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import datasets
import torch
import transformers
import typer
from datasets import DatasetDict
from peft import get_peft_model
from pretrain_vit import pretrain
from transformers import ViTConfig, ViTForImageClassification

from peft_vprompt.data import base_novel_split, select_classes
from peft_vprompt.demo import demo_task
from peft_vprompt.experiments.grid_search import Grid, Trial, best_trial, search
from peft_vprompt.experiments.settings import Settings
from peft_vprompt.experiments.sweep import final_runs, summary
from peft_vprompt.tuners.base.registry import get_method
from peft_vprompt.utils.environment import environment
from peft_vprompt.utils.io import write_json


RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results" / "transfer.json"

#: Rows of the table: method on the command line, changes to its config, name if it is not the method's own.
ROWS = (
    ("full", {}, None),
    ("linear", {}, None),
    ("vpt-shallow", {}, None),
    ("vpt-deep", {}, None),
    ("vpt-shallow", {"location": "add"}, "VPT-shallow, add"),
    ("vpt-shallow", {"location": "prepend-pixel"}, "VPT-shallow, prepend-pixel"),
    ("adapter", {}, None),
    ("bias", {}, None),
    ("lora", {}, None),
    ("partial-1", {}, None),
    ("mlp-3", {}, None),
    ("sidetune", {}, None),
)
BASE = Settings(method="", base_novel=False, batch_size=16, weight_decay=1e-4)
#: Base rates; the search begins with those between the two indices and goes on while the best is the first or last.
RATES, BEGIN = (10.0, 2.5, 1.0, 0.5, 0.25, 0.1, 0.05, 0.025, 0.01), (2, 6)
#: In the order in which they are run; sizes that there was no time for are left out of the results.
SHOTS, SEEDS = (4, 16, 8, 1), (1, 2, 3)
#: More images, fewer passes: from four shots on every run has the same number of steps.
EPOCHS = {1: 40, 4: 40, 8: 20, 16: 10}


def compare(folder: Path, deadline: float) -> dict:
    """The results, as far as there is time for them: rows without the first size and sizes without a row are left out."""
    vit = folder / "vit"
    pretraining = read_json(vit / "training.json") or pretrain(vit)
    task = {split: first_classes(demo_task(split)) for split in ("train", "validation", "test")}
    rows = [
        {"method": method, "config": config, "title": title or get_method(method).title, "shots": {}}
        for method, config, title in ROWS
    ]
    try:
        for shots in SHOTS:
            for row in rows:
                run_row(row, shots, replace(BASE, model=str(vit)), task, folder, deadline)
    except TimeoutError as error:
        print(error)
    rows = [row for row in rows if str(SHOTS[0]) in row["shots"]]
    sizes = [str(shots) for shots in sorted(SHOTS) if all(str(shots) in row["shots"] for row in rows)]
    for row in rows:
        row["shots"] = {shots: row["shots"][shots] for shots in sizes}
    return {
        "pretraining": {key: value for key, value in pretraining.items() if key != "environment"},
        "epochs": {str(shots): EPOCHS[shots] for shots in sorted(SHOTS)},
        "batch_size": BASE.batch_size,
        "weight_decay": BASE.weight_decay,
        "rates": list(RATES[slice(*BEGIN)]),
        "classes": len(task["test"].features["label"].names),
        "images": {split: len(images) for split, images in task.items()},
        "rows": rows,
        "vit_b16": count_on_vit_b16(),
        "environment": environment(),
    }


def run_row(row: dict, shots: int, base: Settings, task: dict, folder: Path, deadline: float) -> None:
    """Choose the rate of one row at one size, train with it, and enter both into the row.

    Raises:
        TimeoutError: the time is over.
    """
    choice = DatasetDict(train=task["train"], test=task["validation"])
    final = DatasetDict(train=task["train"], test=task["test"])
    options = {"cached": True, "checkpoints": False}
    settings = replace(base, method=row["method"], config=row["config"], shots=shots, epochs=EPOCHS[shots])
    place = folder / row["title"].replace(", ", "-").replace(" ", "-").lower()
    check_time(deadline)
    trials = search_on(settings, choice, place, options)
    best = best_trial(trials)
    chosen = replace(settings, learning_rate=best.learning_rate)
    check_time(deadline)
    part = summary(final_runs(chosen, final, place / f"shots-{shots}", SEEDS, **options))
    row["trainable_parameters"] = part.pop("trainable_parameters")
    row["shots"][str(shots)] = {"trials": [asdict(trial) for trial in trials], "best": asdict(best), **part}


def search_on(settings: Settings, data: DatasetDict, place: Path, options: dict) -> list[Trial]:
    """Search, and extend the grid until the best base rate is inside it (or there is no other)."""
    start, end = BEGIN
    while True:
        trials = search(settings, data, place, Grid(RATES[start:end], (BASE.weight_decay,)), **options)
        best = RATES.index(best_trial(trials).base_rate)
        if start == best > 0:
            start -= 1
        elif best == end - 1 and end < len(RATES):
            end += 1
        else:
            return trials


def read_json(path: Path) -> dict | None:
    """What a file holds; None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def first_classes(images):
    """The first half of the task's classes."""
    return select_classes(images, base_novel_split(images.features["label"].names)[0])


#: What each way trains, in words, for the table of counts: name on the command line, words.
VIT_B16 = (
    ("full", "everything"),
    ("linear", "the head"),
    ("mlp-3", "a head of three layers"),
    ("partial-1", "the last layer, the final norm, the head"),
    ("partial-2", "the last two layers, the final norm, the head"),
    ("partial-4", "the last four layers, the final norm, the head"),
    ("bias", "all biases, the head"),
    ("adapter", "bottlenecks of an eighth of the width after the feed-forward parts, the head"),
    ("sidetune", "a small convolutional network, alpha, the head"),
    ("lora", "rank-8 updates of queries and values, the head"),
    ("vpt-shallow", "10 prompts in the first layer, the head"),
    ("vpt-deep", "10 prompts in every layer, the head"),
)


def count_on_vit_b16() -> list[dict]:
    """Trained parameters on a ViT-B/16 with 100 classes, built without memory for its weights."""
    rows = []
    for name, trains in VIT_B16:
        with torch.device("meta"):
            vit = ViTForImageClassification(ViTConfig(num_labels=100))
        config = get_method(name).configure(vit)
        model = get_peft_model(vit, config, low_cpu_mem_usage=True)
        count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        rows.append({"name": name, "config": type(config).__name__, "trains": trains, "parameters": count})
    return rows


def check_time(deadline: float) -> None:
    """Leave when the time is over; what is done is kept.

    Raises:
        TimeoutError: the time is over.
    """
    if time.monotonic() > deadline:
        raise TimeoutError("The time is over; start the command again to go on.")


def main(
    folder: Annotated[Path, typer.Argument(help="Folder for the runs.")],
    minutes: Annotated[float, typer.Option(help="Start no new run after this time.")] = float("inf"),
):
    """Run the comparison and write docs/results/transfer.json."""
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    results = compare(folder, time.monotonic() + 60 * minutes)
    complete = len(results["rows"]) == len(ROWS) and len(results["rows"][0]["shots"]) == len(SHOTS)
    if results["rows"]:
        write_json(results, RESULTS)
    raise typer.Exit(0 if complete else 3)


if __name__ == "__main__":
    typer.run(main)
