"""What a run has: its options, its data, and what its steps have made so far. The steps are in `run`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, DatasetDict

from ..data import cache_pixels
from ..data.feature_folders import holds_features
from ..data.multi_hot import is_multi_label
from ..errors import OutputNotFiniteError, TrainingDivergedError
from ..losses.classification import ClassificationLoss
from ..losses.multi_label import BinaryCrossEntropy
from ..training.cached_features import RandomViews, cache_features, feature_rows
from ..training.evaluation import EvalSet
from ..training.gradient_probe import GradientProbe
from ..training.loading import Workers
from ..training.trainer import TrainResult
from ..tuners.base.recipe import Recipe
from ..tuners.base.registry import get_method
from ..tuners.base.spec import MethodSpec
from ..tuners.tip_adapter.search import Found
from ..utils.digests import digest_arrays
from ..utils.processes import Processes, all_processes
from .authors import Choices, published_choices
from .eval_sets import class_names_of, split_classes
from .identity import IDENTITY
from .models import ModelBundle
from .settings import Settings, loss_of
from .several_labels import check_labels
from .supervision import LabelledImages
from .teacher import Teacher


#: Folder, beside the adapter, of the last finite values of a run that diverged.
DIVERGED = "diverged"


@dataclass(frozen=True)
class RunOptions:
    """How a run goes, beside its settings.

    Attributes:
        data_description: where the images are from, for `results.json`; a `benchmark` decides the preprocessing.
        cached: augment every training image once and keep the pixels, which saves time and costs variety.
        watch: measure the test accuracy after every epoch.
        checkpoints: save one after every epoch, so that a killed run goes on where it was.
        workers: processes that load images, or "auto" for as many as the step needs.
        gradients: measure the gradients of clean and noisy samples (`gradient_probe.GradientProbe`) along the way.
        quiet: show no progress bar.
        class_names: names of the classes, where no image has a label.
        device: where to compute, see `utils.devices.find_device`; None for the device that the Trainer takes.
        report_to: trackers of experiments that the Trainer logs to, such as "tensorboard".
        compare: also measure zero-shot, where the model has a text tower.
        report: write `report.html`, which looks at some test images once more when all is saved.
        language: language of the class names, such as "en", for the card.
        license: license of the adapter, such as "mit", for the card.
    """

    data_description: dict | None = None
    cached: bool = False
    watch: bool = False
    checkpoints: bool = True
    workers: Workers = 0
    gradients: bool = False
    quiet: bool = False
    class_names: Sequence[str] | None = None
    device: str | None = None
    report_to: Sequence[str] = ()
    compare: bool = True
    report: bool = False
    language: str | None = None
    license: str | None = None


@dataclass
class RunState:
    """What a run of one method has: what it was asked for, and what each of its steps, the methods of `Run`, makes.

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
        per_class: mean per-class accuracy, likewise; None where images have several labels, or without test images.
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
    per_class: dict[str, float] | None = field(default=None, init=False)
    validation: dict[str, float] | None = field(default=None, init=False)
    zero_shot: dict[str, float] | None = field(default=None, init=False)
    teacher_accuracy: dict[str, float] | None = field(default=None, init=False)

    @property
    def benchmark(self) -> str | None:
        """Full name of the benchmark's task that the images are of."""
        return (self.options.data_description or {}).get("benchmark")

    @property
    def data_path(self) -> str | None:
        """Where the images are; None where nothing says it."""
        return (self.options.data_description or {}).get("path")

    def __post_init__(self):
        check_labels(self.settings, self.multi_label)
        self.classes = split_classes(class_names_of(self.data, self.options.class_names), self.settings.base_novel)

    @property
    def processes(self) -> Processes:
        """The processes that share the work; the first one writes."""
        return all_processes(self.options.device)

    @property
    def published(self) -> Choices:
        """What the method's authors have on the benchmark's task."""
        return published_choices(self.settings, self.benchmark)

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
        asks = self.spec.config_class.__dataclass_fields__
        if self.multi_label and "problem_type" not in asks:
            return BinaryCrossEntropy()
        return loss_of(self.settings)

    @property
    def trained_classes(self) -> list[str]:
        """Names of the classes to train on, in label order."""
        return next(iter(self.classes.values()))

    @contextmanager
    def values_kept(self) -> Iterator[None]:
        """Save the last finite values beside the adapter's place, where it shows in the block that training diverged.

        Raises:
            TrainingDivergedError: it did.
        """
        try:
            yield
        except (TrainingDivergedError, OutputNotFiniteError) as error:
            if self.recipe is None:
                raise
            folder = self.output / DIVERGED
            if self.processes.is_first:
                self.bundle.model.save_pretrained(str(folder))
            said = str(error) if isinstance(error, TrainingDivergedError) else f"Training diverged. {error}"
            message = f"{said} The last finite values are in {folder}; nothing else was written."
            last = self.recipe.epochs_for(self.settings.shots) or 0
            raise TrainingDivergedError(message, getattr(error, "epoch", last)) from error

    @property
    def _is_searched(self) -> bool:
        return getattr(self.bundle.model.active_peft_config, "search_scale", None) is not None

    def _stages(self, recipe: Recipe) -> list[tuple[int | None, int | None]]:
        """Return the epochs or the steps of each stage of the training."""
        return recipe.stages(recipe.epochs_for(self.settings.shots), recipe.steps_for(self.settings.shots))

    def _depends_on(self) -> dict:
        """Return what a checkpoint must agree in with this run, beside recipe and seed, for the run to go on from it."""
        _, labelled = self._to_train
        labels = None if self.teacher is not None else digest_arrays(labelled.rows["label"][:])
        return {IDENTITY: self.identity, "labels": labels, "chosen": labelled.choice}

    def _rows(self, images: Dataset, transform, views: int = 1, in_memory: bool = False):
        """Return transformed images: as features on the disk, as pixels in memory, or as they are read."""
        if holds_features(images):
            return feature_rows(images)
        if not self.settings.cache_features:
            rows = images.with_transform(transform)
            return cache_pixels(rows) if in_memory else rows
        model = self.bundle.model
        options = {"views": views, "seed": self.settings.seed, "workers": self.options.workers}
        with self.processes.one_by_one(), nullcontext() if self.spec.trains else model.disable_adapter():
            features = cache_features(model, images, transform, **options)
        return feature_rows(features, views)
