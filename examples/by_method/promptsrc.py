"""PromptSRC: deep prompts in both encoders, held near the frozen model and averaged (Khattak et al., ICCV 2023).

Usage:

    python examples/by_method/promptsrc.py
    python examples/by_method/promptsrc.py --model openai/clip-vit-base-patch16
    python examples/by_method/promptsrc.py --model openai/clip-vit-base-patch16 --data path/to/images
"""

from pathlib import Path
from typing import Annotated

import typer
from peft import get_peft_model
from transformers import AutoImageProcessor, CLIPModel, set_seed

from peft_vprompt import PromptSRCConfig
from peft_vprompt.data import DataOptions, TrainTransform, base_novel_split, few_shot, load_images, select_classes
from peft_vprompt.demo import demo_model_path, demo_task
from peft_vprompt.experiments.eval_sets import eval_sets
from peft_vprompt.training import Averaging
from peft_vprompt.training.evaluation import evaluate
from peft_vprompt.training.trainer import train
from peft_vprompt.tuners.base.registry import METHODS
from peft_vprompt.tuners.promptsrc import TEMPLATES


def main(
    model: Annotated[str | None, typer.Option(help="Folder or Hub id of a CLIP; default: the embedded one.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder of images, one folder per class; default: the embedded task.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the adapter.")] = Path("runs/promptsrc"),
    shots: Annotated[int, typer.Option(help="Training images per class.")] = 16,
    epochs: Annotated[int, typer.Option(help="Passes over them.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the shots, the prompts and the order of images.")] = 1,
):
    """Learn regularised prompts on the base classes of the embedded task or of your images."""
    set_seed(seed)
    if data and not model:
        raise typer.BadParameter("Images of your own need a base model: --model openai/clip-vit-base-patch16.")
    source = load_images(DataOptions(data)) if data else {split: demo_task(split) for split in ("train", "test")}
    path = model or demo_model_path()
    base, novel = base_novel_split(source["train"].features["label"].names)
    config = PromptSRCConfig(
        class_names=base,
        num_virtual_tokens=4,
        prompt_depth=3,  # layers with prompts, from the first; the paper takes 9 of 12
        text_consistency_weight=25.0,  # what holds class features, images and predictions near the frozen model:
        image_consistency_weight=10.0,  # fields of every method (KgCoOp is CoOp with the first one)
        logit_consistency_weight=1.0,
        frozen_template=list(
            TEMPLATES
        ),  # what the frozen model reads, on average; or class_descriptions={name: [...]}
    )
    peft_model = get_peft_model(CLIPModel.from_pretrained(path), config)
    peft_model.print_trainable_parameters()

    processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    images = select_classes(few_shot(source["train"], shots, seed), base).with_transform(TrainTransform(processor))
    # The authors' recipe, but with the steps that the tiny embedded model wants. At the end the adapter holds the
    # average of its epochs, by a Gaussian. With the stock Trainer that is `callbacks=[AverageWeights(averaging)]`.
    averaging = Averaging("gaussian", mean=0.75 * epochs, std=1.0)
    recipe = METHODS["promptsrc"].recipe.override(learning_rate=0.02, batch_size=32, averaging=averaging)
    train(peft_model, images, recipe, output, epochs=epochs, seed=seed, checkpoints=False, progress="PromptSRC")
    peft_model.save_pretrained(output)

    test_sets = eval_sets(source["test"], {"base": base, "novel": novel}, processor)
    for title, zero_shot in (("zero-shot", True), ("PromptSRC", False)):
        accuracies = evaluate(peft_model, test_sets, zero_shot=zero_shot)
        print(title, {split: round(accuracy, 1) for split, accuracy in accuracies.items()})


if __name__ == "__main__":
    typer.run(main)
