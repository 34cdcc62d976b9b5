"""The ways to transfer an image classifier on the embedded task; collects docs/results/transfer.json.

python docs/run_transfer.py runs/transfer               # goes on where it was stopped
python docs/run_transfer.py runs/transfer --minutes 9   # starts no new run after nine minutes
python docs/render_transfer.py                          # the page from the JSON

Every method gets the same images, schedule and report. Its learning rate is the best of six on the validation images
with four shots per class; with that rate it is trained on 1, 4 and 8 shots with three seeds and tested.
"""

import sys
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
from transformers import ViTConfig, ViTForImageClassification

from peft_vprompt.build import get_method
from peft_vprompt.demo import demo_task
from peft_vprompt.experiment import Settings
from peft_vprompt.reports import environment, write_json
from peft_vprompt.sweep import Grid, best_trial, final_runs, search, summary
from peft_vprompt.transfer import find_transfer


RESULTS = Path(__file__).resolve().parent / "results" / "transfer.json"

#: Rows of the table: method on the command line, changes to its config, name if it is not the method's own.
ROWS = (
    ("full", {}, None),
    ("linear", {}, None),
    ("vpt-shallow", {}, None),
    ("vpt-deep", {}, None),
    ("adapter", {}, None),
    ("bias", {}, None),
    ("lora", {}, None),
    ("partial-1", {}, None),
    ("mlp-3", {}, None),
    ("vpt-shallow", {"location": "add"}, "VPT-shallow, add"),
    ("vpt-shallow", {"location": "prepend-pixel"}, "VPT-shallow, prepend-pixel"),
    ("sidetune", {}, None),
    ("vpt-shallow", {"location": "pad", "num_virtual_tokens": 4}, "VPT-shallow, pad"),
)
BASE = Settings(method="", base_novel=False, epochs=20, batch_size=16, weight_decay=1e-4)
GRID = Grid(base_rates=(2.5, 1.0, 0.5, 0.25, 0.1, 0.05), weight_decays=(1e-4,))
SHOTS, TUNED_WITH, SEEDS = (1, 4, 8), 4, (1, 2, 3)


def compare(folder: Path, deadline: float) -> dict:
    """All rows, or as many as there is time for."""
    task = {split: demo_task(split) for split in ("train", "validation", "test")}
    choice = DatasetDict(train=task["train"], test=task["validation"])
    final = DatasetDict(train=task["train"], test=task["test"])
    rows = []
    for method, config, title in ROWS:
        settings = replace(BASE, method=method, config=config, shots=TUNED_WITH)
        place = folder / (title or method).replace(" ", "-").lower()
        stop_after(deadline)
        trials = search(settings, choice, place, GRID, cached=True)
        best = best_trial(trials)
        by_shots = {}
        for shots in SHOTS:
            chosen = replace(settings, shots=shots, learning_rate=best.learning_rate)
            runs = []
            for seed in SEEDS:
                stop_after(deadline)
                runs += final_runs(chosen, final, place / f"shots-{shots}", [seed], cached=True)
            by_shots[shots] = summary(runs)
        rows.append(
            {
                "method": method,
                "config": config,
                "title": title or get_method(method).title,
                "trainable_parameters": by_shots[SHOTS[0]]["trainable_parameters"],
                "trials": [asdict(trial) for trial in trials],
                "best": asdict(best),
                "shots": {
                    str(shots): {name: part[name] for name in ("runs", "accuracy")} for shots, part in by_shots.items()
                },
            }
        )
    return {
        "epochs": BASE.epochs,
        "batch_size": BASE.batch_size,
        "weight_decay": BASE.weight_decay,
        "tuned_with": TUNED_WITH,
        "classes": len(task["test"].features["label"].names),
        "images": {split: len(rows) for split, rows in task.items()},
        "rows": rows,
        "vit_b16": count_on_vit_b16(),
        "environment": environment(),
    }


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
        config = find_transfer(name).config(vit)
        model = get_peft_model(vit, config, low_cpu_mem_usage=True)
        count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        rows.append({"name": name, "config": type(config).__name__, "trains": trains, "parameters": count})
    return rows


def stop_after(deadline: float) -> None:
    """Leave when the time is over; what is done is kept."""
    if time.monotonic() > deadline:
        print("The time is over; start the command again to go on.", file=sys.stderr)
        raise SystemExit(3)


def main(
    folder: Annotated[Path, typer.Argument(help="Folder for the runs.")],
    minutes: Annotated[float, typer.Option(help="Start no new run after this time.")] = float("inf"),
):
    """Run the comparison and write docs/results/transfer.json."""
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    write_json(compare(folder, time.monotonic() + 60 * minutes), RESULTS)


if __name__ == "__main__":
    typer.run(main)
