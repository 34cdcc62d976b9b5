"""Images per second of an adapter and of what it is exported to: `python -m examples.benchmarks.exported --help`.

The frozen image encoder alone, the adapter's classification call (as it is, in bfloat16, compiled), the graph of
`torch.export`, ONNX Runtime and its 8-bit form, on the same pixels, taking turns; how often each gives the adapter's label on
labelled images; and the most memory of a process that loads one of them and classifies a batch.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
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
from peft_vprompt.utils.io import atomic_path, read_json, write_json

from .measure import CLOCKS, keep_freed_memory
from .render import RESULTS
from .results import ROOT, commit
from .tables import DASH, markdown


PAGE = ROOT / "docs/predict_and_export.md"
FILE = "exported_cpu_float32.json"


ENCODER, ADAPTER, BF16, COMPILED = "image encoder alone", "adapter", "adapter, bf16", "adapter, torch.compile"
#: Seconds before each run: the threads of ONNX Runtime wait for more to do, and take the cores of the side after it.
SETTLED = 0.2
#: What is exported, by the name of the side.
EXPORTED = {
    "torch.export": {"format": "torch-export"},
    "ONNX": {"format": "onnx"},
    "ONNX, int8": {"format": "onnx", "int8": True},
}

#: A program that classifies a batch with an adapter or with an exported folder and prints the most memory it had.
MEMORY = """
import sys
import numpy as np

size, batch, threads, compiled, *arguments = sys.argv[1:]
pixels = np.zeros((int(batch), 3, int(size), int(size)), np.float32)
if len(arguments) == 1:
    sys.path.insert(0, arguments[0])
    from predict import Predictor

    run = Predictor(arguments[0]).logits
else:
    import torch
    from peft_vprompt.export import Classifier

    torch.set_num_threads(int(threads))
    adapter, model, precision = arguments
    classifier = Classifier.from_pretrained(adapter, model or None, device="cpu", precision=precision)
    if int(compiled):
        classifier.model.forward = torch.compile(classifier.model.forward)
    run = lambda pixels: classifier.logits_of({"pixel_values": torch.from_numpy(pixels)})
