"""Classes shared out over two processes: `python -m examples.benchmarks.sharding --help`.

CoOp's text side, forward and backward, with `shard_classes` and without, in two gloo processes each: peak memory of a
process, time of a step, and whether the gradients are those of one process.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from peft import get_peft_model
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from peft_vprompt import ContextOptConfig
from peft_vprompt.utils.environment import environment
from peft_vprompt.utils.io import write_json

from .inputs import Inputs
from .measure import read_memory
from .results import ROOT, commit


PROCESSES, STEPS = 2, 3


def process(rank: int, port: int, inputs: Inputs, classes: int, shard: bool, results: str) -> None:
    """Take some steps on cached image features; the first process writes down what it saw."""
    address = {"RANK": rank, "WORLD_SIZE": PROCESSES, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in address.items()}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    names = inputs.class_names(classes)
    config = ContextOptConfig(class_names=names, shard_classes=shard, tokenizer_name_or_path=inputs.tokenizer_path)
    torch.manual_seed(0)
    model = get_peft_model(inputs.clip().eval(), config)
    wrapped = DistributedDataParallel(model)
    features = torch.nn.functional.normalize(
        torch.randn(4 * PROCESSES, model.get_base_model().config.projection_dim), dim=-1
    )
    labels = inputs.labels(4 * PROCESSES, classes)
    mine = slice(4 * rank, 4 * rank + 4)
    before, seconds = read_memory("/proc/self/status", "VmRSS"), []
    for _ in range(STEPS):
        start = time.perf_counter()
        model.zero_grad()
        wrapped(image_features=features[mine], labels=labels[mine]).loss.backward()
        seconds.append(time.perf_counter() - start)
    peak = read_memory("/proc/self/status", "VmHWM") - before
    (gradient,) = (p.grad.clone() for p in model.parameters() if p.requires_grad)
    if rank == 0:
        model.active_peft_config.shard_classes = False
        model.zero_grad()
        model(image_features=features, labels=labels).loss.backward()
        (alone,) = (p.grad for p in model.parameters() if p.requires_grad)
        error = float((gradient - alone).norm() / alone.norm())
        torch.save({"peak_bytes": peak, "milliseconds": 1e3 * min(seconds), "gradient_error": error}, results)
    distributed.barrier()  # who leaves first would take the connections from under the other
    del wrapped
    distributed.destroy_process_group()


def main(
    output: Annotated[Path, typer.Option(help="Folder for sharding_cpu_float32.json.")] = ROOT
    / "docs/results/benchmarks",
    shape: Annotated[str, typer.Option(help="'ViT-B/16' or 'tiny'.")] = "ViT-B/16",
    classes: Annotated[int, typer.Option(help="Number of classes.")] = 1000,
    tokenizer: Annotated[str | None, typer.Option(help="Folder or Hub id; default: the embedded model's.")] = None,
    class_names: Annotated[str | None, typer.Option(help="JSON with class names; default: made up.")] = None,
):
    """Measure two processes with and without shared-out classes and write the figures down."""
    inputs = Inputs(shape=shape, tokenizer=tokenizer, names_file=class_names, threads=1)
    sides = {}
    output.mkdir(parents=True, exist_ok=True)
    for side, shard in (("every process encodes all", False), ("shard_classes", True)):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        partial = output / ".sharding.partial"
        multiprocessing.spawn(process, (port, inputs, classes, shard, str(partial)), nprocs=PROCESSES)
        sides[side] = torch.load(partial, weights_only=True)
        partial.unlink()
        typer.echo(f"{side}: {sides[side]}")
    result = {"shape": shape, "classes": classes, "processes": PROCESSES, "sides": sides, "commit": commit()}
    write_json(result | {"environment": environment()}, output / "sharding_cpu_float32.json")


if __name__ == "__main__":
    typer.run(main)
