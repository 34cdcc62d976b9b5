"""Two methods on one model: train, switch, save, load and delete adapters, as with any PEFT method.

Usage:

    python examples/several_adapters.py
    python examples/several_adapters.py --model openai/clip-vit-base-patch16
    python examples/several_adapters.py --model openai/clip-vit-base-patch16 --data path/to/images
"""

from pathlib import Path
from typing import Annotated

import typer
from peft import PeftModel, get_peft_model
from transformers import AutoImageProcessor, CLIPModel, set_seed

from peft_vprompt import ContextOptConfig, MaPLeConfig
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
    output: Annotated[Path, typer.Option(help="Folder for both adapters.")] = Path("runs/several_adapters"),
    shots: Annotated[int, typer.Option(help="Training images per class.")] = 16,
    epochs: Annotated[int, typer.Option(help="Passes over them.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the shots, the prompts and the order of images.")] = 1,
):
    """Put MaPLe and CoOp on one CLIP and switch between them."""
    set_seed(seed)
    if data and not model:
        raise typer.BadParameter("Images of your own need a base model: --model openai/clip-vit-base-patch16.")
    source = load_images(DataOptions(data)) if data else {split: demo_task(split) for split in ("train", "test")}
    path = model or demo_model_path()
    names, _ = base_novel_split(source["train"].features["label"].names)
    processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    images = select_classes(few_shot(source["train"], shots, seed), names).with_transform(TrainTransform(processor))
    test = select_classes(source["test"], names).with_transform(EvalTransform(processor))

    # One model, two adapters: only the active one is trained.
    configs = {
        "maple": MaPLeConfig(class_names=names, prompt_depth=3),
        "coop": ContextOptConfig(class_names=names, prompt_init="text", prompt_init_text="a photo of a"),
    }
    both = get_peft_model(CLIPModel.from_pretrained(path), configs["maple"], adapter_name="maple")
    both.add_adapter("coop", configs["coop"])
    for name in configs:
        both.set_adapter(name)
        # With the stock Trainer (see train_with_trainer.py) it goes there, with `remove_unused_columns=False`.
        recipe = METHODS[name].recipe.override(learning_rate=0.02, batch_size=32)
        train(both, images, recipe, output, epochs=epochs, seed=seed, checkpoints=False, progress=name)

    # Prompts and class names switch together; without any adapter the model is the zero-shot CLIP it was.
    for name in configs:
        both.set_adapter(name)
        print(f"{name}: {accuracy(both, test):.1f} %")
    with both.disable_adapter():
        print(f"zero-shot: {accuracy(both, test):.1f} %")

    # Each adapter is a folder of its own; load one, add the other.
    both.save_pretrained(output)
    loaded = PeftModel.from_pretrained(CLIPModel.from_pretrained(path), output / "coop", adapter_name="coop")
    loaded.load_adapter(output / "maple", adapter_name="maple")
    for name in configs:
        loaded.set_adapter(name)
        print(f"{name}, loaded: {accuracy(loaded, test):.1f} %")

    loaded.delete_adapter("maple")
    print(f"left: {', '.join(loaded.peft_config)}")
    clip = loaded.unload()  # the untouched base model
    print(f"unloaded: {type(clip).__name__}")


if __name__ == "__main__":
    typer.run(main)
