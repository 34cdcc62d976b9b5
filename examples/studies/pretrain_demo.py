"""Pretrain the embedded CLIP on the demo world, from random weights: `python -m examples.studies.pretrain_demo --output DIR`.

Tokenizer, image tower and text tower are trained on pictures that `world` draws as they are needed; nothing is read from
disk or the network. The same options give the same weights on the same kind of machine. `training.json` beside the weights
records the options, the learning curve and what was reached.
"""

import math
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import PIL
import torch
import transformers
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset
from transformers import (
    CLIPImageProcessorPil,
    CLIPTokenizer,
    PreTrainedModel,
    get_cosine_schedule_with_warmup,
)

from peft_vprompt.demo.drawing import FILLS, IMAGE_SIZE, OUTLINES
from peft_vprompt.demo.task import TEMPLATE, demo_task
from peft_vprompt.demo.world import COLOURS, Scene, describe, render, sample_scene, simplify
from peft_vprompt.utils.io import atomic_files, write_json

from .tiny_clip import MAX_TOKENS, build_model, image_processor, train_tokenizer


TOKENIZER_SEED, EVALUATION_SEED, GROUP_SEED = 1_000_000, 999, 77
"""Streams of their own, apart from the training stream."""

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Options:
    """Everything that decides the outcome of a training run.

    Args:
        steps: Optimiser steps.
        batch_size: Image-caption pairs per step.
        group_size: Pairs in a row that share attributes, so that the contrast between them is about the other ones.
        easy_share: Share of the run during which some scenes are simplified (fewer and fewer of them, from all to none).
        learning_rate: AdamW's peak rate, for embeddings, norms, biases and projections.
        matrix_learning_rate: Muon's peak rate, for the weight matrices of the transformer layers.
        weight_decay: On all matrices.
        warmup_share: Share of the run with a rising learning rate; a cosine to zero follows.
        width: Width of both towers; heads are 32 wide.
        layers: Layers of the image tower.
        text_layers: Layers of the text tower.
        projection: Width of the common space.
        vocabulary: Most entries of the tokenizer.
        seed: Seed of the weights and of the training stream.
    """

    steps: int = 3750
    batch_size: int = 64
    group_size: int = 8
    easy_share: float = 0.5
    learning_rate: float = 1e-3
    matrix_learning_rate: float = 0.03
    weight_decay: float = 0.1
    warmup_share: float = 1 / 15
    width: int = 128
    layers: int = 4
    text_layers: int = 3
    projection: int = 64
    vocabulary: int = 1024
    seed: int = 0


class Stream(Dataset):
    """Image-caption pairs of the training world, drawn when they are asked for; pair `i` is always the same.

    Args:
        length: Number of pairs.
        seed: Seed of the stream.
        group_size: Pairs in a row that share attributes (1: all pairs are independent).
        easy_share: Share of the stream with simplified scenes among the others.
    """

    _SHARED = (("colour", "background", "fill"), ("colour", "background"), ())

    def __init__(self, length: int, seed: int, group_size: int = 1, easy_share: float = 0.0):
        self.length = length
        self.seed = seed
        self.group_size = group_size
        self.easy_share = easy_share

    def __len__(self) -> int:
        return self.length

    def scene(self, index: int) -> tuple[Scene, np.random.Generator]:
        """The scene of this pair, and the generator that goes on to draw and describe it."""
        rng = np.random.default_rng((self.seed, index))
        scene = sample_scene(rng)
        group = index // self.group_size
        if self.group_size > 1 and (shared := self._SHARED[group % len(self._SHARED)]):
            leader = sample_scene(np.random.default_rng((GROUP_SEED, group)))
            scene = replace(scene, **{name: getattr(leader, name) for name in shared})
        if self.easy_share and rng.random() < 1 - index / (self.easy_share * self.length):
            scene = simplify(scene, rng)
        return scene, rng

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        scene, rng = self.scene(index)
        return np.asarray(render(scene, rng)), describe(scene, rng)


