"""One run of one method: pick the shots, train, evaluate, save the adapter and its results. Used by every command."""

import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from peft import PeftModel
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
from ..data.multi_hot import is_multi_label
from ..data.options import portable
from ..errors import TrainingDivergedError
from ..losses.classification import LOSSES, ClassificationLoss, make_loss
from ..losses.label_checks import MULTI_LABEL
from ..losses.multi_label import BinaryCrossEntropy
from ..peft_models.adapter_files import take_card
from ..training.cached_features import FEATURES, RandomViews, cache_features, feature_rows
from ..training.distillation import DistillationRows, take_teacher
from ..training.evaluation import EvalSet, batches, chance, evaluate, evaluate_beside_zero_shot, set_class_names
from ..training.gradient_probe import GradientProbe
from ..training.trackers import check_trackers
from ..training.trainer import TrainResult, train
from ..tuners.base.recipe import Recipe
from ..tuners.base.registry import get_method
from ..tuners.base.spec import MethodSpec
from ..tuners.coop import ContextOptConfig
from ..tuners.tip_adapter.search import Found
from ..utils.devices import find_device
from ..utils.digests import digest_arrays
from ..utils.environment import environment
from ..utils.io import atomic_files, write_json
from ..utils.locks import Writer, only_writer
from ..utils.validation import MAX_WORKERS, require_int
from .ensemble import context_tokens, set_contexts
from .identity import IDENTITY, RESULTS, Contents, finished_report, keep_previous, tell_changes
from .models import ModelBundle, build_model
from .settings import Settings
from .several_labels import MEAN_AVERAGE_PRECISION, chance_of_several, check_labels
from .supervision import LabelledImages, training_images
from .teacher import Teacher, check_teacher, load_teacher


#: Folder, beside the adapter, of the last finite values of a run that diverged.
DIVERGED = "diverged"


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
    class_names: Sequence[str] | None = None,
    device: str | None = None,
    report_to: Sequence[str] = (),
    compare: bool = True,
    contents: Contents | None = None,
    wait: bool = False,
) -> dict:
    """Train and evaluate one method.

    Only `settings`, `data` and `cached` decide what is trained. A run is known by its content: base model, images, class
    names, settings and the version of this package. Started again with the same it goes on where it was; with another it
    warns and trains afresh, and what the folder held of another run is kept in `previous/`. One process at a time writes
    to the folder.

    Args:
        settings: what to run.
        data: `train` and, to measure the accuracy on, `test` with the columns `image` and `label`, as from
            `data.load_images`; also `validation`, where images were held out by `val_fraction`.
        output: folder for the adapter and `results.json`.
        data_description: where the images are from, for `results.json`; a `benchmark` decides the preprocessing.
        cached: augment every training image once and keep the pixels, which saves time and costs variety.
        watch: measure the test accuracy after every epoch.
        checkpoints: save one after every epoch, so that a killed run goes on where it was.
        workers: processes that load images.
        gradients: measure the gradients of clean and noisy samples (`gradient_probe.GradientProbe`) along the way.
        quiet: show no progress bar.
        class_names: names of the classes, where no image has a label.
        device: where to compute, see `utils.devices.find_device`; None for the device that the Trainer takes.
        report_to: trackers of experiments that the Trainer logs to, such as "tensorboard".
        compare: also measure zero-shot, where the model has a text tower.
        contents: digests of the data that are known already, for several runs on the same data.
        wait: wait while another process writes to the folder; else refuse.

    Returns:
        What `results.json` holds: settings, recipe, sizes, times, accuracies beside those of zero-shot and of guessing,
        machine and versions.

    Raises:
        ImportError: a tracker is not installed.
        ValueError: the method cannot be evaluated on novel classes but is asked to, or anything else is refused by
            the model, the data or the recipe; all of it before training.
        TrainingDivergedError: training diverged. The last finite values are saved beside, in `diverged`, and what was
            in `output` stays.
        FolderInUseError: another process writes to the folder.
        CannotWriteError: the disk is full, or the folder is not to be written.
    """
    check_settings(settings)
    check_trackers(report_to)
    require_int("workers", workers, 0, MAX_WORKERS)
    options = RunOptions(
        data_description=data_description,
        cached=cached,
        watch=watch,
        checkpoints=checkpoints,
        workers=workers,
        gradients=gradients,
        quiet=quiet,
        class_names=class_names,
        device=device,
        report_to=tuple(report_to),
        compare=compare,
    )
    run = Run(settings, data, Path(output), options)
    with only_writer(output, wait) as writer:
        run.build()
        run.identify(contents or Contents(data, data_description, cached))
        run.prepare_tests()
        if run.spec.trains:
            run.label()
            run.take_support()
        if run.recipe is not None:
            run.train()
        run.search()
        run.evaluate()
        return run.save(writer)