run(pixels)
run(pixels)
line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(line.split()[1]) * 1024)
"""


def sides(
    adapter: str, model: str | None, compiled: bool, folder: Path
) -> tuple[Classifier, dict[str, Callable], dict]:
    """Return the adapter, what makes logits of pixels by the name of the side, and size and difference of what was exported."""
    load = lambda precision: Classifier.from_pretrained(adapter, model, device="cpu", precision=precision)  # noqa: E731
    classifier, frozen = load("float32"), load("float32")
    frozen.model.base_model.disable_adapter_layers()  # for good: switched on again, class features are computed anew
    runs: dict[str, Callable] = {
        ENCODER: lambda pixels: frozen_image(frozen, pixels),
        ADAPTER: logits_by(classifier),
        BF16: logits_by(load("bf16")),
    }
    if compiled:
        other = load("float32")
        other.model.forward = torch.compile(other.model.forward)
        runs[COMPILED] = logits_by(other)
    files = {}
    for number, (name, options) in enumerate(EXPORTED.items()):
        exported = export(classifier, folder / str(number), **options)
        runs[name] = standalone.Predictor(exported.folder).logits
        files[name] = {"folder": exported.folder, "bytes": exported.bytes, "difference": exported.difference}
    return classifier, runs, files


def logits_by(classifier: Classifier) -> Callable[[np.ndarray], np.ndarray]:
    """Return what makes logits of pixels by an adapter."""
    return lambda pixels: classifier.logits_of({"pixel_values": torch.from_numpy(pixels)}).float().numpy()


def memory_of(arguments: list[str], size: int, batch: int, threads: int, compiled: bool = False) -> int:
    """Return the most bytes of a process that loads an adapter or an exported folder and classifies a batch."""
    command = [sys.executable, "-c", MEMORY, *map(str, (size, batch, threads, int(compiled))), *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


@torch.no_grad()
def frozen_image(classifier: Classifier, pixels: np.ndarray) -> np.ndarray:
    """Encode images with a model whose adapter is off."""
    return classifier.model.encode_images(torch.from_numpy(pixels)).numpy()


def measure(runs: dict[str, Callable], size: int, batch: int, repeats: int, clock: str) -> dict[str, dict]:
    """Return milliseconds by image of each side; all take turns, and a first round is not counted."""
    pixels = np.random.default_rng(0).standard_normal((batch, 3, size, size), dtype=np.float32)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            time.sleep(SETTLED)
            start = CLOCKS[clock]()
            run(pixels)
            if repeat:
                seconds[name].append(CLOCKS[clock]() - start)
    return {name: {"ms_per_image": 1e3 * statistics.median(taken) / batch} for name, taken in seconds.items()}


def table(result: dict) -> str:
    """The table of the page for one adapter: milliseconds by image, how many times faster than it, size, memory, agreement."""
    batches = list(result["cells"])
    headings = [
        "",
        *(heading for batch in batches for heading in (f"{batch} at once, ms per image", f"{batch} at once, faster")),
        "MB",
        "Memory, MB",
        "Same label, %",
    ]
    rows = []
    for name in result["cells"][batches[-1]]:
        size = result["files"].get(name)
        agreement = result["agreement"].get(name)
        memory = result["memory"].get(name)
        row = [name]
        for cell in result["cells"].values():
            taken = cell[name]["ms_per_image"]
            row += [f"{taken:.1f}", f"{cell[ADAPTER]['ms_per_image'] / taken:.1f}x"]
        row += [f"{size['bytes'] / 1e6:.1f}" if size else DASH, f"{memory / 1e6:,.0f}" if memory else DASH]
        rows.append([*row, f"{agreement['agreement']:.1f}" if agreement else DASH])
    return f"{result['about']}\n\n{markdown(headings, rows)}"


def with_tables(text: str, results: dict) -> str:
    """The page with fresh tables between its marks."""
    begin, end = "<!-- exported: generated by examples/benchmarks/exported.py -->", "<!-- end of exported -->"
    tables = "\n\n".join(table(result) for result in results["adapters"].values())
    return re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{tables}\n{end}", text, flags=re.DOTALL)


def main(
    adapter: Annotated[str, typer.Option(help="Folder of a trained adapter on a CLIP.")],
    name: Annotated[str, typer.Option(help="What its figures stand under; those of others stay.")] = "adapter",
    about: Annotated[str, typer.Option(help="A sentence on it that stands above its table.")] = "An adapter.",
    output: Annotated[Path, typer.Option(help="Folder for exported_cpu_float32.json.")] = RESULTS,
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
    compiled: Annotated[bool, typer.Option(help="Compile the adapter too.")] = True,
):
    """Measure all sides, let them agree, and write the figures down."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    batches = batches or [1, 32]
    with tempfile.TemporaryDirectory() as folder:
        classifier, runs, files = sides(adapter, model, compiled, Path(folder))
        size = classifier.preprocess([standalone.Image.new("RGB", (300, 300))])["pixel_values"].shape[-1]
        cells = {str(batch): measure(runs, size, batch, repeats, clock) for batch in batches}
        own = {ADAPTER: ("float32", False), BF16: ("bf16", False), COMPILED: ("float32", True)}
        memory = {
            side: memory_of([adapter, model or "", precision], size, batches[-1], threads, compiled=compiles)
            for side, (precision, compiles) in own.items()
            if side in runs
        }
        memory |= {
            side: memory_of([str(file.pop("folder"))], size, batches[-1], threads) for side, file in files.items()
        }
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
            agreement = {
                side: compare(classifier, run, rows)._asdict()
                for side, run in runs.items()
                if side not in (ENCODER, ADAPTER)
            }
    for batch, cell in cells.items():
        typer.echo(
            f"{batch} images: " + ", ".join(f"{side} {value['ms_per_image']:.1f} ms" for side, value in cell.items())
        )
    old = read_json(output / FILE, missing_ok=True) or {}
    result = {
        "about": about,
        "classes": len(classifier.class_names),
        "image_size": size,
        "clock": clock,
        "threads": threads,
        "repeats": repeats,
        "files": files,
        "cells": cells,
        "memory": memory,
        "agreement": agreement,
        "commit": commit(),
        "environment": environment(),
    }
    results = {
        "experiment": "exported",
        "title": "Exported models",
        "adapters": old.get("adapters", {}) | {name: result},
    }
    output.mkdir(parents=True, exist_ok=True)
    write_json(results, output / FILE)
    if (output / FILE).resolve() == (RESULTS / FILE).resolve():
        with atomic_path(PAGE) as partial:
            partial.write_text(with_tables(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