def make_collate(tokenizer: CLIPTokenizer, processor: CLIPImageProcessorPil) -> Callable[..., Batch]:
    """Pairs -> the inputs of `CLIPModel`. The pictures have the right size already: only normalisation is left to do."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))

    def collate(pairs: list[tuple[np.ndarray, str]]) -> Batch:
        pictures, captions = zip(*pairs, strict=True)
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
        return {**tokenizer(list(captions), padding=True, return_tensors="pt"), "pixel_values": (pixels - mean) / std}

    return collate


def make_optimizers(model: PreTrainedModel, options: Options) -> list[torch.optim.Optimizer]:
    """Muon for the weight matrices inside the transformer layers, AdamW for everything else.

    Raises:
        RuntimeError: If this torch has no Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise RuntimeError(
            f"Pretraining needs torch 2.9 or later, for torch.optim.Muon. Received: torch {torch.__version__}."
        )
    matrices, others, vectors = [], [], []
    for name, parameter in model.named_parameters():
        inside = ".layers." in name
        (vectors if parameter.ndim < 2 else matrices if inside else others).append(parameter)
    adamw = torch.optim.AdamW(
        [{"params": others}, {"params": vectors, "weight_decay": 0.0}],
        lr=options.learning_rate,
        betas=(0.9, 0.98),
        eps=1e-6,
        weight_decay=options.weight_decay,
        fused=True,
    )
    muon = torch.optim.Muon(matrices, lr=options.matrix_learning_rate, weight_decay=options.weight_decay)
    return [adamw, muon]


