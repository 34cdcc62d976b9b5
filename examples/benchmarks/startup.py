"""How long a start takes: `python -m examples.benchmarks.startup --help`.

The processor's time of `vprompt`'s help texts, and of importing this package against importing PEFT; the wall time from
nothing to the first prediction against that of loading the bare base model. Every run is a process of its own; the cases
take turns, so that a slow minute of the machine meets all of them. Reading a thousand class names is timed in this process.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from peft import get_peft_model
from PIL import Image

from peft_vprompt import ContextOptConfig
from peft_vprompt.utils.environment import environment
from peft_vprompt.utils.io import write_json
from vprompt import app

from .cases import Bar
from .inputs import Inputs
from .results import ROOT, commit, verdict


RUN = "from vprompt import app; app(prog_name='vprompt')"
COMMANDS = [info.name or info.callback.__name__.replace("_", "-") for info in app.registered_commands]
#: Arguments of the interpreter by what they do.
CASES: dict[str, list[str]] = {
    "python alone": ["-c", "pass"],
    "vprompt --version": ["-c", RUN, "--version"],
    "vprompt --help": ["-c", RUN, "--help"],
    **{f"vprompt {name} --help": ["-c", RUN, name, "--help"] for name in COMMANDS},
    "vprompt methods": ["-c", RUN, "methods"],
    "import peft": ["-c", "import peft"],
    "import peft_vprompt": ["-c", "import peft_vprompt"],
}
#: A cold process that loads the base model, and one that answers with an adapter: model, adapter and image are arguments.
LOAD = "import sys; from transformers import CLIPModel; CLIPModel.from_pretrained(sys.argv[1])"
ANSWER = (
    "import sys; from peft_vprompt.export import Classifier; "
    "Classifier.from_pretrained(sys.argv[2], sys.argv[1], device='cpu', precision='float32')(sys.argv[3])"
)
BASE, FIRST, NAMES = "load the base model", "first prediction", "read 1,000 class names"
CLASSES = 100
HELPS = [name for name in CASES if name.endswith("--help")]
BARS = [
    Bar(name, "median_ms", 700, f"`{name}` in 0.7 s of the processor's time", at_least=False) for name in HELPS
] + [
    Bar("import peft_vprompt", "ratio", 1.15, "at most 1.15 of `import peft`", at_least=False),
    Bar(
        FIRST,
        "ratio",
        1.3,
        f"the first prediction among {CLASSES} classes, at most 1.3 of loading the base model",
        at_least=False,
    ),
    Bar(NAMES, "median_ms", 300, "1,000 class names tokenised and packed in 0.3 s", at_least=False),
]


class Taken(NamedTuple):
    """Seconds of a process: of the wall clock, and of the processor in user and system together."""

    wall: float
    processor: float


def seconds_of(arguments: list[str]) -> Taken:
    """Run the interpreter.

    Raises:
        RuntimeError: the process failed.
    """
    variables = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120", "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], env=variables, stdout=subprocess.DEVNULL, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{arguments} ended with status {process.returncode}.")
    return Taken(wall, usage.ru_utime + usage.ru_stime)


def measure(cases: dict[str, list[str]], repeats: int) -> dict[str, dict]:
    """Time all cases in turn; one round before the first is not counted, as it fills the system's file cache."""
    taken: dict[str, list[Taken]] = {name: [] for name in cases}
    for repeat in range(repeats + 1):
        for name, arguments in cases.items():
            seconds = seconds_of(arguments)
            if repeat:
                taken[name].append(seconds)
    cells = {
        name: {
            "min_ms": 1e3 * min(each.processor for each in times),
            "median_ms": 1e3 * statistics.median(each.processor for each in times),
            "median_wall_ms": 1e3 * statistics.median(each.wall for each in times),
        }
        for name, times in taken.items()
    }
    for name, other, clock in (("import peft_vprompt", "import peft", "processor"), (FIRST, BASE, "wall")):
        pairs = zip(taken[name], taken[other], strict=True)
        cells[name]["ratio"] = statistics.median(getattr(a, clock) / getattr(b, clock) for a, b in pairs)
    return cells


def with_model(inputs: Inputs, folder: Path) -> dict[str, list[str]]:
    """Save a model, an adapter on it and an image; return the cases that they are for."""
    model = inputs.save_clip(folder / "clip")
    adapter = get_peft_model(inputs.clip(), ContextOptConfig(class_names=inputs.class_names(CLASSES)))
    adapter.save_pretrained(folder / "adapter")
    Image.effect_noise((500, 375), 60).convert("RGB").save(folder / "image.jpg")
    return {
        BASE: ["-c", LOAD, str(model)],
        FIRST: ["-c", ANSWER, str(model), str(folder / "adapter"), str(folder / "image.jpg")],
    }


def read_names(inputs: Inputs, repeats: int, count: int = 1000) -> dict[str, float]:
    """Time tokenising and packing class names, in milliseconds of the wall clock."""
    tokenizer = inputs.load_tokenizer()
    model = get_peft_model(inputs.clip(), ContextOptConfig())
    samples = []
    for repeat in range(repeats + 1):
        names = [f"{name} {repeat}" for name in inputs.class_names(count)]
        start = time.perf_counter()
        model.set_class_names(names, tokenizer=tokenizer)
        model.class_name_classifier.classes.pack(0, count, 0, torch.device("cpu"))
        samples.append(1e3 * (time.perf_counter() - start))
    return {"min_ms": min(samples[1:]), "median_ms": statistics.median(samples[1:])}


def main(
    output: Annotated[Path, typer.Option(help="Folder for startup.json.")] = ROOT / "docs/results/benchmarks",
    repeats: Annotated[int, typer.Option(help="Runs of every case.", min=1)] = 7,
    shape: Annotated[str, typer.Option(help="'ViT-B/16' or 'tiny'.")] = "ViT-B/16",
    tokenizer: Annotated[str | None, typer.Option(help="Folder or Hub id; default: the embedded model's.")] = None,
):
    """Measure the start of the command line and of the package, and write the figures down."""
    inputs = Inputs(shape, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        cells = measure(CASES | with_model(inputs, Path(folder)), repeats)
    cells[NAMES] = read_names(inputs, repeats)
    for name, cell in cells.items():
        typer.echo(f"{name}: {cell['median_ms']:.0f} ms, at best {cell['min_ms']:.0f} ms")
    result = {
        "experiment": "startup",
        "title": "Start",
        "clock": "processor",
        "shape": shape,
        "repeats": repeats,
        "bars": [verdict(bar, cells) for bar in BARS],
        "cells": cells,
        "commit": commit("peft_vprompt", "vprompt"),
        "environment": environment(),
    }
    write_json(result, output / "startup.json")


if __name__ == "__main__":
    typer.run(main)
