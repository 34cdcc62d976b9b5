"""Test-time tuning: every test image tunes the context on its own views, without a label (TPT, Shu et al., NeurIPS 2022).

Learns a context first (CoOp), from which the tuning of each image starts. A context of words needs no training:
`ContextOptConfig(class_names=names, prompt_init="text", prompt_init_text="a photo of a")`.

Usage:

    python examples/test_time_tuning.py
    python examples/test_time_tuning.py --model openai/clip-vit-base-patch16 --views 64
    python examples/test_time_tuning.py --model openai/clip-vit-base-patch16 --data path/to/images
"""

from pathlib import Path
from typing import Annotated

import typer
from peft import get_peft_model
from transformers import AutoImageProcessor, CLIPModel, set_seed

from peft_vprompt import ContextOptConfig
from peft_vprompt.data import DataOptions, TrainTransform, few_shot, load_images
from peft_vprompt.demo import demo_model_path, demo_task
from peft_vprompt.experiments.eval_sets import eval_sets
from peft_vprompt.experiments.test_time import TestTimeSettings, view_sets
from peft_vprompt.training import evaluate_at_test_time
from peft_vprompt.training.evaluation import evaluate
from peft_vprompt.training.trainer import train
from peft_vprompt.tuners.base.registry import METHODS


def main(
    model: Annotated[str | None, typer.Option(help="Folder or Hub id of a CLIP; default: the embedded one.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder of images, one folder per class; default: the embedded task.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the adapter.")] = Path("runs/test_time"),
    shots: Annotated[int, typer.Option(help="Training images per class.")] = 4,
    epochs: Annotated[int, typer.Option(help="Passes over them.")] = 10,
    views: Annotated[int, typer.Option(help="Views of each test image; the authors take 64.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the shots, the context, the order of images and the views.")] = 1,
):
    """Learn a context on all classes of the embedded task or of your images, and tune it on each test image."""
    set_seed(seed)
    if data and not model:
        raise typer.BadParameter("Images of your own need a base model: --model openai/clip-vit-base-patch16.")
    source = load_images(DataOptions(data)) if data else {split: demo_task(split) for split in ("train", "test")}
    path = model or demo_model_path()
    names = source["train"].features["label"].names
    config = ContextOptConfig(class_names=names, prompt_init="text", prompt_init_text="a photo of a")
    peft_model = get_peft_model(CLIPModel.from_pretrained(path), config)

    processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    images = few_shot(source["train"], shots, seed).with_transform(TrainTransform(processor))
    recipe = METHODS["coop"].recipe.override(learning_rate=0.02, batch_size=32)
    train(peft_model, images, recipe, output, epochs=epochs, seed=seed, checkpoints=False, progress="CoOp")
    peft_model.save_pretrained(output)

    classes = {"all": names}
    zero_shot = evaluate(peft_model, eval_sets(source["test"], classes, processor), zero_shot=True)
    # The loss is taken of the fifth of the views with the surest predictions; what tuning changes is forgotten.
    settings = TestTimeSettings(views=views, confident=0.2, seed=seed)
    tuned, untuned = evaluate_at_test_time(
        peft_model, view_sets(source["test"], classes, processor, settings), settings, batch_size=32, progress="TPT"
    )
    for title, accuracy in {"zero-shot": zero_shot, "CoOp": untuned, "CoOp, tuned on each image": tuned}.items():
        print(f"{title}: {accuracy['all']:.1f} %")


if __name__ == "__main__":
    typer.run(main)
