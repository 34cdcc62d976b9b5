"""Test-time tuning of many images together: `python -m examples.benchmarks.test_time --help`.

Against the authors' way (azshue/TPT), one image after another with class prompts padded to 77 tokens, and against this
package's with one image at a time. 64 views of each image at ViT-B/16 shapes. The image encoder is the same on all sides
and timed apart: features of views are given to the tuning.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from peft import PeftModel, get_peft_model
from torch import Tensor
from torch.nn import functional as F

from peft_vprompt import ContextOptConfig
from peft_vprompt.training import TestTimeTuning, TunedOutput, tune_on_features
from peft_vprompt.utils.environment import environment
from peft_vprompt.utils.io import write_json

from .inputs import Inputs, twin
from .measure import CLOCKS, keep_freed_memory
from .plain import PlainCoOp
from .results import ROOT, commit


VIEWS, WORDS, TUNING = 64, "a photo of a", TestTimeTuning()


class PlainTPT:
    """azshue/TPT `tpt_classification.py`, float32: one image after another, prompts of all classes padded.

    Args:
        plain: CoOp the authors' way.
        start: the context [1, m, d] that every image begins with.
    """

    def __init__(self, plain: PlainCoOp, start: Tensor):
        self.plain = plain
        self.start = start.detach().clone()

    def tune(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [b, c] and first gradients [b, m, d] for the features [b, v, e] of views."""
        results = [self.tune_one(views) for views in features]
        logits, gradients = zip(*results, strict=True)
        return torch.stack(logits), torch.stack(gradients)

    def tune_one(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """The same for one image, [v, e]."""
        context = self.start.clone().requires_grad_()
        self.plain.trained = {"text.tokens": context}
        optimizer = torch.optim.AdamW([context], TUNING.learning_rate)
        logits = self.plain.classify(views)
        entropies = -(logits.softmax(1) * logits.log_softmax(1)).sum(1)
        chosen = logits[entropies.argsort()[: int(len(views) * TUNING.confident)]].log_softmax(1)
        mean = chosen.logsumexp(0) - torch.tensor(float(len(chosen))).log()
        (-(mean * mean.exp()).sum()).backward()
        gradient = context.grad.clone()
        optimizer.step()
        with torch.no_grad():
            return self.plain.classify(views[:1])[0], gradient[0]


def tune_one_by_one(model: PeftModel, features: Tensor) -> TunedOutput:
    """Tune as the package does, with one image at a time; return the last image's."""
    for views in features:
        output = tune_on_features(model, views[None], TUNING)
    return output


def milliseconds(run: Callable, images: int, inputs: Inputs) -> float:
    """Time one call of `run`, by image."""
    clock = CLOCKS[inputs.clock]
    start = clock()
    run()
    if inputs.device != "cpu":
        torch.cuda.synchronize()
    return 1e3 * (clock() - start) / images


def measure(inputs: Inputs, classes: int, images: int, repeats: int, views: int) -> dict:
    """Return times by image of all sides, and how far the results differ."""
    clip = inputs.clip().eval().requires_grad_(False)
    names = inputs.class_names(classes)
    config = ContextOptConfig(
        class_names=names, prompt_init="text", prompt_init_text=WORDS, tokenizer_name_or_path=inputs.tokenizer_path
    )
    model = get_peft_model(twin(clip), config).eval()
    (start,) = (p for p in model.parameters() if p.requires_grad)
    plain = PlainTPT(PlainCoOp(clip, inputs.load_tokenizer(), names, {"text.tokens": start}), start)
    torch.manual_seed(0)
    size = clip.config.projection_dim
    features = F.normalize(torch.randn(images, 1, size) + 0.5 * torch.randn(images, views, size), dim=-1)
    features = features.to(clip.device, clip.dtype)
    few = features[: max(1, min(2, images))]
    logits, gradients = plain.tune(few)
    ours = tune_on_features(model, features, TUNING)
    agreement = {
        name: float((mine[: len(few)] - theirs).abs().max() / theirs.abs().max())
        for name, mine, theirs in (("logits", ours.logits, logits), ("gradients", ours.gradients, gradients))
    }
    pixels = inputs.images(views)
    runs = {
        "together": lambda: tune_on_features(model, features, TUNING),
        "one by one": lambda: tune_one_by_one(model, few),
        "authors' way": lambda: plain.tune(few),
        "views": lambda: encode(model, pixels),
    }
    counts = {"together": images, "one by one": len(few), "authors' way": len(few), "views": 1}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(milliseconds(run, counts[name], inputs))
    ms = {name: statistics.median(values) for name, values in times.items()}
    ratio = {name: ms[name] / ms["together"] for name in ("one by one", "authors' way")}
    whole = (ms["authors' way"] + ms["views"]) / (ms["together"] + ms["views"])
    return {
        "classes": classes,
        "images": images,
        "views": views,
        "milliseconds_per_image": ms,
        "times_faster": ratio | {"authors' way, with the encoding of the views": whole},
        "agreement": agreement,
        "repeats": repeats,
    }


@torch.no_grad()
def encode(model: PeftModel, pixels: Tensor) -> Tensor:
    """Encode the views of one image."""
    return model.encode_images(pixels)


def main(
    output: Annotated[Path, typer.Option(help="Folder for test_time_<device>_<dtype>.json.")] = ROOT
    / "docs/results/benchmarks",
    shape: Annotated[str, typer.Option(help="'ViT-B/16' or 'tiny'.")] = "ViT-B/16",
    classes: Annotated[list[int] | None, typer.Option(help="Numbers of classes; default: 10, 100.")] = None,
    images: Annotated[int, typer.Option(help="Images that are tuned together.")] = 16,
    repeats: Annotated[int, typer.Option(help="Runs of every side, of which the median is taken.")] = 2,
    views: Annotated[int, typer.Option(help="Views of an image.")] = VIEWS,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads on the CPU.")] = 2,
    tokenizer: Annotated[str | None, typer.Option(help="Folder or Hub id; default: the embedded model's.")] = None,
    class_names: Annotated[str | None, typer.Option(help="JSON with class names; default: made up.")] = None,
):
    """Measure all sides and write the figures down."""
    inputs = Inputs(shape, tokenizer, class_names, device, threads=threads)
    torch.set_num_threads(threads)
    if shape != "tiny":
        keep_freed_memory()
    cells = []
    for count in classes or (10, 100):
        cells.append(measure(inputs, count, images, repeats, views))
        typer.echo(f"{count} classes: {cells[-1]['milliseconds_per_image']} {cells[-1]['times_faster']}")
    result = {"shape": shape, "threads": threads, "cells": cells, "commit": commit(), "environment": environment()}
    output.mkdir(parents=True, exist_ok=True)
    write_json(result, output / f"test_time_{device}_{inputs.dtype}.json")


if __name__ == "__main__":
    typer.run(main)
