"""CoOp in a training loop of your own, with Accelerate: the same script on a CPU, a GPU or several processes.

The images are not augmented, so that two processes get exactly what one gets with batches twice as large.

Usage:

    python examples/train_with_accelerate.py
    python examples/train_with_accelerate.py --model openai/clip-vit-base-patch16 --mixed-precision bf16
    python examples/train_with_accelerate.py --model openai/clip-vit-base-patch16 --data path/to/images
    accelerate launch --num_processes 2 examples/train_with_accelerate.py --batch-size 16     # two GPUs
    torchrun --nproc_per_node 2 examples/train_with_accelerate.py --batch-size 16 --cpu      # two processes, no GPU
"""

import math
from pathlib import Path
from typing import Annotated

import torch
import typer
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor, CLIPModel, default_data_collator

from peft_vprompt import ContextOptConfig
from peft_vprompt.data import DataOptions, EvalTransform, base_novel_split, few_shot, load_images, select_classes
from peft_vprompt.demo import demo_model_path, demo_task


def main(
    model: Annotated[str | None, typer.Option(help="Folder or Hub id of a CLIP; default: the embedded one.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder of images, one folder per class; default: the embedded task.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the adapter.")] = Path("runs/accelerate"),
    shots: Annotated[int, typer.Option(help="Training images per class.")] = 16,
    epochs: Annotated[int, typer.Option(help="Passes over them.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Images per process and batch.")] = 32,
    accumulate: Annotated[int, typer.Option(help="Batches per step.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate of SGD.")] = 0.02,
    mixed_precision: Annotated[str, typer.Option(help="no, fp16 or bf16; the prompts stay float32.")] = "no",
    cpu: Annotated[bool, typer.Option("--cpu", help="Stay on the CPU, with several processes too.")] = False,
    shard_classes: Annotated[
        bool, typer.Option("--shard-classes", help="Each process encodes its share of the classes.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the shots, the prompts and the order of images.")] = 1,
):
    """Learn CoOp's context on the base classes of the embedded task or of your images with Accelerate."""
    accelerator = Accelerator(cpu=cpu, mixed_precision=mixed_precision, gradient_accumulation_steps=accumulate)
    accelerator.print(f"processes: {accelerator.num_processes}")
    set_seed(seed)
    if data and not model:
        raise typer.BadParameter("Images of your own need a base model: --model openai/clip-vit-base-patch16.")
    source = load_images(DataOptions(data)) if data else {split: demo_task(split) for split in ("train", "test")}
    path = model or demo_model_path()
    base, novel = base_novel_split(source["train"].features["label"].names)
    config = ContextOptConfig(class_names=base, shard_classes=shard_classes)
    coop = get_peft_model(CLIPModel.from_pretrained(path), config)

    plain = EvalTransform(AutoImageProcessor.from_pretrained(path, backend="pil"))
    train_set = select_classes(few_shot(source["train"], shots, seed), base).with_transform(plain)
    order = torch.Generator().manual_seed(seed)
    # Here all columns stay; with the stock Trainer that takes `remove_unused_columns=False`, see train_with_trainer.py.
    train_loader = DataLoader(train_set, batch_size, shuffle=True, generator=order, collate_fn=default_data_collator)
    optimizer = torch.optim.SGD([p for p in coop.parameters() if p.requires_grad], lr=learning_rate, momentum=0.9)
    processes = accelerator.num_processes
    steps = epochs * math.ceil(math.ceil(len(train_loader) / processes) / accumulate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * processes)  # each process counts
    coop, optimizer, train_loader, scheduler = accelerator.prepare(coop, optimizer, train_loader, scheduler)

    for epoch in range(epochs):
        coop.train()
        for batch in train_loader:
            with accelerator.accumulate(coop):
                loss = coop(**batch).loss
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        accelerator.print(f"epoch {epoch + 1}: loss {accelerator.reduce(loss.detach(), 'mean'):.3f}")

    for split, names in (("base", base), ("novel", novel)):
        accelerator.unwrap_model(coop).set_class_names(names)
        test_set = select_classes(source["test"], names).with_transform(plain)
        accelerator.print(f"{split}: {accuracy(accelerator, coop, test_set):.1f} %")
    accelerator.unwrap_model(coop).save_pretrained(output, is_main_process=accelerator.is_main_process)
    accelerator.wait_for_everyone()
    coop, optimizer = accelerator.free_memory(coop, optimizer)  # or gloo may wait for a process that has gone
    accelerator.end_training()


@torch.no_grad()
def accuracy(accelerator: Accelerator, model: torch.nn.Module, rows) -> float:
    """Share of correct images over all processes, in percent."""
    model.eval()
    loader = accelerator.prepare(DataLoader(rows, batch_size=100, collate_fn=default_data_collator))
    correct = []
    for batch in loader:
        right = model(pixel_values=batch["pixel_values"]).logits.argmax(-1) == batch["labels"]
        correct.append(accelerator.gather_for_metrics(right))
    return 100 * torch.cat(correct).float().mean().item()


if __name__ == "__main__":
    typer.run(main)
