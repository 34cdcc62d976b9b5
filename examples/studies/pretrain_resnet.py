"""Pretrain a small CLIP with a ResNet on the demo world, from random weights: `python -m examples.studies.pretrain_resnet --output DIR`.

As `pretrain_demo`, with the same pictures, captions, tokenizer, text tower and loss, so that backbones can be compared:
`vprompt noise-study --model DIR` beside the embedded CLIP.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from .pretrain_demo import Options, pretrain, save
from .tiny_clip import build_resnet


README = """# A small ResNet CLIP

A `ResNetCLIPModel` ({parameters:,} parameters, float32) of peft_vprompt. Images {size}x{size}, a ResNet of three stages with an attention
pool, {text_layers} text layers of width {width}, projection {projection}, {max_tokens} positions, own byte-level BPE of {vocabulary} entries
with CLIP's conventions.

Trained as the embedded CLIP on {pairs:,} captioned pictures of a procedural world; it knows nothing else.

Zero-shot, percent correct. Fresh pictures of the training world: {world}. The downstream task in a style that the model
never saw (`peft_vprompt.demo.demo_task`, caption "{template}"): {task}.
"""


def main(
    output: Annotated[Path, typer.Option(help="Folder for the weights, the tokenizer and training.json.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = Options.steps,
    batch_size: Annotated[int, typer.Option(min=2, help="Image-caption pairs per step.")] = Options.batch_size,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the pictures.")] = Options.seed,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw pictures.")] = 1,
) -> None:
    """Pretrain a small ResNet CLIP from random weights on the procedural demo world."""
    torch.set_num_threads(threads)
    console = Console()
    *parts, record = pretrain(Options(steps=steps, batch_size=batch_size, seed=seed), workers, console, build_resnet)
    save(output, *parts, record, README)
    console.print(f"World: {record['world_accuracy']}. Task: {record['task_accuracy']}. Saved to {output}.")


if __name__ == "__main__":
    typer.run(main)
