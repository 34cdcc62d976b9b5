"""The table of docs/cost.md: `vprompt cost` on ViT-B/16 shapes with random weights: `python -m examples.benchmarks.cost --help`.

Cells that the JSON file has from this machine and these versions are not measured again, so that the table can be made in
several sittings.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from peft_vprompt.experiments.cost import CostTask, training_costs
from peft_vprompt.experiments.cost_tables import cost_table
from peft_vprompt.utils.devices import find_device
from peft_vprompt.utils.precision import find_precisions

from .inputs import Inputs
from .results import ROOT


METHODS = (
    "coop",
    "cocoop",
    "kgcoop",
    "maple",
    "promptsrc",
    "rpo",
    "mrpo",
    "vpt",
    "clip-lora",
    "clap",
    "tip-adapter-f",
)
FILE = ROOT / "docs/results/cost.json"


def main(
    output: Annotated[Path, typer.Option(help="JSON file.")] = FILE,
    method: Annotated[str, typer.Option(help="Methods, separated by commas.")] = ",".join(METHODS),
    classes: Annotated[str, typer.Option(help="Numbers of classes, separated by commas.")] = "37,100,1000",
    shape: Annotated[str, typer.Option(help="'ViT-B/16' or 'tiny'.")] = "ViT-B/16",
    seconds: Annotated[float, typer.Option(help="For the steps of a cell.")] = 4,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32, bf16 or fp16.")] = "auto",
    threads: Annotated[int, typer.Option(help="Threads on the CPU.")] = 2,
    tokenizer: Annotated[str | None, typer.Option(help="Folder or Hub id; default: the embedded model's.")] = None,
):
    """Measure the cells that the file lacks and write it after each."""
    torch.set_num_threads(threads)
    place = find_device(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Inputs(shape, tokenizer).save_clip(Path(folder) / "clip")
        task = CostTask(model=str(path), device=str(place), seconds=seconds)
        report = training_costs(
            task,
            method.split(","),
            [int(count) for count in classes.split(",")],
            find_precisions(precision, place),
            output=output,
            name=shape,
            progress="Measure",
        )
    Console().print(cost_table(report))


if __name__ == "__main__":
    typer.run(main)
