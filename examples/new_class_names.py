"""Other classes without training: learned prompts move to any names, at any time.

Usage:

    python examples/new_class_names.py
    python examples/new_class_names.py --ask "red circle" --ask "striped square"
    python examples/new_class_names.py --model openai/clip-vit-base-patch16
    python examples/new_class_names.py --model openai/clip-vit-base-patch16 --data path/to/images
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from peft import PeftModel, get_peft_model
from transformers import AutoImageProcessor, CLIPModel, set_seed

from peft_vprompt import ContextOptConfig
from peft_vprompt.data import (
    DataOptions,
    EvalTransform,
    TrainTransform,
    base_novel_split,
    few_shot,
    load_images,
    select_classes,
)
from peft_vprompt.demo import demo_model_path, demo_task
from peft_vprompt.training.evaluation import accuracy
from peft_vprompt.training.trainer import train
from peft_vprompt.tuners.base.registry import METHODS


def main(
    model: Annotated[str | None, typer.Option(help="Folder or Hub id of a CLIP; default: the embedded one.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder of images, one folder per class; default: the embedded task.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the adapter.")] = Path("runs/new_class_names"),
    ask: Annotated[list[str] | None, typer.Option(help="A name to tell apart from the others; repeat it.")] = None,
    shots: Annotated[int, typer.Option(help="Training images per class.")] = 16,
    epochs: Annotated[int, typer.Option(help="Passes over them.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the shots, the prompts and the order of images.")] = 1,
):
    """Train on the base classes, then tell apart novel classes, all classes and names of your own."""
    set_seed(seed)
    if data and not model:
        raise typer.BadParameter("Images of your own need a base model: --model openai/clip-vit-base-patch16.")
    source = load_images(DataOptions(data)) if data else {split: demo_task(split) for split in ("train", "test")}
    path = model or demo_model_path()
    every = source["train"].features["label"].names
    base, novel = base_novel_split(every)
    processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    images = select_classes(few_shot(source["train"], shots, seed), base).with_transform(TrainTransform(processor))
    config = ContextOptConfig(class_names=base, prompt_init="text", prompt_init_text="a photo of a")
    coop = get_peft_model(CLIPModel.from_pretrained(path), config)
    # With the stock Trainer (see train_with_trainer.py) the learning rate goes to it, and `remove_unused_columns=False`.
    recipe = METHODS["coop"].recipe.override(learning_rate=0.02, batch_size=32)
    train(coop, images, recipe, output, epochs=epochs, seed=seed, checkpoints=False, progress="CoOp")

    # The logits follow the names: one column each, in this order.
    for title, names in {"base": base, "novel": novel, "all": every}.items():
        coop.set_class_names(names)
        test = select_classes(source["test"], names).with_transform(EvalTransform(processor))
        print(f"{title}, {len(names)} classes: {accuracy(coop, test):.1f} %")

    # The adapter remembers the names that it was trained with, whatever was asked of it later.
    coop.save_pretrained(output)
    loaded = PeftModel.from_pretrained(CLIPModel.from_pretrained(path), output).eval()
    print(f"saved with {len(loaded.class_names)} names, first: {loaded.class_names[0]}")

    loaded.set_class_names(ask or ["red circle", "blue square", "green star"])
    picture = source["test"][:1]
    with torch.no_grad():
        logits = loaded(pixel_values=EvalTransform(processor)(picture)["pixel_values"]).logits
    print(f"a test image of a {every[picture['label'][0]]}:")
    for name, probability in zip(loaded.class_names, logits[0].softmax(-1).tolist(), strict=True):
        print(f"  {probability:6.1%}  {name}")


if __name__ == "__main__":
    typer.run(main)
