"""How fast images are loaded beside the step that takes them: `python -m examples.benchmarks.loader --help`.

JPEGs of two sizes are made (of a photo as data sets have them, and of one as a camera gives it), and loaded as
`vprompt train` does, decoding, augmentation and batches included: by several numbers of processes, whole and as drafts
(`--draft-jpeg`). Beside it stands how many images a second the steps of two methods take on this machine, and what a step
of another length would wait for: a step that only waits, as for a graphics card, is fed by as many processes as
`--workers auto` chooses there.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from datasets import Dataset
from PIL import Image
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor, default_data_collator

from peft_vprompt.data.augmentation import AugmentedRows
from peft_vprompt.data.images import RGBImage, as_drafts
from peft_vprompt.data.transforms import TrainTransform, image_size
from peft_vprompt.training.loading import enough_workers, usable_cores
from peft_vprompt.utils.environment import environment
from peft_vprompt.utils.io import write_json

from .cases import Case
from .inputs import Inputs
from .measure import keep_freed_memory
from .results import ROOT, commit
from .sides import build


FILE = ROOT / "docs/results/benchmarks/loader.json"

#: Width and height of the images, by what they stand for.
SIZES = {"photo, 500 x 375": (500, 375), "camera, 4000 x 3000": (4000, 3000)}

#: Files that are made, and read again and again: making one of a camera takes longer than reading it.
DISTINCT = 8

#: Batches that each process loads ahead.
AHEAD = 2

#: Share of the loader's own speed at which a step is to be fed without waiting.
FED = 0.9


def make_images(folder: Path, size: tuple[int, int], count: int) -> Dataset:
    """Write JPEGs that look like nothing but have structure of every size, as photos have."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    paths = []
    for index in range(min(count, DISTINCT)):
        pixels = np.zeros((size[1], size[0], 3), dtype=np.float32)
        for cells in (4, 16, 64, 256):
            coarse = random.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8)
            pixels += np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), dtype=np.float32) / 4
        paths.append(str(folder / f"{index}.jpg"))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    paths = [paths[index % len(paths)] for index in range(count)]
    rows = Dataset.from_dict({"image": paths, "label": [0] * count})
    return rows.cast_column("image", RGBImage())


def loader_of(rows: Dataset, processor, workers: int, batch_size: int) -> DataLoader:
    """Return the batches of one epoch, as a training has them."""
    return DataLoader(
        AugmentedRows(rows, TrainTransform(processor)),
        batch_size,
        shuffle=True,
        collate_fn=default_data_collator,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        pin_memory=torch.cuda.is_available(),
        drop_last=True,
    )


def loading_speed(rows: Dataset, processor, workers: int, batch_size: int, step: float = 0) -> float:
    """Return images per second of one epoch, without its start: each process's first batches, that were made meanwhile.

    Args:
        rows: the images.
        processor: of the model.
        workers: processes that load them.
        batch_size: images of a batch.
        step: seconds of the step that takes the batches. As on a graphics card it uses none of the processor's time, and
            the next batch is fetched meanwhile.
    """
    batches = iter(loader_of(rows, processor, workers, batch_size))
    for _ in range(workers * AHEAD):
        next(batches)
    count, start = 0, time.perf_counter()
    done = start
    for batch in batches:
        time.sleep(max(0, done - time.perf_counter()))
        done = time.perf_counter() + step
        count += len(batch["labels"])
    return count / (time.perf_counter() - start)


def step_speed(inputs: Inputs, method: str, classes: int, batch: int, seconds: float) -> float:
    """Return images per second that the steps of a method take."""
    step = build(Case(method, classes=classes, batch=batch), inputs).run["ours"]
    step()
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return batch / float(np.median(times))


def measure_size(rows: Dataset, processor, workers: Sequence[int], batch_size: int, edge: int) -> dict[str, dict]:
    """Return what is measured of images of one size."""
    drafts = as_drafts(rows, 2 * edge)
    speeds = {
        name: {str(count): loading_speed(images, processor, count, batch_size) for count in workers}
        for name, images in (("whole", rows), ("draft", drafts))
    }
    best = max(speeds["whole"].values())
    step = batch_size / (FED * best)
    chosen = enough_workers(batch_size / speeds["whole"]["0"], step, usable_cores())
    fed = loading_speed(rows, processor, chosen, batch_size, step)
    waits = {"step_images_per_second": FED * best, "workers": chosen, "images_per_second": fed}
    return {
        "images": len(rows),
        "batch_size": batch_size,
        "images_per_second": speeds,
        "fed": waits | {"share": fed / (FED * best)},
    }


def main(
    output: Annotated[Path, typer.Option(help="JSON file.")] = FILE,
    shape: Annotated[str, typer.Option(help="'ViT-B/16' or 'tiny'.")] = "ViT-B/16",
    images: Annotated[
        int, typer.Option(help="Small JPEGs; of the large ones a quarter, in batches of a quarter.")
    ] = 2048,
    batch_size: Annotated[int, typer.Option(help="Images of a batch, of small ones.")] = 32,
    workers: Annotated[list[int] | None, typer.Option(help="Processes; default: 0, 1, 2, 4 ... the cores.")] = None,
    classes: Annotated[int, typer.Option(help="Classes of the steps.")] = 100,
    seconds: Annotated[float, typer.Option(help="For the steps of a method.")] = 10,
    threads: Annotated[int, typer.Option(help="Threads of the steps.")] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
):
    """Measure and write the figures down."""
    torch.set_num_threads(threads)
    if shape != "tiny":
        keep_freed_memory()
    cores = usable_cores()
    counts = workers or [0, *(2**k for k in range(10) if 2**k <= cores)]
    inputs = Inputs(shape, device=device, threads=threads)
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        processor = AutoImageProcessor.from_pretrained(inputs.save_clip(Path(folder) / "clip"), backend="pil")
        edge = min(image_size(processor))
        for name, size in SIZES.items():
            share = 1 if size[0] < 1000 else 4
            rows = make_images(Path(folder) / name, size, images // share)
            sizes[name] = measure_size(rows, processor, counts, batch_size // share, edge)
            typer.echo(f"{name}: {sizes[name]['images_per_second']}, fed {sizes[name]['fed']['share']:.2f}")
    steps = {}
    for method, batch in (("coop", 32), ("maple", 4)):
        speed = steps[method] = step_speed(inputs, method, classes, batch, seconds)
        typer.echo(f"{method}: {speed:.1f} images a second")
    whole = {name: cell["images_per_second"]["whole"] for name, cell in sizes.items()}
    result = {
        "experiment": "loader",
        "title": "Loading images",
        "shape": shape,
        "classes": classes,
        "sizes": sizes,
        "steps": steps,
        "fed": FED,
        "ratio": {
            name: {method: speeds["0"] / speed for method, speed in steps.items()} for name, speeds in whole.items()
        },
        "threads": threads,
        "cores": cores,
        "commit": commit(),
        "environment": environment(),
    }
    write_json(result, output)


if __name__ == "__main__":
    typer.run(main)
