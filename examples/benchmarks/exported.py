"""Images per second of an adapter and of what it is exported to: `python -m examples.benchmarks.exported --help`.

The frozen image encoder alone, the adapter's classification call, the graph of `torch.export`, ONNX Runtime and its 8-bit
form, on the same pixels, taking turns; and how often each gives the adapter's label on labelled images.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from peft_vprompt.data import DataOptions, load_split
from peft_vprompt.export import Classifier, export, standalone
from peft_vprompt.export.comparison import compare
from peft_vprompt.utils.environment import environment
from peft_vprompt.utils.io import write_json

from .measure import CLOCKS, keep_freed_memory
from .results import ROOT, commit


#: What is exported, by the name of the side.
SIDES = {
    "torch.export": {"format": "torch-export"},
    "ONNX": {"format": "onnx"},
    "ONNX, int8": {"format": "onnx", "int8": True},
}


def sides(classifier: Classifier, folder: Path) -> tuple[dict[str, Callable], dict[str, dict]]:
    """Return what makes logits of pixels by the name of the side, and size and difference of what was exported."""
    runs: dict[str, Callable] = {
        "image encoder alone": lambda pixels: frozen_image(classifier, pixels),
        "adapter": lambda pixels: classifier.logits_of({"pixel_values": torch.from_numpy(pixels)}).numpy(),
    }
    files = {}
    for number, (name, options) in enumerate(SIDES.items()):
        exported = export(classifier, folder / str(number), **options)
        runs[name] = standalone.Predictor(exported.folder).logits
        files[name] = {"bytes": exported.bytes, "difference": exported.difference}
    return runs, files


@torch.no_grad()
def frozen_image(classifier: Classifier, pixels: np.ndarray) -> np.ndarray:
    """Encode images with the frozen model."""
    with classifier.model.disable_adapter():
        return classifier.model.encode_images(torch.from_numpy(pixels)).numpy()


def measure(runs: dict[str, Callable], size: int, batch: int, repeats: int, clock: str) -> dict[str, dict]:
    """Return milliseconds by image of each side; all take turns, and a first round is not counted."""
    pixels = np.random.default_rng(0).standard_normal((batch, 3, size, size), dtype=np.float32)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = CLOCKS[clock]()
            run(pixels)
            if repeat:
                seconds[name].append(CLOCKS[clock]() - start)
    return {name: {"ms_per_image": 1e3 * statistics.median(taken) / batch} for name, taken in seconds.items()}


def main(
    adapter: Annotated[str, typer.Option(help="Folder of a trained adapter on a CLIP.")],
    output: Annotated[Path, typer.Option(help="Folder for exported_cpu_float32.json.")] = ROOT
    / "docs/results/benchmarks",
    model: Annotated[str | None, typer.Option(help="Its base model; default: the one it names.")] = None,
    data: Annotated[str | None, typer.Option(help="Labelled images to agree on; default: none.")] = None,
    label_column: Annotated[str, typer.Option(help="Column of their classes.")] = "label",
    where: Annotated[list[str] | None, typer.Option(help="COLUMN=VALUE or COLUMN!=VALUE of their rows.")] = None,
    min_images: Annotated[int, typer.Option(help="Leave out classes with fewer images.")] = 0,
    test_fraction: Annotated[float, typer.Option(help="Share of each class that is tested on.")] = 0.3,
    batches: Annotated[list[int] | None, typer.Option(help="Images at once; default: 1, 32.")] = None,
    repeats: Annotated[int, typer.Option(help="Runs of every side, of which the median is taken.")] = 15,
    threads: Annotated[int, typer.Option(help="Threads of torch; ONNX Runtime takes all cores.")] = 2,
    clock: Annotated[str, typer.Option(help="wall, or processor where the machine is shared.")] = "wall",
):
    """Measure all sides, let them agree, and write the figures down."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    classifier = Classifier.from_pretrained(adapter, model, device="cpu")
    size = classifier.preprocess([standalone.Image.new("RGB", (300, 300))])["pixel_values"].shape[-1]
    with tempfile.TemporaryDirectory() as folder:
        runs, files = sides(classifier, Path(folder))
        cells = {str(batch): measure(runs, size, batch, repeats, clock) for batch in batches or (1, 32)}
        agreement = {}
        if data is not None:
            options = DataOptions(
                data,
                label_column=label_column,
                where=tuple(where or ()),
                min_images=min_images,
                test_fraction=test_fraction,
            )
            rows = load_split(options, "test", classifier.class_names)
            agreement = {name: compare(classifier, runs[name], rows)._asdict() for name in SIDES}
    for batch, cell in cells.items():
        typer.echo(
            f"{batch} images: " + ", ".join(f"{name} {side['ms_per_image']:.1f} ms" for name, side in cell.items())
        )
    result = {
        "experiment": "exported",
        "title": "Exported models",
        "classes": len(classifier.class_names),
        "image_size": size,
        "clock": clock,
        "threads": threads,
        "repeats": repeats,
        "files": files,
        "cells": cells,
        "agreement": agreement,
        "commit": commit(),
        "environment": environment(),
    }
    output.mkdir(parents=True, exist_ok=True)
    write_json(result, output / "exported_cpu_float32.json")


if __name__ == "__main__":
    typer.run(main)