def train(model: PreTrainedModel, batches: DataLoader, options: Options) -> Iterator[float]:
    """Train with CLIP's contrastive loss on `batches`; yields the loss after each step."""
    optimizers = make_optimizers(model, options)
    warmup = round(options.warmup_share * options.steps)
    schedules = [get_cosine_schedule_with_warmup(optimizer, warmup, options.steps) for optimizer in optimizers]
    for batch in batches:
        loss = model.train()(**batch, return_loss=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stage in (*optimizers, *schedules):
            stage.step()
        model.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        yield loss.item()


@torch.no_grad()
def attribute_accuracy(
    model: PreTrainedModel, tokenizer: CLIPTokenizer, processor: CLIPImageProcessorPil, count: int
) -> dict[str, float]:
    """Zero-shot accuracy (percent) on `count` fresh scenes of the training world.

    Returns:
        `fill`, `colour`, `shape`: this attribute told among all its values, given the two other ones; `name`: the whole
        name told among all combinations of fill, colour and shape.
    """
    model.eval()
    stream = Stream(count, EVALUATION_SEED)
    batches = DataLoader(stream, batch_size=250, collate_fn=make_collate(tokenizer, processor))
    images = torch.cat(
        [model.get_image_features(pixel_values=batch["pixel_values"]).pooler_output for batch in batches]
    )
    values = {"fill": list(FILLS), "colour": list(COLOURS), "shape": list(OUTLINES)}
    names = [f"{fill} {colour} {shape}" for fill in FILLS for colour in COLOURS for shape in OUTLINES]
    texts = tokenizer([f"a picture of a {name}." for name in names], padding=True, return_tensors="pt")
    texts = torch.nn.functional.normalize(model.get_text_features(**texts).pooler_output, dim=-1)
    scores = (images @ texts.T).view(count, *map(len, values.values()))

    scenes = [stream.scene(index)[0] for index in range(count)]
    truth = [torch.tensor([options.index(getattr(s, key)) for s in scenes]) for key, options in values.items()]
    best = scores.flatten(1).argmax(1)
    hits = {"name": best == torch.from_numpy(np.ravel_multi_index([t.numpy() for t in truth], scores.shape[1:]))}
    for axis, key in enumerate(values):
        others = [t for k, t in enumerate(truth) if k != axis]
        given = scores.movedim(axis + 1, 1)[torch.arange(count), :, others[0], others[1]]
        hits[key] = given.argmax(1) == truth[axis]
    return {key: round(100 * hit.float().mean().item(), 1) for key, hit in hits.items()}


@torch.no_grad()
def task_accuracy(
    model: PreTrainedModel, tokenizer: CLIPTokenizer, processor: CLIPImageProcessorPil
) -> dict[str, float]:
    """Zero-shot accuracy (percent) on the downstream task: each half of the classes told among its own names."""
    model.eval()
    test = demo_task("test")
    pixels = processor(list(test["image"]), return_tensors="pt").pixel_values
    labels = torch.tensor(test["label"])
    captions = [TEMPLATE.format(name) for name in test.features["label"].names]
    texts = model.get_text_features(**tokenizer(captions, padding=True, return_tensors="pt")).pooler_output
    texts = torch.nn.functional.normalize(texts, dim=-1)
    scores = model.get_image_features(pixel_values=pixels).pooler_output @ texts.T
    half = math.ceil(len(captions) / 2)
    halves = {"base": (labels < half, slice(0, half)), "novel": (labels >= half, slice(half, None))}
    return {
        name: round(
            100 * (scores[rows, columns].argmax(1) + (columns.start or 0) == labels[rows]).float().mean().item(), 1
        )
        for name, (rows, columns) in halves.items()
    }


README = """# The embedded CLIP

A small `CLIPModel` ({parameters:,} parameters, float32) that lives inside the package, so that every example and test runs
without a network. Images {size}x{size}, patches of 8, {layers} image layers and {text_layers} text layers of width {width},
projection {projection}, {max_tokens} positions, own byte-level BPE of {vocabulary} entries with CLIP's conventions.

Trained from random weights with the contrastive loss on {pairs:,} captioned pictures of a procedural world of shapes, colours,
fills, backgrounds, lights and rendering styles; each picture was shown once. It knows nothing else: it is a test bed for
prompt learning, not a model of photographs.

Zero-shot, percent correct. Fresh pictures of the training world: {world}. The downstream task in a style that the model
never saw (`peft_vprompt.demo.demo_task`, caption "{template}"): {task}.

`training.json` holds the options, versions, learning curve and time. To train it again:

    python -m examples.studies.pretrain_demo --output clip
"""


def save(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: CLIPTokenizer,
    processor: CLIPImageProcessorPil,
    record: dict,
    template: str = README,
) -> None:
    """Write weights, tokenizer, processor, `training.json` and `README.md`; each file appears whole or not at all."""
    with atomic_files(folder) as scratch:
        for part in (model, tokenizer, processor):
            part.save_pretrained(scratch)
        options = record["options"]
        readme = template.format(
            parameters=record["parameters"],
            size=IMAGE_SIZE,
            max_tokens=MAX_TOKENS,
            pairs=options["steps"] * options["batch_size"],
            world=_listed(record["world_accuracy"]),
            task=_listed(record["task_accuracy"]),
            template=TEMPLATE,
            **options | {"vocabulary": len(tokenizer)},
        )
        (scratch / "README.md").write_text(readme, encoding="utf-8")
        write_json(record, scratch / "training.json")
        for file in scratch.iterdir():
            file.chmod(0o644)


def _listed(numbers: dict[str, float]) -> str:
    return ", ".join(f"{name} {value}" for name, value in numbers.items())


def pretrain(
    options: Options,
    workers: int = 1,
    console: Console | None = None,
    build: Callable[[Options, CLIPTokenizer], PreTrainedModel] = build_model,
):
    """Train tokenizer and model from nothing.

    Args:
        options: What decides the outcome.
        workers: Processes that draw pictures; the outcome does not depend on it.
        console: Where the progress bar goes.
        build: Makes the model with random weights.

    Returns:
        Model, tokenizer, image processor and the record for `training.json`.
    """
    torch.manual_seed(options.seed)
    words = Stream(10_000, TOKENIZER_SEED)
    tokenizer = train_tokenizer([describe(*words.scene(index)) for index in range(len(words))], options.vocabulary)
    processor, model = image_processor(), build(options, tokenizer)
    stream = Stream(options.steps * options.batch_size, options.seed, options.group_size, options.easy_share)
    batches = DataLoader(
        stream, options.batch_size, num_workers=workers, collate_fn=make_collate(tokenizer, processor)
    )
    parts = (model, tokenizer, processor)

    started, started_cpu, curve, losses = time.perf_counter(), time.process_time(), [], []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("pretraining", total=options.steps)
        for step, loss in enumerate(train(model, batches, options), start=1):
            losses.append(loss)
            progress.update(bar, advance=1, description=f"loss {np.mean(losses[-50:]):.3f}")
            if step % max(1, options.steps // 10) == 0:
                curve.append(
                    {"step": step, "loss": round(float(np.mean(losses[-50:])), 4), **attribute_accuracy(*parts, 500)}
                )
                progress.console.print(_listed(curve[-1]))
    record = {
        "options": asdict(options),
        "parameters": model.num_parameters(),
        "world_accuracy": attribute_accuracy(*parts, 2000),
        "task_accuracy": task_accuracy(*parts),
        "template": TEMPLATE,
        "curve": curve,
        "seconds": round(time.perf_counter() - started),
        "cpu_seconds": round(time.process_time() - started_cpu),
        "machine": {
            "system": platform.system(),
            "architecture": platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, np, PIL)},
    }
    return *parts, record


def main(
    output: Annotated[Path, typer.Option(help="Folder for the weights, the tokenizer and training.json.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = Options.steps,
    batch_size: Annotated[int, typer.Option(min=2, help="Image-caption pairs per step.")] = Options.batch_size,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the pictures.")] = Options.seed,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw pictures.")] = 1,
) -> None:
    """Pretrain the embedded CLIP from random weights on the procedural demo world (the embedded one took 35 minutes on one busy core)."""
    torch.set_num_threads(threads)
    console = Console()
    *parts, record = pretrain(Options(steps=steps, batch_size=batch_size, seed=seed), workers, console)
    save(output, *parts, record)
    console.print(f"World: {_listed(record['world_accuracy'])}. Task: {_listed(record['task_accuracy'])}.")
    console.print(f"Saved to {output}.")


if __name__ == "__main__":
    typer.run(main)
