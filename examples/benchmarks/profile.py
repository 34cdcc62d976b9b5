"""Where the time of a training step goes: `python -m examples.benchmarks.profile --help`.

A bare loop (forward, backward, SGD) is timed beside its matrix products alone and beside the stock `Trainer`; then
`torch.profiler` tells what the operators of one step take by themselves, by kind. What is left of the step is Python, the
dispatcher and the profiler's own work.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch.profiler import ProfilerActivity, profile
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from peft_vprompt.utils.environment import environment
from peft_vprompt.utils.io import read_json, write_json

from .cases import Case, grid
from .inputs import Inputs
from .measure import CLOCKS, keep_freed_memory
from .results import ROOT, commit
from .sides import Sides, build


FILE = ROOT / "docs/results/benchmarks/profile.json"

#: Kinds of operators and the beginnings of their names, the first that fits.
KINDS: dict[str, tuple[str, ...]] = {
    "matrix products": ("addmm", "mm", "bmm", "baddbmm", "mkldnn", "convolution", "linear", "_convolution", "addbmm"),
    "attention": ("_scaled_dot", "_softmax", "softmax", "masked_fill", "_efficient_attention", "_flash_attention"),
    "norms": ("native_layer_norm", "layer_norm", "linalg_vector_norm"),
    "activation": ("sigmoid", "silu"),
    "copies": ("copy", "cat", "index", "clone", "contiguous", "_to_copy", "repeat", "zero_", "fill_", "slice_backward")
    + ("gather", "embedding", "select_backward", "stack", "empty", "new_", "resize"),
    "sums and scales": ("add", "mul", "sub", "div", "sum", "neg", "exp"),
}
REST = "other operators"
OUTSIDE = "outside of operators"

CASES = grid(Case("coop"), classes=(10,), batch=(1,), method=("coop", "maple", "rpo", "mrpo")) + grid(
    Case("coop"), classes=(100,), batch=(4,), method=("coop", "maple", "rpo", "mrpo")
)


def kind_of(operator: str) -> str:
    """Return the kind of an operator, of `KINDS`."""
    name = operator.removeprefix("aten::")
    return next((kind for kind, beginnings in KINDS.items() if name.startswith(beginnings)), REST)


def bare_step(sides: Sides, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Return a function that makes one step of training as a loop of one's own does."""

    def step() -> None:
        optimizer.zero_grad()
        sides.run["ours"]()
        optimizer.step()

    return step


def timed(step: Callable, seconds: float, clock: Callable[[], float], least: int = 5, most: int = 200) -> float:
    """Return the median milliseconds of `step`, which is run for some seconds after a first time."""
    step()
    samples: list[float] = []
    while len(samples) < least or (sum(samples) < seconds and len(samples) < most):
        start = clock()
        step()
        samples.append(clock() - start)
    return 1e3 * statistics.median(samples)


class _Ends(TrainerCallback):
    """Note when each step of a Trainer ended."""

    def __init__(self, clock: Callable[[], float]):
        self.clock = clock
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        """Note the time."""
        self.ends.append(self.clock())


def trainer_step(sides: Sides, inputs: Inputs, case: Case, steps: int) -> float:
    """Return the median milliseconds from one end of a step to the next in the stock Trainer, images in memory."""
    images = inputs.images(case.batch).cpu()
    labels = inputs.labels(case.batch, case.classes).cpu()
    rows = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]
    ends = _Ends(CLOCKS[inputs.clock])
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=case.batch,
            learning_rate=1e-9,
            optim="sgd",
            max_grad_norm=0.0,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=inputs.device == "cpu",
        )
        Trainer(sides.model, arguments, train_dataset=rows * steps, callbacks=[ends]).train()
    return 1e3 * statistics.median(later - earlier for earlier, later in zip(ends.ends, ends.ends[1:], strict=False))


