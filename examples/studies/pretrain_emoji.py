"""Train a small CLIP further on drawings of emoji by several artists: a stand-in for a real CLIP that has seen much.

    python -m examples.studies.pretrain_emoji --start path/to/emoji-clip --data path/to/emoji.parquet --output runs/emoji-clip
    python -m examples.studies.pretrain_emoji --start runs/emoji-clip --data path/to/emoji.parquet --output runs/emoji-clip-2 \
        --steps 900 --seed 1

The drawings are a table with the columns image (bytes of a file), name, keywords, subgroup, vendor and style. The styles in
`HELD_OUT` are never trained on: what is new in them is how things are drawn, not what. Each batch shows as many different
things, each in one of the other styles, with a caption of its name, of a keyword or of its subgroup; a caption is right for
every image of which it is true (Yang et al., "Unified Contrastive Learning in Image-Text-Label Space", CVPR 2022). Half of the
patches are left out for most of the run (Li et al., "Scaling Language-Image Pre-training via Masking", CVPR 2023).

Pictures are outlined and inked on the way, which was chosen with the held-out styles in view. Their accuracies are noted along
the way and decide nothing within a run. Started again, a run goes on from its last tenth.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from datasets import Dataset
from PIL import Image
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerBase

from peft_vprompt.utils.environment import environment
from peft_vprompt.utils.io import atomic_files, write_json
from peft_vprompt.utils.locks import only_writer

from .contrastive import Batch, Training, TrainingOptions, listed


#: Styles that nothing is trained on, as `vendor/style`. The first is the one that downstream tasks are made of.
HELD_OUT = ("openmoji/color", "emojitwo/bw", "fluent/high-contrast")

#: The caption for zero-shot use; `{}` is the subgroup.
TEMPLATE = "a photo of a {}."
TEMPLATES = (TEMPLATE, "a picture of a {}.", "a drawing of a {}.", "an emoji of a {}.", "{}.")

#: What captions speak of, and how often.
TOPICS = {"name": 0.4, "keyword": 0.2, "subgroup": 0.4}


@dataclass(frozen=True)
class Options(TrainingOptions):
    """Everything that decides the outcome of a run; see also `TrainingOptions`.

    Args:
        dropped: Share of the patches that are left out in training.
        whole_share: Share of the run, its end, in which no patch is left out.
    """

    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 5e-4
    matrix_learning_rate: float = 0.02
    warmup_share: float = 0.05
    dropped: float = 0.5
    whole_share: float = 0.15


class Drawings:
    """The drawings, decoded, and what is true of each.

    Args:
        path: Parquet file.
        size: Edge in pixels to bring them to.

    Attributes:
        pixels: uint8 [n, 3, size, size].
        styles: `vendor/style` of each drawing.
        things: Number of the thing that each drawing shows: [n].
        subgroups: Names of the subgroups, sorted, with spaces in the place of hyphens.
        labels: Number of each drawing's subgroup: [n].
        true_of: Topic -> text -> whether it is true of each thing: bool [things].
        texts: Topic -> the texts that are true of each thing.
    """

    def __init__(self, path: Path, size: int):
        table = Dataset.from_parquet(str(path))
        columns = {name: table[name][:] for name in ("name", "keywords", "subgroup", "vendor", "style")}
        self.styles = np.array([f"{v}/{s}" for v, s in zip(columns["vendor"], columns["style"], strict=True)])
        self.pixels = torch.stack([_decode(image, size) for image in table["image"]])
        names = list(dict.fromkeys(columns["name"]))
        number = {name: index for index, name in enumerate(names)}
        self.things = np.array([number[name] for name in columns["name"]])
        subgroup = [text.replace("-", " ") for text in columns["subgroup"]]
        self.subgroups = sorted(set(subgroup))
        self.labels = np.array([self.subgroups.index(text) for text in subgroup])
        first = {thing: row for row, thing in reversed(list(enumerate(self.things.tolist())))}
        rows = [first[thing] for thing in range(len(names))]
        self.texts = {
            "name": [[columns["name"][row]] for row in rows],
            "keyword": [list(columns["keywords"][row] or [columns["name"][row]]) for row in rows],
            "subgroup": [[subgroup[row]] for row in rows],
        }
        self.true_of = {topic: _truths(texts) for topic, texts in self.texts.items()}

    def of(self, *styles: str) -> np.ndarray:
        """Return the rows of these styles."""
        return np.flatnonzero(np.isin(self.styles, styles))

    def trained(self) -> list[np.ndarray]:
        """Return for each thing the rows to train on: those in no held-out style. Things without any are left out."""
        rows = np.flatnonzero(~np.isin(self.styles, HELD_OUT))
        return [rows[self.things[rows] == thing] for thing in np.unique(self.things[rows])]


def _decode(image: bytes, size: int) -> Tensor:
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _truths(texts: list[list[str]]) -> dict[str, np.ndarray]:
    """Return for each text the things of which it is true."""
    found: dict[str, np.ndarray] = {}
    for thing, own in enumerate(texts):
        for text in own:
            found.setdefault(text, np.zeros(len(texts), dtype=bool))[thing] = True
    return found


class Batches:
    """Batches of the trained styles; that of a step is always the same.

    Args:
        drawings: The drawings.
        tokenizer: Of the captions.
        processor: Gives mean and standard deviation of the pixels.
        options: What decides the outcome.
    """

    def __init__(
        self,
        drawings: Drawings,
        tokenizer: PreTrainedTokenizerBase,
        processor: CLIPImageProcessorPil,
        options: Options,
    ):
        self.drawings, self.tokenizer, self.processor, self.options = drawings, tokenizer, processor, options
        self.rows = drawings.trained()
        self.mean, self.std = (
            torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std)
        )
        if len(self.rows) < options.batch_size:
            raise ValueError(
                f"Expected at least as many things as images in a batch. Received: {len(self.rows)} things with trained "
                f"styles, batch_size={options.batch_size}. Use a smaller batch."
            )

    def __call__(self, step: int) -> Iterator[Batch]:
        """Yield the batches from a step on; random numbers that a step draws besides are seeded with it."""
        for later in range(step, self.options.steps):
            torch.manual_seed(self.options.seed * 1_000_003 + later)
            yield self.batch(later)

    def choose(self, step: int) -> tuple[np.ndarray, list[tuple[str, str]]]:
        """Return the rows of a step, each of another thing, and topic and text of their captions."""
        rng = np.random.default_rng((self.options.seed, step))
        things = rng.choice(len(self.rows), self.options.batch_size, replace=False)
        rows = np.array([rng.choice(self.rows[thing]) for thing in things])
        topics = rng.choice(list(TOPICS), len(rows), p=list(TOPICS.values()))
        texts = self.drawings.texts
        captions = [
            (topic, str(rng.choice(texts[topic][self.drawings.things[row]])))
            for topic, row in zip(topics, rows, strict=True)
        ]
        return rows, captions

    def batch(self, step: int) -> Batch:
        """Return the inputs of the model, and `positives`, which caption is true of which image: bool [b, b]."""
        rows, captions = self.choose(step)
        rng = np.random.default_rng((self.options.seed, step, 1))
        words = [TEMPLATES[rng.integers(len(TEMPLATES))].format(text) for _, text in captions]
        things = self.drawings.things[rows]
        true = np.stack([self.drawings.true_of[topic][text][things] for topic, text in captions], axis=1)
        tokens = self.tokenizer(words, padding=True, truncation=True, max_length=24, return_tensors="pt")
        pixels = augment(self.drawings.pixels[rows].float() / 255)
        return {**tokens, "pixel_values": (pixels - self.mean) / self.std, "positives": torch.from_numpy(true)}


def augment(pixels: Tensor) -> Tensor:
    """Turn, move, scale, recolour and redraw pictures on white, [b, 3, h, w] in 0..1, each in its own way."""
    count = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape)

    angle, zoom = uniform(-0.3, 0.3), uniform(0.85, 1.6)
    rows = [torch.stack([zoom * angle.cos(), -zoom * angle.sin(), uniform(-0.15, 0.15)], dim=1),
            torch.stack([zoom * angle.sin(), zoom * angle.cos(), uniform(-0.15, 0.15)], dim=1)]  # fmt: skip
    grid = F.affine_grid(torch.stack(rows, dim=1), list(pixels.shape), align_corners=False)
    pixels = 1 - F.grid_sample(1 - pixels, grid, align_corners=False)  # white around
    gray = pixels.mean(1, keepdim=True)
    saturation = uniform(0.3, 1.4, 1, 1, 1) * (torch.rand(count, 1, 1, 1) > 0.15)
    pixels = gray + saturation * (pixels - gray)
    pixels = 1 - uniform(0.7, 1.2, 1, 1, 1) * (1 - pixels)  # contrast, with white as it is
    tint = torch.where(torch.rand(count, 1, 1, 1) < 0.5, torch.ones(()), uniform(0.7, 1.0, 3, 1, 1))
    pixels = (tint * pixels).clamp(0, 1)
    pixels = torch.where(torch.rand(count, 1, 1, 1) < 0.5, outlined(pixels, uniform(1.0, 4.0, 1, 1, 1)), pixels)
    return torch.where(torch.rand(count, 1, 1, 1) < 0.15, inked(pixels, uniform(0.4, 0.8, 1, 1, 1)), pixels)


def outlined(pixels: Tensor, strength: Tensor) -> Tensor:
    """Draw black lines, three pixels wide, where pictures [b, 3, h, w] change; `strength` [b, 1, 1, 1]: 0 for none."""
    change = (F.max_pool2d(pixels, 3, 1, 1) + F.max_pool2d(-pixels, 3, 1, 1)).amax(1, keepdim=True)
    return pixels * (1 - strength * (change - 0.15)).clamp(0, 1)


def inked(pixels: Tensor, threshold: Tensor) -> Tensor:
    """Draw what is darker than `threshold` [b, 1, 1, 1] in black, and all else in white."""
    return (pixels.mean(1, keepdim=True) > threshold).float().expand_as(pixels)


def drop_patches(model: CLIPModel, share: float) -> torch.utils.hooks.RemovableHandle:
    """Let the image tower leave out a random share of its patches in training, until the handle is removed."""

    def keep_some(module: torch.nn.Module, _, tokens: Tensor) -> Tensor:
        if not module.training:
            return tokens
        patches = tokens.shape[1] - 1
        order = torch.rand(len(tokens), patches).argsort(dim=1)[:, : round((1 - share) * patches)]
        kept = tokens[:, 1:].gather(1, order.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        return torch.cat([tokens[:, :1], kept], dim=1)

    return model.vision_model.embeddings.register_forward_hook(keep_some)


def loss_of(model: CLIPModel, batch: Batch) -> Tensor:
    """Cross-entropy in both directions, where all captions that are true of an image share its target."""
    true = batch.pop("positives").float()
    logits = model(**batch).logits_per_image
    return (F.cross_entropy(logits, _shares(true)) + F.cross_entropy(logits.T, _shares(true.T))) / 2


def _shares(true: Tensor) -> Tensor:
    return true / true.sum(1, keepdim=True)


@torch.no_grad()
def accuracy(
    model: CLIPModel,
    tokenizer: PreTrainedTokenizerBase,
    processor: CLIPImageProcessorPil,
    drawings: Drawings,
    rows: np.ndarray,
) -> float:
    """Return how often zero-shot tells the subgroup of these drawings among all subgroups, in percent."""
    model.eval()
    captions = [TEMPLATE.format(name) for name in drawings.subgroups]
    texts = model.get_text_features(**tokenizer(captions, padding=True, return_tensors="pt")).pooler_output
    texts = F.normalize(texts, dim=-1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    hits = []
    for part in np.array_split(rows, max(1, len(rows) // 250)):
        pixels = (drawings.pixels[part].float() / 255 - mean) / std
        scores = model.get_image_features(pixel_values=pixels).pooler_output @ texts.T
        hits.append(scores.argmax(1).numpy() == drawings.labels[part])
    return round(100 * float(np.concatenate(hits).mean()), 1)


def measure(parts: tuple, drawings: Drawings, most: int) -> dict[str, float]:
    """Return the accuracy of each held-out style and of all trained ones, of so many drawings of each that are drawn once."""
    rng = np.random.default_rng(0)
    sets = {style: drawings.of(style) for style in HELD_OUT} | {"trained styles": np.concatenate(drawings.trained())}
    chosen = {
        name: rows if len(rows) <= most else rng.choice(rows, most, replace=False) for name, rows in sets.items()
    }
    return {name: accuracy(*parts, drawings, rows) for name, rows in chosen.items() if len(rows)}


README = """# A small CLIP of emoji drawings

