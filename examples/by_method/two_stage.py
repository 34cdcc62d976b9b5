"""2SFS: the LayerNorms of both encoders, then one vector for each class (Farina et al., CVPR 2025).

Usage:

    python examples/by_method/two_stage.py
    python examples/by_method/two_stage.py --model openai/clip-vit-base-patch16
    python examples/by_method/two_stage.py --model openai/clip-vit-base-patch16 --data path/to/images
"""

from pathlib import Path
from typing import Annotated

import typer
from peft import get_peft_model
from transformers import AutoImageProcessor, CLIPModel, set_seed

from peft_vprompt import TwoStageConfig
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
    output: Annotated[Path, typer.Option(help="Folder for the adapter.")] = Path("runs/two_stage"),
    shots: Annotated[int, typer.Option(help="Training images per class.")] = 16,
    epochs: Annotated[int, typer.Option(help="Passes over them in each stage.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the shots, the prompts and the order of images.")] = 1,
):
    """Learn norms and class vectors on the base classes of the embedded task or of your images."""
    set_seed(seed)
    if data and not model:
        raise typer.BadParameter("Images of your own need a base model: --model openai/clip-vit-base-patch16.")
    source = load_images(DataOptions(data)) if data else {split: demo_task(split) for split in ("train", "test")}
    path = model or demo_model_path()
    base, novel = base_novel_split(source["train"].features["label"].names)
    config = TwoStageConfig(class_names=base)  # NormTuningConfig is its first stage alone
    peft_model = get_peft_model(CLIPModel.from_pretrained(path), config)
    peft_model.print_trainable_parameters()

    processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    images = select_classes(few_shot(source["train"], shots, seed), base).with_transform(TrainTransform(processor))
    # The authors' recipe (AdamW), but with the steps that the tiny embedded model wants. With the stock Trainer (see
    # examples/train_with_trainer.py) the learning rate goes to it, and `remove_unused_columns=False`.
    recipe = METHODS["2sfs"].recipe.override(learning_rate=0.002, batch_size=32)
    options = {"epochs": epochs, "seed": seed, "checkpoints": False, "progress": "2SFS"}
    train(peft_model, images, recipe, output, **options)
    peft_model.start_class_head()  # the vectors start as the tuned texts; classes without one are told by their texts
    train(peft_model, images, recipe, output, **options)
    peft_model.save_pretrained(output)

    test_sets = eval_sets(source["test"], {"base": base, "novel": novel}, processor)
    for title, zero_shot in (("zero-shot", True), ("2SFS", False)):
        accuracies = evaluate(peft_model, test_sets, zero_shot=zero_shot)
        print(title, {split: round(accuracy, 1) for split, accuracy in accuracies.items()})


if __name__ == "__main__":
    typer.run(main)
