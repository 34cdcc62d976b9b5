"""A trained adapter on any images and any classes: which these are, the text around their names, and what accuracy stands beside.

`Evaluation.prepare` reads the images and loads the model, `measure` and `diagnose` look at what it answers.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..data import DataOptions, EvalTransform, load_split
from ..data.multi_hot import is_multi_label
from ..data.options import as_trained, described, require_outside, same_images
from ..data.sources import require_same_split
from ..demo import demo_task
from ..peft_models.adapter_files import RESULTS
from ..training.cached_features import require_features_of
from ..training.eval_classes import among_own_classes, compares_with_text, own_classes
from ..training.evaluation import EvalSet, chance, main_metric, measure, measure_beside_zero_shot
from ..training.test_time import evaluate_at_test_time
from ..utils.environment import environment
from ..utils.processes import Processes
from .adapter_classes import classes_to_tell_apart, require_moves, subsets, warn_trained
from .authors import fields_elsewhere
from .diagnostics import diagnose
from .eval_sets import eval_sets
from .models import ModelBundle, as_published, build_model
from .results import require_local_data
from .several_labels import MEAN_AVERAGE_PRECISION, chance_of_several
from .templates import published_template, read_templates, set_templates
from .test_time import TestTimeSettings, view_sets
from .trained import SavedAdapter


#: Why neither goes with images of several classes.
ONE_CLASS = (
    "Diagnosis and test-time tuning compare one class with another for each image. Leave --diagnose and --test-time out with "
    "--multi-label."
)
#: Why test-time tuning goes with nothing else.
APART = ", which is of the adapter as it is. Run them apart."


@dataclass(frozen=True)
class EvaluationSettings:
    """What an adapter is evaluated on, and how.

    Attributes:
        model: the base model; None for the one that the adapter names.
        data: where the images are; None for those of the training.
        said: names of the fields of `data` that were given, be it with the value that they have by default; None for those
            with another value. The others may be as in the training.
        split: the one to evaluate on; None for the one that the training tested on, of other data all images.
        subset: base, novel or all.
        new_classes: tell the classes of the data apart, in the place of the adapter's.
        template: names of templates, or texts with `{}` in the place of the class name; several are averaged.
        class_descriptions: file of sentences by class, which stand for templates.
        zero_shot: switch the adapter off.
        tuning: how the context of each image is tuned; None for the adapter as it is.
        words: words that the context starts from where there is no adapter.
        image_size: edge of the images in pixels; None for that of the training.
        device: where to compute.
        precision: what frozen weights are held in.

    Raises:
        ValueError: settings that do not go together.
    """

    model: str | None = None
    data: DataOptions | None = None
    said: Collection[str] | None = None
    split: str | None = None
    subset: str = "all"
    new_classes: bool = False
    template: Sequence[str] | None = None
    class_descriptions: str | Path | None = None
    zero_shot: bool = False
    tuning: TestTimeSettings | None = None
    words: str | None = None
    image_size: int | None = None
    device: Any = "cpu"
    precision: str = "auto"

    def __post_init__(self):
        if self.tuning is not None and self.zero_shot:
            raise ValueError(f"Expected --test-time alone. Received: --zero-shot{APART}")

    @property
    def names_said(self) -> Collection[str]:
        """Names of the fields of `data` that count as given."""
        if self.said is not None or self.data is None:
            return self.said or ()
        known = [each for each in fields(self.data) if each.name != "path"]
        return {each.name for each in known if getattr(self.data, each.name) != each.default}


@dataclass(frozen=True)
class Text:
    """What goes around the class names of an evaluation.

    Attributes:
        templates: asked for, or published for another task than that of the training; None for the adapter's own.
        plain: what zero-shot reads beside the adapter; None for the same.
        changes: further fields of the adapter's config on another task.
        is_asked: whether the templates were asked for.
    """

    templates: str | list[str] | None = None
    plain: str | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    is_asked: bool = False

    def apply(self, model: Any) -> None:
        """Put it around the class names of a PEFT model.

        Raises:
            ValueError: templates are asked for and the model reads no text.
        """
        if self.templates is not None and (self.is_asked or compares_with_text(model)):
            set_templates(model, self.templates)
        for name, value in self.changes.items():
            setattr(model.active_peft_config, name, value)


@dataclass(frozen=True)
class Evaluation:
    """A loaded adapter, and the images and classes that it is evaluated on.

    Attributes:
        saved: the adapter; None for a context of words.
        settings: what was asked for.
        bundle: the model.
        rows: labelled images.
        names: classes that are told apart.
        text: what goes around their names.
        task: the published task that is evaluated on, where the adapter was trained on something else.
    """

    saved: SavedAdapter | None
    settings: EvaluationSettings
    bundle: ModelBundle
    rows: Dataset
    names: list[str]
    text: Text
    task: str | None

    @classmethod
    def prepare(
        cls, saved: SavedAdapter | None, settings: EvaluationSettings, outputs: Sequence[str | Path | None] = ()
    ) -> Evaluation:
        """Read the images, find the classes to tell apart, and load the model.

        Args:
            saved: the adapter; None for a context of words.
            settings: what to evaluate on.
            outputs: files and folders that will be written, which must lie outside of the data.

        Raises:
            ValueError: settings that do not go with the adapter or the data.
            OSError, AdapterMismatchError: as `load_adapter`.
        """
        trained_on = trained_data(saved, settings.data)
        data = _as_trained(settings, trained_on)
        require_outside(data, *outputs)
        task = _other_task(data, saved)
        text = _text(settings, saved, data, task)
        new = _tells_new_classes(settings, saved, task)
        rows = _read(data, settings, trained_on)
        rows = classes_to_tell_apart(rows, _listed_names(settings), saved.known_classes if saved else None, new)
        classes = subsets(rows.features["label"].names, saved.run if saved else None)
        _check(settings, saved, classes, is_multi_label(rows))
        bundle = as_published(_load(saved, settings, classes["all"]), data.benchmark if data else None)
        with bundle.model.disable_adapter() if settings.zero_shot else nullcontext():
            require_features_of(bundle.model, EvalTransform(bundle.image_processor), rows)
        text.apply(bundle.model)
        if settings.new_classes:
            require_moves(own_classes(bundle.model), classes["all"])
        return cls(saved, settings, bundle, rows, classes[settings.subset], text, task)

    @property
    def note(self) -> str | None:
        """What changes with the task: the classes to tell apart, and the text around their names; None of that of the training."""
        if self.task is None:
            return None
        own = "task" if _tells_new_classes(self.settings, self.saved, self.task) else "adapter"
        said = [f"the {own}'s own classes are told apart"]
        if isinstance(self.text.templates, str):
            said.append(f"in the template {self.text.templates!r} where the text is not learned")
        return f"{self.task} is not what was trained on: {', '.join(said)}."

    @property
    def is_multi_label(self) -> bool:
        """Whether images are of several classes or none."""
        return is_multi_label(self.rows)

    @functools.cached_property
    def test_set(self) -> EvalSet:
        """The images as the model takes them, and the classes that they are told apart among."""
        (found,) = eval_sets(self.rows, self._asked, self.bundle.image_processor).values()
        return among_own_classes(self.bundle.model, found)

    def measure(self, processes: Processes | None = None, progress: str | None = None) -> dict:
        """Return what the model reaches, and beside it zero-shot and chance, as JSON has it.

        Args:
            processes: those that share the images; None for this one alone.
            progress: label of a progress bar; None for no bar.
        """
        settings, subset, test_set = self.settings, self.settings.subset, self.test_set
        measured, plain, untuned = self._measure(test_set, processes=processes, progress=progress)
        guessed = (
            chance_of_several(self.rows, self._asked)
            if self.is_multi_label
            else chance({subset: test_set.class_names})
        )
        return {
            "adapter": self.saved.adapter if self.saved else None,
            "subset": subset,
            "zero_shot": settings.zero_shot,
            "images": len(test_set.rows),
            "classes": test_set.class_names,
            **({"metric": MEAN_AVERAGE_PRECISION} if self.is_multi_label else {}),
            "accuracy": main_metric(measured),
            **({"per_class": measured["per_class"]} if "per_class" in measured else {}),
            "zero_shot_accuracy": plain,
            **({"template": self.text.templates} if self.text.templates else {}),
            **({"words": settings.words} if settings.words else {}),
            **({"test_time": asdict(settings.tuning), "untuned_accuracy": untuned} if settings.tuning else {}),
            "chance": guessed,
            "image_size": _image_size(self.saved, settings),
            "environment": environment(),
        }

    def diagnose(self, folder: str | Path) -> dict:
        """Write calibration, confusion and an estimate of wrong labels into a folder, and return them; see `diagnose`.

        Raises:
            ValueError: as `check_diagnosis`.
        """
        self.check_diagnosis()
        return diagnose(self.bundle.model, self.test_set, folder, self.settings.zero_shot)

    def check_diagnosis(self) -> None:
        """Refuse what a diagnosis says nothing of.

        Raises:
            ValueError: images of several classes, or contexts that are tuned.
        """
        if self.settings.tuning is not None:
            raise ValueError(f"Expected --test-time alone. Received: --diagnose{APART}")
        if self.is_multi_label:
            raise ValueError(ONE_CLASS)

    @property
    def _asked(self) -> dict[str, list[str]]:
        return {self.settings.subset: self.names}

    def _measure(self, test_set: EvalSet, **options: Any) -> tuple[dict[str, dict], dict | None, dict | None]:
        """Return metrics by name, and beside them the accuracies of zero-shot and without tuning, where they are others."""
        model, tuning, sets = self.bundle.model, self.settings.tuning, {self.settings.subset: test_set}
        if self.settings.zero_shot:
            return measure(model, sets, zero_shot=True, **options), None, None
        if tuning is None:
            measured, plain = measure_beside_zero_shot(model, sets, template=self.text.plain, **options)
            return measured, None if plain is None else main_metric(plain), None
        views = view_sets(self.rows, self._asked, self.bundle.image_processor, tuning)
        views = {subset: among_own_classes(model, each) for subset, each in views.items()}
        accuracy, untuned = evaluate_at_test_time(model, views, tuning, **options)
        plain = main_metric(measure(model, sets, zero_shot=True, **options))
        return {"accuracy": accuracy}, plain, untuned


def trained_data(saved: SavedAdapter | None, data: DataOptions | None = None) -> DataOptions | None:
    """Return where the images of an adapter's training are; None for the embedded task, or where nothing says it.

    Args:
        saved: the adapter; None without one.
        data: other images that are given; without these, those of the training are read, and must be on this machine.

    Raises:
        ValueError: nothing beside the adapter names its images, or they are not on this machine.
    """
    if saved is None:
        return None
    if data is None:
        if saved.run is None:
            raise ValueError(f"{saved.adapter} has no {RESULTS} of its own that names its data. Give --data.")
        require_local_data(saved.run["data"], Path(saved.adapter) / RESULTS)
    described_as = saved.run["data"] if saved.run else None
    return None if described_as is None else described(described_as, saved.adapter)


def _listed_names(settings: EvaluationSettings) -> list[str] | None:
    """Return the class names that were given as a list; None for a mapping or none."""
    given = settings.data.class_names if settings.data is not None and "class_names" in settings.names_said else None
    return list(given) if isinstance(given, tuple) else None


def _as_trained(settings: EvaluationSettings, trained_on: DataOptions | None) -> DataOptions | None:
    """Return where the images are, with what is not said of them as in the training, where they are its own."""
    data = settings.data
    if data is None or trained_on is None:
        return data or trained_on
    if same_images(data, trained_on):
        return as_trained(data, trained_on, settings.names_said)
    return data if "background" in settings.names_said else replace(data, background=trained_on.background)


def _read(data: DataOptions | None, settings: EvaluationSettings, trained_on: DataOptions | None) -> Dataset:
    """Read the images to evaluate on; of other data than the training's all, where they are not split."""
    if data is None:
        # pyrefly: ignore[bad-argument-type]  # refused there, if there is no such split
        return demo_task(settings.split or "test")
    cut = "test_fraction" in settings.names_said
    if trained_on is not None and same_images(data, trained_on):
        require_same_split(data, settings.split, trained_on)
        cut = True
    return load_split(data, settings.split or (data.test_split if cut else None))