@dataclass(frozen=True)
class RunOptions:
    """How a run goes, beside its settings: the arguments of `run_experiment` of these names."""

    data_description: dict | None = None
    cached: bool = False
    watch: bool = False
    checkpoints: bool = True
    workers: int = 0
    gradients: bool = False
    quiet: bool = False
    class_names: Sequence[str] | None = None
    device: str | None = None
    report_to: Sequence[str] = ()
    compare: bool = True


@dataclass
class Run:
    """One run of one method, as steps that are taken in the order they stand in, and what each of them makes.

    Attributes:
        settings: what to run.
        data: `train`, and maybe `test` and `validation`.
        output: folder for the adapter and `results.json`.
        options: how the run goes.
        classes: class names by the name of the split they are evaluated in; the first split is the one to train on.
        teacher: whose predictions are distilled, None without one; from `build`.
        bundle: the model, its image processor and its recipe; from `build`.
        recipe: how to train, with the settings' changes, or None where nothing is trained; from `build`.
        identity: what the run is by content; from `identify`.
        test_sets: test images of every split, as the model takes them; from `prepare_tests`, none without test images.
        validation_sets: likewise of images that were held out of the training images.
        labelled: images and labels to train on; from `label`.
        features: their features, where a method is trained on these; from `take_support`.
        probes: measures of gradients along the way, one or none; from `train`.
        results: what each training gave: several with an ensemble, none where nothing is trained; from `train`.
        found: what a search on validation images found; from `search`.
        accuracy: in percent, by split; from `evaluate`, empty without test images.
        validation: likewise on the images that were held out; None where none were.
        zero_shot: accuracy on the test images without what was trained; None where the model has no text tower or nobody
            asked.
        teacher_accuracy: accuracy of the teacher on the test images; None without one.
    """

    settings: Settings
    data: DatasetDict
    output: Path
    options: RunOptions
    classes: dict[str, list[str]] = field(init=False)
    teacher: Teacher | None = field(default=None, init=False)
    bundle: ModelBundle = field(init=False)
    recipe: Recipe | None = field(init=False)
    identity: dict = field(init=False)
    test_sets: dict[str, EvalSet] = field(init=False)
    validation_sets: dict[str, EvalSet] = field(init=False)
    labelled: LabelledImages | None = field(default=None, init=False)
    features: Dataset | RandomViews | None = field(default=None, init=False)
    probes: list[GradientProbe] = field(default_factory=list, init=False)
    results: list[TrainResult] = field(default_factory=list, init=False)
    found: Found | None = field(default=None, init=False)
    accuracy: dict[str, float] = field(init=False)
    validation: dict[str, float] | None = field(default=None, init=False)
    zero_shot: dict[str, float] | None = field(default=None, init=False)
    teacher_accuracy: dict[str, float] | None = field(default=None, init=False)

    def __post_init__(self):
        check_labels(self.settings, self.multi_label)
        self.classes = split_classes(class_names_of(self.data, self.options.class_names), self.settings.base_novel)

    @property
    def spec(self) -> MethodSpec:
        """The method's row of the table."""
        return get_method(self.settings.method)

    @property
    def _to_train(self) -> tuple[Recipe, LabelledImages]:
        """Recipe and images of a run that trains, after `label`."""
        return self.recipe, self.labelled  # pyrefly: ignore[bad-return]  # `run_experiment` trains with both alone

    @property
    def multi_label(self) -> bool:
        """Whether the images are of several classes or none."""
        return any(is_multi_label(rows) for rows in self.data.values())

    @property
    def _loss(self) -> ClassificationLoss | BinaryCrossEntropy | None:
        """What to minimise in the place of the model's own loss; None for that."""
        asks = get_method(self.settings.method).config_class.__dataclass_fields__
        if self.multi_label and "problem_type" not in asks:
            return BinaryCrossEntropy()
        return _loss(self.settings)

    @property
    def trained_classes(self) -> list[str]:
        """Names of the classes to train on, in label order."""
        return next(iter(self.classes.values()))

    def build(self) -> None:
        """Build the model, with the classes to train on; what cannot be evaluated later is refused here."""
        settings = self.settings
        config = settings.config | ({"num_contexts": settings.ensemble} if settings.ensemble > 1 else {})
        if self.multi_label and self._loss is None:
            config |= {"problem_type": MULTI_LABEL}
        device = find_device(self.options.device)
        if settings.teacher is not None:
            self.teacher = load_teacher(settings.teacher, settings.teacher_model, self.trained_classes, device)
            config = {"teacher_dim": self.teacher.features.shape[1]} | config
        bundle = build_model(
            settings.model,
            settings.method,
            self.trained_classes,
            settings.seed,
            image_size=settings.image_size,
            device=device,
            **config,
        )
        if self.teacher is not None:
            take_teacher(bundle.model, self.teacher.model)
            bundle.content |= self.teacher.content
        noisy_recipe = get_method(settings.method).noisy_recipe
        if noisy_recipe is not None and not settings.supervision.is_plain:
            bundle = replace(bundle, recipe=noisy_recipe)
        if self.multi_label and bundle.recipe is not None:  # a crop may leave out what the image is labelled with
            bundle = replace(bundle, recipe=replace(bundle.recipe, crop="none"))
        self.bundle = as_published(bundle, (self.options.data_description or {}).get("benchmark"))
        self.recipe = None if self.bundle.recipe is None else _changed(self.bundle.recipe, settings)
        if self.recipe is not None:
            self._stages(self.recipe)  # too short a length is refused here
        for names in [*self.classes.values(), self.trained_classes]:
            set_class_names(self.bundle.model, names)

    def identify(self, contents: Contents) -> None:
        """Find out what the run is by content, and say so where the folder holds another run."""
        names = [name for names in self.classes.values() for name in names]
        self.identity = contents.identity(self.settings, names, self.bundle.content)
        tell_changes(self.output, self.identity)

    def prepare_tests(self) -> None:
        """Transform the test images; as pixels, all of them may not fit in memory, so only features are kept.

        Raises:
            ValueError: each epoch is to be tested, and there are no test images.
        """
        description = self.options.data_description or {}
        self.test_sets = self._eval_sets("test")
        self.validation_sets = self._eval_sets("validation") if description.get("val_fraction") else {}
        if self.options.watch and not (self.test_sets or self.validation_sets):
            raise ValueError(
                "Expected images to test after every epoch. Received no test images. Hold some out by val_fraction "
                "(--val-fraction), or leave --watch out."
            )
        if self._is_searched and not self.validation_sets:
            raise ValueError(
                "Expected images to search alpha and beta on. Received no validation images. Hold some out by val_fraction "
                "(--val-fraction), or leave search_scale out."
            )

    def _eval_sets(self, split: str) -> dict[str, EvalSet]:
        if split not in self.data:
            return {}
        return eval_sets(self.data[split], self.classes, self.bundle.image_processor, self._rows)

    def label(self) -> None:
        """Pick the training images and label them as the settings say; a teacher needs no labels, and takes all."""
        if self.teacher is not None:
            self.labelled = LabelledImages(self.data["train"].select_columns("image"), {})
            return
        self.labelled = training_images(
            self.settings.supervision,
            self.data["train"],
            self.trained_classes,
            self.settings.shots,
            self.settings.seed,
            self.bundle,
            self.settings.cache_features,
        )

    def take_support(self) -> None:
        """Let a method that learns from features of the training images do so, see `MethodSpec.support`.

        Where the authors train on these features, they are the training images from now on.
        """
        support, labelled = self.spec.support, self.labelled
        if support is None or labelled is None:
            return
        model = self.bundle.model
        benchmark = (self.options.data_description or {}).get("benchmark")
        crop = find_task(benchmark).crop if benchmark else "random_resized_crop"
        transform = TrainTransform(self.bundle.image_processor, crop, support.crop_scale)
        views = support.views if self.settings.views == 1 else self.settings.views
        options = {"views": views, "seed": self.settings.seed, "normalized": support.trained_on}
        features = cache_features(model, labelled.rows, transform, workers=self.options.workers, **options)
        if support.trained_on:
            self.features = feature_rows(features, views)
        if model.uses_support:
            table = features.with_format("torch")[FEATURES][:]
            model.set_support(table.view(views, len(labelled.rows), -1), labelled.rows["label"][:])

    def train(self) -> None:
        """Train on the labelled images; with an ensemble, contexts from several seeds, joined in one adapter.

        Raises:
            TrainingDivergedError: training diverged; the last finite values are saved beside the adapter's place.
        """
        recipe, labelled = self._to_train
        rows = self._distillation_rows(self.teacher) if self.teacher is not None else self.features
        if rows is None:
            transform = TrainTransform(self.bundle.image_processor, recipe.crop, recipe.crop_scale)
            rows = self._rows(labelled.rows, transform, self.settings.views, in_memory=self.options.cached)
        if self.options.gradients:
            self.probes = [GradientProbe(rows, labelled.wrong, self._loss)]
        try:
            if self.settings.ensemble == 1:
                self._train_one(self.bundle.model, rows, self.settings.seed, self.output)
            else:
                self._train_ensemble(rows)
        except TrainingDivergedError as error:
            folder = self.output / DIVERGED
            self.bundle.model.save_pretrained(str(folder))
            message = f"{error} The last finite values are in {folder}; nothing else was written."
            raise TrainingDivergedError(message, error.epoch) from error

    def search(self) -> None:
        """Search alpha and beta of a Tip-Adapter on the images that were held out, where the config asks for it."""
        if self._is_searched:
            config: Any = self.bundle.model.active_peft_config
            (held_out,) = self.validation_sets.values()
            options = {"scale": config.search_scale, "step": config.search_step}
            self.found = self.bundle.model.search_cache(batches(held_out.rows, 100), **options)

    @property
    def _is_searched(self) -> bool:
        return getattr(self.bundle.model.active_peft_config, "search_scale", None) is not None

    def _distillation_rows(self, teacher: Teacher) -> DistillationRows:
        recipe, labelled = self._to_train
        config: Any = self.bundle.model.active_peft_config
        return teacher.rows(
            labelled.rows,
            self.bundle.image_processor,
            recipe,
            config.temperature,
            views=self.settings.views,
            seed=self.settings.seed,
            progress=None if self.options.quiet else "Teacher",
        )

    def evaluate(self) -> None:
        """Measure the accuracy on every split, and leave the model with the classes it was trained on."""
        shown = None if self.options.quiet else "Test"
        model, untrained = self.bundle.model, not self.spec.trains
        if untrained or not self.options.compare:
            self.accuracy = evaluate(model, self.test_sets, zero_shot=untrained, progress=shown)
            self.zero_shot = self.accuracy if untrained else None
        else:
            self.accuracy, self.zero_shot = evaluate_beside_zero_shot(model, self.test_sets, progress=shown)
        if self.teacher is not None and self.test_sets:
            sets = eval_sets(self.data["test"], self.classes, self.teacher.bundle.image_processor)
            self.teacher_accuracy = self.teacher.accuracy(sets, shown)
        if self.validation_sets:
            self.validation = evaluate(model, self.validation_sets, zero_shot=untrained)
        set_class_names(self.bundle.model, self.trained_classes)

    def save(self, writer: Writer) -> dict:
        """Write the adapter, if one was trained, and `results.json` in one step; return what the latter holds.

        Args:
            writer: the right to write to the folder.

        Raises:
            FolderInUseError: another process took over.
            CannotWriteError: the disk is full, or the folder is not to be written.
        """
        writer.check()
        keep_previous(self.output, self.identity)
        with atomic_files(self.output) as staging:
            adapter_bytes = None
            if self.spec.trains:
                take_card(self.output, staging)
                self.bundle.model.save_pretrained(str(staging))
                adapter_bytes = (staging / SAFETENSORS_WEIGHTS_NAME).stat().st_size
            report = self._report(adapter_bytes)
            write_json(report, staging / RESULTS)
            writer.check()
        return report

    def _report(self, adapter_bytes: int | None) -> dict:
        return {
            "title": get_method(self.settings.method).title,
            "settings": asdict(self.settings),
            "model_commit": getattr(self.bundle.model.get_base_model().config, "_commit_hash", None),
            "recipe": self._recipe_report() if self.recipe else None,
            "trainable_parameters": self.bundle.trainable_parameters if self.results else 0,
            "adapter_bytes": adapter_bytes,
            **_training_report(self.results),
            "data": self._data,
            "cached": self.options.cached,
            "classes": self.classes,
            "test_images": {name: len(test_set.rows) for name, test_set in self.test_sets.items()},
            **({"metric": MEAN_AVERAGE_PRECISION} if self.multi_label else {}),
            "accuracy": self.accuracy,
            **({"validation": self.validation} if self.validation else {}),
            **({"search": self.found._asdict()} if self.found else {}),
            **({"teacher": self.teacher_accuracy} if self.teacher_accuracy else {}),
            "zero_shot": self.zero_shot,
            "chance": self._chance,
            **(self.labelled.report if self.labelled else {}),
            **({"gradients": self.probes[0].history} if self.probes else {}),
            IDENTITY: self.identity,
            "environment": environment(),
        }

    @property
    def _chance(self) -> dict[str, float]:
        if not self.multi_label:
            return chance(self.classes)
        return chance_of_several(self.data["test"], self.classes) if "test" in self.data else {}

    def _recipe_report(self) -> dict:
        """Return the recipe as it was followed: with the length that the number of shots means."""
        recipe, _ = self._to_train
        length = {"epochs": self._epochs, "steps": recipe.steps_for(self.settings.shots)}
        return asdict(recipe) | length

    @property
    def _data(self) -> dict | None:
        """Where the images are, seen from the folder of the results."""
        return portable(self.options.data_description, self.output)

    @property
    def _epochs(self) -> int | None:
        recipe, _ = self._to_train
        return recipe.epochs_for(self.settings.shots)

    def _stages(self, recipe: Recipe) -> list[tuple[int | None, int | None]]:
        """Return the epochs or the steps of each stage of the training."""
        return recipe.stages(recipe.epochs_for(self.settings.shots), recipe.steps_for(self.settings.shots))

    def _train_one(self, model: PeftModel, rows, seed: int, folder: Path) -> None:
        """Train one model, in as many stages as its recipe has, and keep what each training gave."""
        options = self.options
        watched = next(iter((self.validation_sets or self.test_sets).values())).rows if options.watch else None
        recipe, _ = self._to_train
        for stage, (epochs, steps) in enumerate(self._stages(recipe)):
            if stage:
                model.start_class_head()
            result = train(
                model,
                output_dir=folder,
                train_set=rows,
                recipe=recipe,
                eval_set=watched,
                epochs=epochs,
                steps=steps,
                seed=seed,
                loss=self._loss,
                settings=self._depends_on() | ({"stage": stage} if stage else {}),
                checkpoints=options.checkpoints,
                progress=None if options.quiet else get_method(self.settings.method).title,
                bf16=self.settings.bf16,
                workers=options.workers,
                callbacks=self.probes,
                device=options.device,
                report_to=options.report_to,
            )
            self.results.append(result)

    def _train_ensemble(self, rows) -> None:
        """Train contexts from several seeds one by one and join them in one adapter."""
        contexts = []
        names = self.bundle.model.class_names
        for seed in range(self.settings.seed, self.settings.seed + self.settings.ensemble):
            size = self.settings.image_size
            member = build_model(
                self.settings.model, self.settings.method, names, seed, image_size=size, **self.settings.config
            )
            self._train_one(member.model, rows, seed, self.output / f"context-{seed}")
            contexts.append(context_tokens(member.model))
        set_contexts(self.bundle.model, contexts)

    def _depends_on(self) -> dict:
        """Return what a checkpoint must agree in with this run, beside recipe and seed, for the run to go on from it."""
        _, labelled = self._to_train
        labels = None if self.teacher is not None else digest_arrays(labelled.rows["label"][:])
        return {IDENTITY: self.identity, "labels": labels, "chosen": labelled.choice}

    def _rows(self, images: Dataset, transform, views: int = 1, in_memory: bool = False):
        """Return transformed images: as features on the disk, as pixels in memory, or as they are read."""
        if not self.settings.cache_features:
            rows = images.with_transform(transform)
            return cache_pixels(rows) if in_memory else rows
        model = self.bundle.model
        with nullcontext() if self.spec.trains else model.disable_adapter():
            features = cache_features(model, images, transform, views=views, seed=self.settings.seed)
        return feature_rows(features, views)


