"""One run of one method: pick the shots, train, evaluate, save the adapter and its results. Used by every command."""

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from datasets import Dataset, DatasetDict
from peft.utils import SAFETENSORS_WEIGHTS_NAME

from ..data import (
    EvalTransform,
    TrainTransform,
    base_novel_split,
    cache_pixels,
    find_task,
    image_size,
    select_classes,
)
from ..errors import TrainingDivergedError
from ..losses.classification import LOSSES, ClassificationLoss, make_loss
from ..training.cached_features import cache_features, feature_rows
from ..training.evaluation import EvalSet, evaluate, set_class_names
from ..training.gradient_probe import GradientProbe
from ..training.recipes import Recipe
from ..training.trainer import TrainResult, train
from ..tuners.base.registry import get_method
from ..tuners.base.spec import MethodSpec
from ..tuners.coop import ContextOptConfig
from ..utils.environment import environment
from ..utils.io import write_json
from ..utils.validation import require_int
from .ensemble import context_tokens, set_contexts
from .models import ModelBundle, build_model
from .supervision import Supervision, digest, training_images


#: Folder, beside the adapter, of the last finite values of a run that diverged.
DIVERGED = "diverged"


@dataclass(frozen=True)
class Settings:
    """What decides the outcome of a run, beside the images.

    Attributes:
        method: a name in the method table.
        model: folder or Hub id of the base model; None for the embedded one.
        shots: training images per class; None for all.
        seed: seed of the shots, of the prompts' first values and of the order of images.
        base_novel: train on the base classes and test on base and novel; else train and test on all.
        epochs, learning_rate, batch_size, weight_decay: changes to the authors' recipe; None keeps it. CoOp's is PTNL's
            where labels are noisy or not read.
        config: changes to the method's default config, by field.
        bf16: autocast to bfloat16 while training.
        cache_features: train and test on image features that are computed once and kept on the disk, which methods
            without visual prompts can. The augmentation is then fixed.
        views: cached augmentations of every training image, one of which is drawn in each epoch.
        loss: a name in `losses.LOSSES`; None for the model's own cross-entropy.
        loss_options: parameters of the loss.
        supervision: whose labels to train on.
        ensemble: number of contexts to train from as many seeds and to average (CoOp's kind of context only).
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
    loss: str | None = None
    loss_options: dict = field(default_factory=dict)
    supervision: Supervision = Supervision()
    ensemble: int = 1


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
    gradients: bool = False,
    quiet: bool = False,
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
        gradients: measure the gradients of clean and noisy samples (`gradients.GradientProbe`) along the way.
        quiet: show no progress bar.

    Returns:
        What `results.json` holds: settings, recipe, sizes, times, accuracies, machine and versions.

    Raises:
        ValueError: if the method cannot be evaluated on novel classes but is asked to, or anything else is refused by
            the model, the data or the recipe; all of it before training.
        TrainingDivergedError: training diverged. The last finite values are saved beside, in `diverged`, and what was
            in `output` stays.
    """
    method = get_method(settings.method)
    _check(settings, method)
    classes = split_classes(class_names_of(data), settings.base_novel)
    trained = next(iter(classes.values()))
    built = _build(settings, [*classes.values(), trained], (data_description or {}).get("benchmark"))
    recipe, keep = _recipe(settings, built), _keeper(settings, built, cached)
    keep_tests = keep if settings.cache_features else Dataset.with_transform  # pixels of all of them may not fit
    test_sets = eval_sets(data["test"], classes, built.image_processor, keep_tests)
    results, about_labels = [], {}
    if recipe is not None:
        how = {"checkpoints": checkpoints, "progress": None if quiet else method.title, "workers": workers}
        how["eval_set"] = next(iter(test_sets.values())).rows if watch else None
        run = {"data": data_description, "classes": trained, "cached": cached}
        try:
            results, about_labels = _learn(
                settings, built, recipe, data["train"], keep, Path(output), run, gradients, **how
            )
        except TrainingDivergedError as error:
            raise _keep_finite(built, error, Path(output) / DIVERGED) from error
    facts = {
        "data": data_description,
        "cached": cached,
        "classes": classes,
        "test_images": {name: len(test_set.rows) for name, test_set in test_sets.items()},
        "accuracy": evaluate(built.model, test_sets, zero_shot=recipe is None),
    }
    set_class_names(built.model, trained)
    return _save(settings, built, recipe, results, facts | about_labels, Path(output))