def _other_task(data: DataOptions | None, saved: SavedAdapter | None) -> str | None:
    """Return the published task to evaluate on, where it is not the one that the adapter was trained on."""
    target = data.benchmark if data is not None else None
    return target if saved is not None and target != saved.benchmark else None


def _tells_new_classes(settings: EvaluationSettings, saved: SavedAdapter | None, task: str | None) -> bool:
    """Tell whether the data's own classes are told apart, in the place of the adapter's."""
    return settings.new_classes or (saved is not None and task is not None and saved.moves)


def _text(
    settings: EvaluationSettings, saved: SavedAdapter | None, data: DataOptions | None, task: str | None
) -> Text:
    """Return what goes around class names: what is asked for, else what is published for the task."""
    is_described = settings.class_descriptions is not None
    known = data if data is not None else saved
    templates = read_templates(settings.template, None if known is None else known.benchmark, is_described)
    changes = {} if saved is None or is_described else fields_elsewhere(saved.config, task)
    published = changes.pop("template", None)
    plain = None
    if not (settings.template or is_described):
        own = saved.run["settings"].get("config") if saved is not None and saved.run is not None else None
        has_own = isinstance(own, dict) and bool(own.keys() & {"template", "class_descriptions"})
        plain = published_template(task if has_own else None if known is None else known.benchmark)
    return Text(
        templates or published or (plain if settings.zero_shot else None), plain, changes, bool(settings.template)
    )