def check_settings(settings: Settings) -> None:
    """Refuse settings that contradict each other, before anything is read or built.

    Raises:
        ValueError: an unknown method or loss, or a method that cannot do what the settings ask for.
    """
    method = get_method(settings.method)
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
    _check_training(settings, method)
    if settings.views != 1 and not settings.cache_features and method.support is None and settings.teacher is None:
        raise ValueError(
            f"Several views are kept with `cache_features` or for a teacher only. Received: views={settings.views}."
        )
    check_teacher(settings)


def _check_training(settings: Settings, method: MethodSpec) -> None:
    """Refuse to train what is not trained: for a cache, the method says whether its keys are.

    Raises:
        ValueError: names the settings.
    """
    if method.support is None:
        return
    if "train_keys" in settings.config:
        raise ValueError(
            f"Expected the method to say whether keys are trained. Received: {method.name} with "
            f"train_keys={settings.config['train_keys']}. Leave it out, and use tip-adapter-f, or tip-adapter for no training."
        )
    names = ("epochs", "learning_rate", "batch_size", "weight_decay", "loss")
    given = [name for name in names if getattr(settings, name) is not None]
    if method.recipe is None and given:
        raise ValueError(
            f"{method.title} trains nothing. Received: {', '.join(given)}. Leave them out, or use tip-adapter-f, which trains."
        )