def _keep_finite(built: ModelBundle, error: TrainingDivergedError, folder: Path) -> TrainingDivergedError:
    """Save the last finite values beside the place of the adapter, which stays as it is."""
    built.model.save_pretrained(folder)
    message = f"{error} The last finite values are in {folder}; nothing else was written."
    return TrainingDivergedError(message, error.epoch)


def _build(settings: Settings, class_lists: list[list[str]], benchmark: str | None) -> ModelBundle:
    """The model, with the last list of classes; what cannot be evaluated later is refused before training."""
    config = settings.config | ({"num_contexts": settings.ensemble} if settings.ensemble > 1 else {})
    built = build_model(settings.model, settings.method, class_lists[-1], settings.seed, **config)
    noisy_recipe = get_method(settings.method).noisy_recipe
    if noisy_recipe is not None and not settings.supervision.is_plain:
        built = replace(built, recipe=noisy_recipe)
    built = as_published(built, benchmark)
    for names in class_lists:
        set_class_names(built.model, names)
    return built


def _learn(
    settings: Settings,
    built: ModelBundle,
    recipe: Recipe,
    images: Dataset,
    keep: Callable,
    output: Path,
    identity: dict,
    gradients: bool,
    **how,
) -> tuple[list[TrainResult], dict]:
    """Label the training images as the settings say and train on them: the results, and facts about the labels."""
    images, about = training_images(
        settings.supervision,
        images,
        identity["classes"],
        settings.shots,
        settings.seed,
        built,
        settings.cache_features,
    )
    rows, loss = keep(images, TrainTransform(built.image_processor, recipe.crop), settings.views), _loss(settings)
    chosen = {"chosen": about["pseudo_labels"]["digest"]} if "pseudo_labels" in about else {}
    probes = [GradientProbe(rows, about.get("noise", {}).get("wrong", []), loss)] if gradients else []
    options = how | {
        "train_set": rows,
        "recipe": recipe,
        "epochs": recipe.epochs_for(settings.shots),
        "loss": loss,
        "settings": {"settings": asdict(settings), "labels": digest(images["label"][:])} | chosen | identity,
        "bf16": settings.bf16,
        "callbacks": probes,
    }
    results = _train_contexts(settings, built, output, options)
    return results, about | ({"gradients": probes[0].history} if probes else {})


def _loss(settings: Settings) -> ClassificationLoss | None:
    return make_loss(settings.loss, **settings.loss_options) if settings.loss else None


def _check(settings: Settings, method: MethodSpec) -> None:
    if settings.base_novel and not method.new_classes:
        raise ValueError(
            f"{method.title} learns its classes one by one and has nothing for novel ones: use all classes."
        )
    needs_clip = {
        "cached features": settings.cache_features,
        "training without labels": not settings.supervision.uses_labels,
        "confusion noise": settings.supervision.noise == "confusion",
    }
    if method.is_baseline and (asked := [what for what, wanted in needs_clip.items() if wanted]):
        raise ValueError(
            f"{method.title} trains an image classifier, and {' and '.join(asked)} take a CLIP. Use a method that "
            "learns prompts or a head of class features on one, such as coop or classifier-c."
        )
    if settings.base_novel and not settings.supervision.uses_labels:
        raise ValueError("Without labels nobody knows which images are of the base classes: use all classes.")
    if settings.loss_options and settings.loss is None:
        raise ValueError(
            f"Parameters of a loss need a loss. Received: {settings.loss_options} and no loss. Name one of: "
            f"{', '.join(LOSSES)}."
        )
    _loss(settings)
    require_int("ensemble", settings.ensemble, 1)
    if settings.ensemble > 1 and method.config_class is not ContextOptConfig:
        raise ValueError(
            f"An ensemble is of contexts that all classes share, as CoOp learns them. Received: {method.title}."
        )


