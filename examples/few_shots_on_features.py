"""Few shots on image features, in seconds: Tip-Adapter looks images up, CLAP learns a prototype per class.

Both image and text encoder stay as they are. The images are encoded once; Tip-Adapter is then ready, and CLAP trains on the
features alone. At the end CLAP's prototypes are moved half way back to zero-shot (WiSE-FT).

Usage:

    python examples/few_shots_on_features.py
    python examples/few_shots_on_features.py --model openai/clip-vit-base-patch16 --data path/to/images
"""

from pathlib import Path
from typing import Annotated

import typer
from peft import get_peft_model
from transformers import AutoImageProcessor, CLIPModel, set_seed

from peft_vprompt import CLAPConfig, TipAdapterConfig
from peft_vprompt.data import DataOptions, TrainTransform, few_shot, load_images
from peft_vprompt.demo import demo_model_path, demo_task
from peft_vprompt.experiments.eval_sets import eval_sets
from peft_vprompt.training.cached_features import cache_features, feature_rows
from peft_vprompt.training.evaluation import evaluate
from peft_vprompt.training.trainer import train
from peft_vprompt.tuners.base.registry import METHODS


VIEWS = 5  # augmented views of each image; the authors take 10 for Tip-Adapter and 20 for CLAP


def main(
    model: Annotated[str | None, typer.Option(help="Folder or Hub id of a CLIP; default: the embedded one.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder of images, one folder per class; default: the embedded task.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the adapters and the features.")] = Path("runs/features"),
    shots: Annotated[int, typer.Option(help="Training images per class.")] = 16,
    epochs: Annotated[int, typer.Option(help="Passes of CLAP over the features.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the shots and of the order of images.")] = 1,
):
    """Learn all classes of the embedded task or of your images from features."""
    set_seed(seed)
    if data and not model:
        raise typer.BadParameter("Images of your own need a base model: --model openai/clip-vit-base-patch16.")
    source = load_images(DataOptions(data)) if data else {split: demo_task(split) for split in ("train", "test")}
    path = model or demo_model_path()
    names = source["train"].features["label"].names
    peft_model = get_peft_model(CLIPModel.from_pretrained(path), TipAdapterConfig(class_names=names))
    peft_model.add_adapter("clap", CLAPConfig(class_names=names))

    processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    images = few_shot(source["train"], shots, seed)
    cached = cache_features(
        peft_model, images, TrainTransform(processor), views=VIEWS, seed=seed, cache_dir=output / "cache"
    )
    # Rows are the first view of all images, then the second, ...
    features = cached.with_format("torch")["image_features"][:].unflatten(0, (VIEWS, -1))
    peft_model.set_support(features, images["label"][:])

    peft_model.set_adapter("clap")
    peft_model.set_support(features, images["label"][:])  # how strongly each class is held
    recipe = METHODS["clap"].recipe
    rows = feature_rows(cached, VIEWS)
    train(peft_model, rows, recipe, output, epochs=epochs, seed=seed, checkpoints=False, progress="CLAP")
    peft_model.interpolate(0.5, "midway")
    peft_model.save_pretrained(output)

    test_sets = eval_sets(source["test"], {"all": names}, processor)
    print(f"zero-shot: {evaluate(peft_model, test_sets, zero_shot=True)['all']:.1f} %")
    for adapter, title in {"default": "Tip-Adapter", "clap": "CLAP", "midway": "CLAP, half way"}.items():
        peft_model.set_adapter(adapter)
        print(f"{title}: {evaluate(peft_model, test_sets)['all']:.1f} %")


if __name__ == "__main__":
    typer.run(main)
