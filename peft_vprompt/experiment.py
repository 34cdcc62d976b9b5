"""One run of one method: pick the shots, train, evaluate, save the adapter and its results. Used by every command."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

from datasets import Dataset, DatasetDict

from .build import Built, build_model, get_method
from .data import (
    EvalTransform,
    TrainTransform,
    base_novel_split,
    cache_features,
    cache_pixels,
    feature_rows,
    few_shot,
    select_classes,
)
from .evaluation import EvalSet, evaluate, set_class_names
from .recipes import Recipe
from .reports import environment, write_json
from .training import TrainResult, train


@dataclass(frozen=True)
class Settings:
    """What decides the outcome of a run, beside the images.

    Attributes:
        method: a name in `build.METHODS`.
        model: folder or Hub id of the base model; None for the embedded one.
        shots: training images per class; None for all.
        seed: seed of the shots, of the prompts' first values and of the order of images.
        base_novel: train on the base classes and test on base and novel; else train and test on all.
        epochs, learning_rate, batch_size, weight_decay: changes to the authors' recipe; None keeps it.
        config: changes to the method's default config, by field.
        bf16: autocast to bfloat16 while training.
        cache_features: train and test on image features that are computed once and kept on the disk, which methods
            without visual prompts can. The augmentation is then fixed.
        views: cached augmentations of every training image, one of which is drawn in each epoch.
    """

    method: str
    model: str | None = None
    shots: int | None = 16
    seed: int = 1
    base_novel: bool = True
    epochs: int | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    weight_decay: float | None = None
    config: dict = field(default_factory=dict)
    bf16: bool = False
    cache_features: bool = False
    views: int = 1


def run_experiment(
    settings: Settings,
    data: DatasetDict,
    output: str | Path,
    *,
    data_description: dict | None = None,
    cached: bool = False,
    watch: bool = False,
    checkpoints: bool = True,
    workers: int = 0,
) -> dict:
    """Train and evaluate one method.

    Args:
        settings: what to run.
        data: `train` and `test` with the columns `image` and `label`, as from `data.load_images`.
        output: folder for the adapter and `results.json`.
        data_description: where the images are from, for `results.json` and to tell runs apart on resume.
        cached: augment every training image once and keep the pixels, which saves time and costs variety.
        watch: measure the test accuracy after every epoch.
        checkpoints: save one after every epoch, so that a killed run goes on where it was.
        workers: processes that load images.

    Returns:
        What `results.json` holds: settings, recipe, sizes, times, accuracies, machine and versions.

    Raises:
        ValueError: if the method cannot be evaluated on novel classes but is asked to, or anything else is refused by
            the model, the data or the recipe; all of it before training.
    """
    method = get_method(settings.method)
    if settings.base_novel and not method.new_classes:
        raise ValueError(
            f"{method.title} learns its classes one by one and has nothing for novel ones: use all classes."
        )
    names = data["train"].features["label"].names
    classes = split_classes(names, settings.base_novel)
    trained = next(iter(classes.values()))
    built = build_model(settings.model, settings.method, trained, settings.seed, **settings.config)
    for other in (*classes.values(), trained):
        set_class_names(built.model, other)  # what cannot be evaluated later is refused before training
    recipe = _recipe(settings, built)
    keep = _keeper(settings, built, cached)
    test_sets = eval_sets(data["test"], classes, built.image_processor, keep)
    result = None
    if recipe is not None:
        rows = _training_images(settings, data["train"], trained)
        result = train(
            built.model,
            keep(rows, TrainTransform(built.image_processor, recipe.crop), settings.views),
            recipe,
            output,
            next(iter(test_sets.values())).rows if watch else None,
            epochs=recipe.epochs_for(settings.shots),
            seed=settings.seed,
            settings={"settings": asdict(settings), "data": data_description, "classes": trained, "cached": cached},
            checkpoints=checkpoints,
            progress=method.title,
            bf16=settings.bf16,
            workers=workers,
        )
    accuracy = evaluate(built.model, test_sets, zero_shot=recipe is None)
    set_class_names(built.model, trained)
    facts = {
        "data": data_description,
        "classes": classes,
        "test_images": {name: len(test_set.rows) for name, test_set in test_sets.items()},
        "accuracy": accuracy,
    }
    return _save(settings, built, recipe, result, facts, Path(output))


def split_classes(names: list[str], base_novel: bool) -> dict[str, list[str]]:
    """Class names by the name of the split they are evaluated in; the first split is the one to train on."""
    return dict(zip(("base", "novel"), base_novel_split(names), strict=True)) if base_novel else {"all": names}


def eval_sets(
    test: Dataset, classes: dict[str, list[str]], image_processor, keep: Callable = Dataset.with_transform
) -> dict[str, EvalSet]:
    """The test images of every split, preprocessed as the model wants them; `keep` applies the transform."""
    transform = EvalTransform(image_processor)
    return {name: EvalSet(keep(select_classes(test, names), transform), names) for name, names in classes.items()}


def _keeper(settings: Settings, built: Built, cached: bool) -> Callable:
    """How transformed images are kept: as features on the disk, as pixels in memory, or not at all."""
    if settings.views != 1 and not settings.cache_features:
        raise ValueError(f"Several views are kept with `cache_features` only. Received: views={settings.views}.")

    def features(rows: Dataset, transform, views: int = 1):
        with built.model.disable_adapter() if built.recipe is None else nullcontext():
            kept = cache_features(built.model, rows, transform, views=views, seed=settings.seed)
        return feature_rows(kept, views)

    def pixels(rows: Dataset, transform, views: int = 1):
        rows = rows.with_transform(transform)
        return cache_pixels(rows) if cached else rows

    return features if settings.cache_features else pixels


def _training_images(settings: Settings, images: Dataset, class_names: list[str]) -> Dataset:
    """The shots of the classes to train on, relabelled 0, 1, ..."""
    if settings.shots is not None:
        images = few_shot(images, settings.shots, settings.seed, class_names=class_names)
    return select_classes(images, class_names)


def _recipe(settings: Settings, built: Built) -> Recipe | None:
    if built.recipe is None:
        return None
    return built.recipe.override(
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        weight_decay=settings.weight_decay,
    )


def _save(
    settings: Settings,
    built: Built,
    recipe: Recipe | None,
    result: TrainResult | None,
    facts: dict,
    output: Path,
) -> dict:
    adapter_bytes = None
    if result is not None:
        built.model.save_pretrained(output)
        adapter_bytes = sum(file.stat().st_size for file in output.glob("*.safetensors"))
    report = {
        "title": get_method(settings.method).title,
        "settings": asdict(settings),
        "recipe": asdict(recipe) | {"epochs": recipe.epochs_for(settings.shots)} if recipe else None,
        "trainable_parameters": built.trainable_parameters if result else 0,
        "adapter_bytes": adapter_bytes,
        "steps": result.steps if result else 0,
        "seconds_per_step": result.seconds_per_step if result else None,
        "train_seconds": result.train_seconds if result else None,
        "resumed_step": result.resumed_step if result else 0,
        "history": result.history if result else [],
        **facts,
        "environment": environment(),
    }
    write_json(report, output / "results.json")
    return report