def _changed(recipe: Recipe, settings: Settings) -> Recipe:
    return recipe.override(
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        weight_decay=settings.weight_decay,
    )


def _loss(settings: Settings) -> ClassificationLoss | None:
    return make_loss(settings.loss, **settings.loss_options) if settings.loss else None


def _training_report(results: list[TrainResult]) -> dict:
    """Return what `results.json` says of the trainings: steps, times and the log."""
    return {
        "steps": sum(result.steps for result in results),
        "seconds_per_step": statistics.median(result.seconds_per_step for result in results) if results else None,
        "train_seconds": sum(result.train_seconds for result in results) if results else None,
        "resumed_step": sum(result.resumed_step for result in results),
        "history": [entry for result in results for entry in result.history],
    }


def finished_run(folder: Path, identity: dict, gradients: bool = False) -> dict | None:
    """Return the report in a folder if it is of this run, else None.

    Args:
        folder: where the run was saved.
        identity: what the run is, see `Contents.identity`.
        gradients: whether the gradients must have been measured.
    """
    report = finished_report(folder)
    if report is None or report.get(IDENTITY) != identity:
        return None
    return report if report.get("gradients") or not gradients else None


def class_names_of(data: DatasetDict, given: Sequence[str] | None = None) -> list[str]:
    """Return the class names of the data; unlabelled training images have those of the test images.

    Args:
        data: images by split.
        given: names of the classes, where no image has a label.

    Raises:
        ValueError: no image has a label, and no names are given.
    """
    for rows in data.values():
        if "label" in rows.column_names:
            return rows.features["label"].names
    if not given:
        raise ValueError("Expected class names for images without labels. Give --class-names (class_names).")
    return list(given)


