"""Pretrain a small CLIP on the demo world, from random weights: `python -m examples.studies.pretrain_demo --output DIR`.

With `--tower vit` it is the embedded one, with `--tower resnet` a `ResNetCLIPModel` to compare it with: the same pictures,
captions, tokenizer and loss; with `--locked-text` the very text tower of the embedded one. All is trained on pictures that
`world` draws as they are needed; nothing else is read. The same options give the same weights on the same kind of machine;
started again, a run that was stopped goes on from its last tenth. `training.json` beside the weights records the options,
the learning curve and what was reached.
"""

import math
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import PIL
import torch
import transformers
import typer
from rich.console import Console
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import CLIPImageProcessorPil, CLIPTokenizer, PreTrainedModel

from peft_vprompt.demo.drawing import FILLS, IMAGE_SIZE, OUTLINES
from peft_vprompt.demo.task import TEMPLATE, demo_task
from peft_vprompt.demo.world import COLOURS, Scene, describe, render, sample_scene, simplify
from peft_vprompt.utils.io import atomic_files, write_json
from peft_vprompt.utils.locks import only_writer

from .contrastive import Batch, Training, TrainingOptions, listed
from .tiny_clip import BUILDERS, MAX_TOKENS, Tower, image_processor, lock_text, train_tokenizer


TOKENIZER_SEED, EVALUATION_SEED, GROUP_SEED = 1_000_000, 999, 77
"""Streams of their own, apart from the training stream."""


@dataclass(frozen=True)
class Options(TrainingOptions):
    """Everything that decides the outcome of a training run; see also `TrainingOptions`.

    Args:
        group_size: Pairs in a row that share attributes, so that the contrast between them is about the other ones.
        easy_share: Share of the run during which some scenes are simplified (fewer and fewer of them, from all to none).
        tower: Architecture of the image tower.
        locked_text: Take the embedded CLIP's text tower, and keep it as it is.
        width: Width of the text tower and of the ViT, whose heads are 32 wide; the ResNet's stem has an eighth of it.
        layers: Layers of the ViT.
        text_layers: Layers of the text tower.
        projection: Width of the common space.
        vocabulary: Most entries of the tokenizer.
    """

    group_size: int = 8
    easy_share: float = 0.5
    tower: Tower = "vit"
    locked_text: bool = False
    width: int = 128
    layers: int = 4
    text_layers: int = 3
    projection: int = 64
    vocabulary: int = 1024


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
    return {key: round(100 * hit.double().mean().item(), 1) for key, hit in hits.items()}


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
            100 * (scores[rows, columns].argmax(1) + (columns.start or 0) == labels[rows]).double().mean().item(), 1
        )
        for name, (rows, columns) in halves.items()
    }


README = """# {title}

{about} {parameters:,} parameters, float32. Images {size}x{size}, {image_tower} and {text_layers} text layers of width {width},
projection {projection}, {max_tokens} positions, own byte-level BPE of {vocabulary} entries with CLIP's conventions.

{trained} with the contrastive loss on {pairs:,} captioned pictures of a procedural world of shapes, colours,
fills, backgrounds, lights and rendering styles; each picture was shown once. It knows nothing else: it is a test bed for
prompt learning, not a model of photographs.

Zero-shot, percent correct. Fresh pictures of the training world: {world}. The downstream task in a style that the model
never saw (`peft_vprompt.demo.demo_task`, caption "{template}"): {task}.

`training.json` holds the options, versions, learning curve and time. To train it again:

    python -m examples.studies.pretrain_demo {command} --output clip
"""

#: Title, what it is, and the image tower, in words.
WORDS: dict[Tower, dict[str, str]] = {
    "vit": {
        "title": "The embedded CLIP",
        "about": "A small `CLIPModel` that lives inside the package, so that every example and test runs without a network.",
        "image_tower": "patches of 8, {layers} image layers",
    },
    "resnet": {
        "title": "A small ResNet CLIP",
        "about": "A `peft_vprompt.models.ResNetCLIPModel` to compare the embedded CLIP with.",
        "image_tower": "a ResNet of three stages with an attention pool",
    },
}