def class_names_of(data: DatasetDict) -> list[str]:
    """The class names of the data; unlabelled training images have those of the test images.

    Raises:
        ValueError: there are no images to test on.
    """
    if "test" not in data:
        raise ValueError("Expected labelled images to test on. Received images without labels and no test split.")
    labelled = data["train"] if "label" in data["train"].column_names else data["test"]
    return labelled.features["label"].names


def _train_contexts(settings: Settings, built: ModelBundle, output: Path, options: dict) -> list[TrainResult]:
    """Train the model; with an ensemble train contexts from several seeds one by one and join them in one adapter."""
    if settings.ensemble == 1:
        return [train(built.model, output_dir=output, seed=settings.seed, **options)]
    results, contexts = [], []
    for seed in range(settings.seed, settings.seed + settings.ensemble):
        names = built.model.class_names
        member = build_model(settings.model, settings.method, names, seed, **settings.config).model
        results.append(train(member, output_dir=output / f"context-{seed}", seed=seed, **options))
        contexts.append(context_tokens(member))
    set_contexts(built.model, contexts)
    return results


def as_published(built: ModelBundle, benchmark: str | None) -> ModelBundle:
    """The model with the preprocessing and the augmentation of a task of FGVC or VTAB-1k, if the data are one."""
    if benchmark is None:
        return built
    task = find_task(benchmark)
    processor = task.image_processor(image_size(built.image_processor)[0])
    recipe = None if built.recipe is None else replace(built.recipe, crop=task.crop)
    return replace(built, image_processor=processor, recipe=recipe)


def split_classes(names: list[str], base_novel: bool) -> dict[str, list[str]]:
    """Class names by the name of the split they are evaluated in; the first split is the one to train on."""
    return dict(zip(("base", "novel"), base_novel_split(names), strict=True)) if base_novel else {"all": names}


def eval_sets(
    test: Dataset, classes: dict[str, list[str]], image_processor, keep: Callable = Dataset.with_transform
) -> dict[str, EvalSet]:
    """The test images of every split, preprocessed as the model wants them; `keep` applies the transform."""
    transform = EvalTransform(image_processor)
    return {name: EvalSet(keep(select_classes(test, names), transform), names) for name, names in classes.items()}


def _keeper(settings: Settings, built: ModelBundle, cached: bool) -> Callable:
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


def _recipe(settings: Settings, built: ModelBundle) -> Recipe | None:
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
    built: ModelBundle,
    recipe: Recipe | None,
    results: list[TrainResult],
    facts: dict,
    output: Path,
) -> dict:
    adapter_bytes = None
    if results:
        built.model.save_pretrained(output)
        adapter_bytes = (output / SAFETENSORS_WEIGHTS_NAME).stat().st_size
    report = {
        "title": get_method(settings.method).title,
        "settings": asdict(settings),
        "recipe": asdict(recipe) | {"epochs": recipe.epochs_for(settings.shots)} if recipe else None,
        "trainable_parameters": built.trainable_parameters if results else 0,
        "adapter_bytes": adapter_bytes,
        "steps": sum(result.steps for result in results),
        "seconds_per_step": statistics.median(result.seconds_per_step for result in results) if results else None,
        "train_seconds": sum(result.train_seconds for result in results) if results else None,
        "resumed_step": sum(result.resumed_step for result in results),
        "history": [entry for result in results for entry in result.history],
        **facts,
        "environment": environment(),
    }
    write_json(report, output / "results.json")
    return report