def require_test_images(data: DatasetDict, what: str) -> None:
    """Refuse data without test images where these decide.

    Raises:
        ValueError: there are none; names what needs them.
    """
    if "test" not in data:
        raise ValueError(f"{what} compares accuracies on test images. Received none: use a test_fraction above 0.")


def as_published(bundle: ModelBundle, benchmark: str | None) -> ModelBundle:
    """Return the model with the preprocessing and the augmentation of a task of FGVC or VTAB-1k, if the data are one.

    Raises:
        ValueError: an unknown task, or an image processor without a fixed size.
    """
    if benchmark is None:
        return bundle
    task = find_task(benchmark)
    processor = task.image_processor(image_size(bundle.image_processor)[0])
    recipe = None if bundle.recipe is None else replace(bundle.recipe, crop=task.crop)
    return replace(bundle, image_processor=processor, recipe=recipe)


def split_classes(names: list[str], base_novel: bool) -> dict[str, list[str]]:
    """Return class names by the name of the split they are evaluated in; the first split is the one to train on.

    Raises:
        ValueError: fewer than two classes to make base and novel of.
    """
    return dict(zip(("base", "novel"), base_novel_split(names), strict=True)) if base_novel else {"all": names}


def eval_sets(
    test: Dataset, classes: dict[str, list[str]], image_processor, keep: Callable = Dataset.with_transform
) -> dict[str, EvalSet]:
    """Return the test images of every split, preprocessed as the model wants them.

    Args:
        test: labelled images.
        classes: class names by the name of the split.
        image_processor: the model's.
        keep: applies the transform to images of one split.

    Raises:
        ValueError: a name is not a class of the images, or a split has no image.
    """
    transform = EvalTransform(image_processor)
    return {name: EvalSet(keep(select_classes(test, names), transform), names) for name, names in classes.items()}