def _check(
    settings: EvaluationSettings, saved: SavedAdapter | None, classes: dict[str, list[str]], several: bool
) -> None:
    """Refuse what the classes of the images do not allow, and warn of classes that are not new to the adapter."""
    if settings.subset not in classes:
        raise ValueError(f"The classes to evaluate are base, novel or all. Received: --subset {settings.subset}.")
    if not settings.zero_shot:
        run, has_head = (None, False) if saved is None else (saved.run, saved.is_classifier)
        warn_trained(settings.subset, classes[settings.subset], run, has_head)
    if several and settings.tuning is not None:
        raise ValueError(ONE_CLASS)


def _image_size(saved: SavedAdapter | None, settings: EvaluationSettings) -> int | None:
    return settings.image_size or (saved.image_size if saved else None)


def _load(saved: SavedAdapter | None, settings: EvaluationSettings, names: list[str]) -> ModelBundle:
    """Load the adapter, or make a context of words."""
    place: dict[str, Any] = {
        "image_size": _image_size(saved, settings),
        "device": settings.device,
        "precision": settings.precision,
        "class_descriptions": settings.class_descriptions,
    }
    if saved is not None:
        return saved.load(settings.model, names, **place)
    return build_model(settings.model, "coop", names, prompt_init="text", prompt_init_text=settings.words, **place)