def save(
    folder: Path, model: PreTrainedModel, tokenizer: CLIPTokenizer, processor: CLIPImageProcessorPil, record: dict
) -> None:
    """Write weights, tokenizer, processor, `training.json` and `README.md`; each file appears whole or not at all."""
    with atomic_files(folder) as scratch:
        for part in (model, tokenizer, processor):
            part.save_pretrained(scratch)
        options = record["options"]
        how = "Its image tower was trained beside the embedded CLIP's text tower, which stayed as it was,"
        trained = how if options["locked_text"] else "Trained from random weights"
        words = {name: text.format(**options) for name, text in WORDS[options["tower"]].items()}
        readme = README.format(
            parameters=record["parameters"],
            size=IMAGE_SIZE,
            max_tokens=MAX_TOKENS,
            pairs=options["steps"] * options["batch_size"],
            world=listed(record["world_accuracy"]),
            task=listed(record["task_accuracy"]),
            template=TEMPLATE,
            trained=trained,
            command="--tower {tower} --steps {steps}".format(**options) + " --locked-text" * options["locked_text"],
            **options | words | {"vocabulary": len(tokenizer)},
        )
        (scratch / "README.md").write_text(readme, encoding="utf-8")
        write_json(record, scratch / "training.json")
        for file in scratch.iterdir():
            file.chmod(0o644)


def pretrain(
    options: Options, output: Path, workers: int = 1, console: Console | None = None, pictures: int = 2000
) -> dict:
    """Train tokenizer and model from nothing, or from where the run was stopped, and save them.

    Args:
        options: What decides the outcome.
        output: Folder for the weights, the tokenizer and `training.json`.
        workers: Processes that draw pictures; the outcome does not depend on it.
        console: Where the progress bar goes.
        pictures: Pictures of the world in the final measurement; those along the way have a quarter of them.

    Returns:
        The record, which `training.json` holds.
    """
    with only_writer(output):
        return _pretrain(options, output, workers, console, pictures)


def _pretrain(options: Options, output: Path, workers: int, console: Console | None, pictures: int) -> dict:
    torch.manual_seed(options.seed)
    words = Stream(10_000, TOKENIZER_SEED)
    tokenizer = train_tokenizer([describe(*words.scene(index)) for index in range(len(words))], options.vocabulary)
    processor, model = image_processor(), BUILDERS[options.tower](options, tokenizer)
    if options.locked_text:
        lock_text(model)
    parts = (model, tokenizer, processor)
    stream = Stream(options.steps * options.batch_size, options.seed, options.group_size, options.easy_share)
    collate = make_collate(tokenizer, processor)

    def batches_from(step: int) -> DataLoader:
        left = Subset(stream, range(step * options.batch_size, len(stream)))
        return DataLoader(left, options.batch_size, num_workers=workers, collate_fn=collate)

    training = Training(model, options, output)
    training.run(batches_from, lambda: attribute_accuracy(*parts, pictures // 4), console=console)
    record = {
        "options": asdict(options),
        "parameters": model.num_parameters(),
        "world_accuracy": attribute_accuracy(*parts, pictures),
        "task_accuracy": task_accuracy(*parts),
        "template": TEMPLATE,
        "curve": training.curve,
        "seconds": round(training.seconds),
        "cpu_seconds": round(training.cpu_seconds),
        "machine": {
            "system": platform.system(),
            "architecture": platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, np, PIL)},
    }
    save(output, *parts, record)
    training.finish()
    return record


def main(
    output: Annotated[Path, typer.Option(help="Folder for the weights, the tokenizer and training.json.")],
    tower: Annotated[Tower, typer.Option(help="Image tower: the embedded CLIP's ViT, or a ResNet.")] = Options.tower,
    locked_text: Annotated[
        bool,
        typer.Option(
            "--locked-text", help="Take the embedded CLIP's text tower as it is, which saves most of the time."
        ),
    ] = Options.locked_text,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = Options.steps,
    batch_size: Annotated[int, typer.Option(min=2, help="Image-caption pairs per step.")] = Options.batch_size,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the pictures.")] = Options.seed,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw pictures.")] = 1,
) -> None:
    """Pretrain a small CLIP from random weights on the procedural demo world (the embedded one took 35 minutes on one busy core)."""
    torch.set_num_threads(threads)
    console = Console()
    options = Options(steps, batch_size, seed=seed, tower=tower, locked_text=locked_text)
    record = pretrain(options, output, workers, console)
    console.print(f"World: {listed(record['world_accuracy'])}. Task: {listed(record['task_accuracy'])}.")
    console.print(f"Saved to {output}. Use it as `vprompt train --model {output}` does.")


if __name__ == "__main__":
    typer.run(main)