A `CLIPModel` ({parameters:,} parameters, float32), trained further on drawings of emoji by several artists: {pairs:,} image-caption
pairs in {steps} steps. The styles {held_out} were never trained on.

Zero-shot, the subgroup told among all {subgroups} ("{template}"), percent correct. Before: {before}. Now: {after}.

`training.json` holds the options, versions, learning curve and time.
"""


def pretrain(
    start: Path, data: Path, output: Path, options: Options, console: Console | None = None, pictures: int = 2000
) -> dict:
    """Train a CLIP further, or go on where the run was stopped, and save it with the record that is returned.

    Args:
        start: Folder of the CLIP, with tokenizer and image processor.
        data: The drawings.
        output: Folder for what comes out.
        options: What decides the outcome.
        console: Where the progress bar goes.
        pictures: Most drawings of each style in the measurements before and after; those along the way have a tenth of them.

    Raises:
        ValueError: A batch is larger than the number of things, or the folder holds the checkpoint of another run.
    """
    with only_writer(output):
        model = CLIPModel.from_pretrained(start)
        tokenizer, processor = AutoTokenizer.from_pretrained(start), CLIPImageProcessorPil.from_pretrained(start)
        parts = (model, tokenizer, processor)
        drawings = Drawings(data, model.config.vision_config.image_size)
        before = measure(parts, drawings, pictures)
        training = Training(model, options, output)
        dropping = drop_patches(model, options.dropped)
        whole = round((1 - options.whole_share) * options.steps)

        def loss(model: CLIPModel, batch: Batch) -> Tensor:
            if training.step >= whole:
                dropping.remove()
            return loss_of(model, batch)

        batches = Batches(drawings, tokenizer, processor, options)
        training.run(batches, lambda: measure(parts, drawings, pictures // 10), loss, console)
        record = {
            "options": asdict(options),
            "parameters": model.num_parameters(),
            "held_out": list(HELD_OUT),
            "subgroups": len(drawings.subgroups),
            "before": before,
            "after": measure(parts, drawings, pictures),
            "curve": training.curve,
            "seconds": round(training.seconds),
            "cpu_seconds": round(training.cpu_seconds),
            "environment": environment(),
        }
        with atomic_files(output) as scratch:
            for part in parts:
                part.save_pretrained(scratch)
            readme = README.format(
                parameters=record["parameters"],
                pairs=options.steps * options.batch_size,
                steps=options.steps,
                held_out=", ".join(HELD_OUT),
                subgroups=record["subgroups"],
                template=TEMPLATE,
                before=listed(before),
                after=listed(record["after"]),
            )
            (scratch / "README.md").write_text(readme, encoding="utf-8")
            write_json(record, scratch / "training.json")
        training.finish()
    return record


def main(
    start: Annotated[Path, typer.Option(help="Folder of the CLIP to go on from.")],
    data: Annotated[Path, typer.Option(help="Parquet file of the drawings.")],
    output: Annotated[Path, typer.Option(help="Folder for the weights, the tokenizer and training.json.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = Options.steps,
    batch_size: Annotated[int, typer.Option(min=2, help="Image-caption pairs per step.")] = Options.batch_size,
    seed: Annotated[int, typer.Option(help="Seed of the order and the details of the pictures.")] = Options.seed,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
) -> None:
    """Train a small CLIP further on drawings of emoji, and measure it on styles that it has not seen."""
    torch.set_num_threads(threads)
    console = Console()
    record = pretrain(start, data, output, Options(steps=steps, batch_size=batch_size, seed=seed), console)
    console.print(f"Before: {listed(record['before'])}. Now: {listed(record['after'])}.")
    console.print(f"Saved to {output}. Use it as `vprompt train --model {output}` does.")


if __name__ == "__main__":
    typer.run(main)
