"""CLIP-LoRA: PEFT's LoRA of both encoders, trained on class names (Zanella and Ben Ayed, CVPR 2024 Workshops).

Usage:

    python examples/by_method/clip_lora.py
    python examples/by_method/clip_lora.py --model openai/clip-vit-base-patch16
    python examples/by_method/clip_lora.py --model openai/clip-vit-base-patch16 --data path/to/images
"""

from pathlib import Path
from typing import Annotated

import typer
from peft import get_peft_model
from transformers import AutoImageProcessor, CLIPModel, set_seed

from peft_vprompt import CLIPLoraConfig
from peft_vprompt.data import DataOptions, TrainTransform, base_novel_split, few_shot, load_images, select_classes
from peft_vprompt.demo import demo_model_path, demo_task
from peft_vprompt.experiments.eval_sets import eval_sets
from peft_vprompt.training.evaluation import evaluate
from peft_vprompt.training.trainer import train
from peft_vprompt.tuners.base.registry import METHODS


def main(
    model: Annotated[str | None, typer.Option(help="Folder or Hub id of a CLIP; default: the embedded one.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder of images, one folder per class; default: the embedded task.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the adapter.")] = Path("runs/clip_lora"),
    shots: Annotated[int, typer.Option(help="Training images per class.")] = 16,
    epochs: Annotated[int, typer.Option(help="Passes over them.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the shots, the prompts and the order of images.")] = 1,
):
    """Learn a LoRA on the base classes of the embedded task or of your images."""
    set_seed(seed)
    if data and not model:
        raise typer.BadParameter("Images of your own need a base model: --model openai/clip-vit-base-patch16.")
    source = load_images(DataOptions(data)) if data else {split: demo_task(split) for split in ("train", "test")}
    path = model or demo_model_path()
    base, novel = base_novel_split(source["train"].features["label"].names)
    config = CLIPLoraConfig(
        class_names=base,
        r=2,  # every field of PEFT's LoraConfig is here
        towers="both",  # or "text", "vision"
        logit_scale=None,  # the model's own scale; the authors multiply by 100, as OpenAI's CLIP does
    )
    peft_model = get_peft_model(CLIPModel.from_pretrained(path), config)
    peft_model.print_trainable_parameters()

    processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    images = select_classes(few_shot(source["train"], shots, seed), base).with_transform(TrainTransform(processor))
    # The authors' recipe (AdamW), but with the steps that the tiny embedded model wants. With the stock Trainer (see
    # examples/train_with_trainer.py) the learning rate goes to it, and `remove_unused_columns=False`.
    recipe = METHODS["clip-lora"].recipe.override(learning_rate=0.002, batch_size=32)
    train(peft_model, images, recipe, output, epochs=epochs, seed=seed, checkpoints=False, progress="CLIP-LoRA")
    peft_model.save_pretrained(output)

    test_sets = eval_sets(source["test"], {"base": base, "novel": novel}, processor)
    for title, zero_shot in (("zero-shot", True), ("CLIP-LoRA", False)):
        accuracies = evaluate(peft_model, test_sets, zero_shot=zero_shot)
        print(title, {split: round(accuracy, 1) for split, accuracy in accuracies.items()})


if __name__ == "__main__":
    typer.run(main)