def operators_of(step: Callable, steps: int, device: str) -> dict:
    """Return what the operators of a step take by themselves, in milliseconds: by kind, and the longest by name."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device != "cpu" else [])
    with profile(activities=activities) as profiler:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        wall = 1e3 * (time.perf_counter() - start) / steps
    events = [event for event in profiler.key_averages() if event.key.startswith(("aten::", "mkldnn"))]
    kinds = dict.fromkeys((*KINDS, REST), 0.0)
    table = []
    for event in events:
        taken = event.self_cpu_time_total / 1e3 / steps
        kinds[kind_of(event.key)] += taken
        table.append([event.key.removeprefix("aten::"), round(event.count / steps, 1), round(taken, 3)])
    kinds[OUTSIDE] = wall - sum(kinds.values())
    table.sort(key=lambda row: row[2], reverse=True)
    return {
        "profiled_ms": wall,
        "calls": round(sum(row[1] for row in table)),
        "kinds": {kind: round(taken, 3) for kind, taken in kinds.items()},
        "operators": table[:25],
    }


def measure(case: Case, inputs: Inputs, seconds: float) -> dict:
    """Return all there is to know of the step of one case."""
    set_seed(0)
    sides = build(case, inputs)
    clock = CLOCKS[inputs.clock]
    optimizer = torch.optim.SGD(list(sides.trained.values()), 1e-9, momentum=0.9)
    step = bare_step(sides, optimizer)
    bare = timed(step, seconds, clock)
    floor = timed(sides.run["floor"], seconds / 2, clock)
    update = timed(optimizer.step, 0.1, clock)
    steps = max(3, min(30, round(1e3 * seconds / bare)))
    found = operators_of(step, max(2, steps // 3), inputs.device)
    return {
        "ms": bare,
        "floor_ms": floor,
        "floor_ratio": bare / floor,
        "optimizer_ms": update,
        "trainer_ms": trainer_step(sides, inputs, case, steps + 1),
        **found,
    }


def main(
    label: Annotated[str, typer.Option(help="What the figures stand under: before or after.")] = "after",
    only: Annotated[str, typer.Option(help="Methods, separated by commas.")] = "coop,maple,rpo,mrpo",
    output: Annotated[Path, typer.Option(help="JSON file, in which other labels stay.")] = FILE,
    shape: Annotated[str, typer.Option(help="'ViT-B/16' or 'tiny'.")] = "ViT-B/16",
    seconds: Annotated[float, typer.Option(help="For the repeats of a case.")] = 6,
    threads: Annotated[int, typer.Option(help="Threads on the CPU.")] = 2,
    clock: Annotated[str, typer.Option(help="wall, or processor (with one thread).")] = "wall",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    tokenizer: Annotated[str | None, typer.Option(help="Folder or Hub id; default: the embedded model's.")] = None,
    class_names: Annotated[str | None, typer.Option(help="JSON with class names; default: made up.")] = None,
):
    """Profile a step of each method and write the figures down under a label."""
    torch.set_num_threads(threads)
    if shape != "tiny":
        keep_freed_memory()
    inputs = Inputs(shape, tokenizer, class_names, device, dtype, threads, clock)
    chosen = [case for case in CASES if case.method in only.split(",")]
    if not chosen:
        raise typer.BadParameter(f"Expected methods among coop, maple, rpo, mrpo. Received: {only}.")
    cells = {}
    for case in chosen:
        cell = cells[case.key] = measure(case, inputs, seconds)
        typer.echo(
            f"{case.key}: {cell['ms']:.1f} ms, {cell['floor_ratio']:.2f} of its matrix products, {cell['calls']} operators; "
            f"in the Trainer {cell['trainer_ms']:.1f} ms"
        )
    results = read_json(output, missing_ok=True) or {"experiment": "profile"}
    results[label] = {
        "shape": shape,
        "device": device,
        "dtype": dtype,
        "clock": clock,
        "threads": threads,
        "cells": cells,
        "commit": commit(),
        "environment": environment(),
    }
    write_json(results, output)


if __name__ == "__main__":
    typer.run(main)
