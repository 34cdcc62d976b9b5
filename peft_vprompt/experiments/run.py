"""One run of one method: pick the shots, train, evaluate, save the adapter and its results. Used by every command."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME

from ..data import TrainTransform, draw_of, find_task, image_size
from ..data.images import as_drafts
from ..losses.label_checks import MULTI_LABEL
from ..peft_models.adapter_files import said_digest, take_card
from ..training.cached_features import FEATURES, cache_features, feature_rows
from ..training.distillation import DistillationRows, take_teacher
from ..training.evaluation import (
    EvalSet,
    batches,
    evaluate,
    main_metric,
    measure,
    measure_beside_zero_shot,
    set_class_names,
)
from ..training.gradient_probe import GradientProbe
from ..training.loading import require_workers
from ..training.trackers import check_trackers
from ..training.trainer import train
from ..utils.arguments import typed
from ..utils.devices import find_device
from ..utils.io import atomic_files, write_json
from ..utils.locks import Writer, only_writer
from .cards import card_details
from .ensemble import context_tokens, set_contexts
from .eval_sets import class_names_of, eval_sets
from .feature_data import check_features
from .identity import PAGE, RESULTS, Contents, finished_run, keep_previous, tell_changes
from .models import ModelBundle, as_published, build_model
from .run_page import look, write_page
from .run_report import report_of
from .run_state import RunOptions, RunState
from .settings import Settings, changed_recipe
from .settings_checks import check_settings
from .supervision import LabelledImages, training_images
from .teacher import Teacher, load_teacher
from .templates import published_template


@typed
def run_experiment(
    settings: Settings,
    data: DatasetDict,
    output: str | Path,
    *,
    contents: Contents | None = None,
    wait: bool = False,
    **options,
) -> dict:
    """Train and evaluate one method.

    Only `settings`, `data` and `cached` decide what is trained. A run is known by its content: base model, images, class
    names, settings and the version of this package. Started again with the same it goes on where it was; with another it
    warns and trains afresh, and what the folder held of another run is kept in `previous/`. One process at a time writes
    to the folder.

    Args:
        settings: what to run.
        data: `train` and, to measure the accuracy on, `test` with the columns `image` and `label`, as from
            `data.load_images`; also `validation`, which is used where images were held out by
            `val_fraction`, for a search, and with `watch` where there are no test images.
        output: folder for the adapter and `results.json`.
        contents: digests of the data that are known already, for several runs on the same data.
        wait: wait while another process writes to the folder; else refuse.
        **options: how the run goes: `cached=True`, `quiet=True` and the further fields of `RunOptions`.

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
    run_options = RunOptions(**options)
    check_trackers(run_options.report_to)
    require_workers(run_options.workers)
    run = Run(settings, data, Path(output), run_options)
    return run.carry_out(contents or Contents(data, run_options.data_description, run_options.cached), wait)


def run_once(settings: Settings, data: DatasetDict, folder: Path, contents: Contents, **options) -> dict:
    """Return the report of a run, which is made unless the folder has the same one by content.

    Raises:
        ValueError, TrainingDivergedError: as `run_experiment`.
    """
    report = finished_run(folder, contents.identity(settings, class_names_of(data)))
    return run_experiment(settings, data, folder, contents=contents, **options) if report is None else report


class Run(RunState):
    """One run of one method, as steps that are taken in the order they stand in; see `RunState` for what each makes."""

    def carry_out(self, contents: Contents, wait: bool = False) -> dict:
        """Take the steps one after another, as the only writer of the folder.

        Args:
            contents: digests of the data.
            wait: wait while another process writes to the folder; else refuse.

        Returns, raises:
            As `run_experiment`.
        """
        with only_writer(self.output, wait) as writer:
            self.build()
            self.identify(contents)
            self.prepare_tests()
            if self.spec.trains:
                self.label()
                self.take_support()
            if self.recipe is not None:
                self.train()
            self.search()
            with self.values_kept():
                self.evaluate()
            return self.processes.from_first(partial(self.save, writer))

    def build(self) -> None:
        """Build the model, with the classes to train on; what cannot be evaluated later is refused here."""
        settings = self.settings
        config = settings.config | ({"num_contexts": settings.ensemble} if settings.ensemble > 1 else {})
        if self.multi_label and self._loss is None:
            config |= {"problem_type": MULTI_LABEL}
        device = find_device(self.options.device)
        if settings.teacher is not None:
            about = (self.trained_classes, device, self.benchmark, settings.config)
            self.teacher = load_teacher(settings.teacher, settings.teacher_model, *about)
            config = {"teacher_dim": self.teacher.features.shape[1]} | config
        bundle = self._build(settings.seed, config)
        if self.multi_label and self._loss is not None:  # a head, whose config has no field for it
            bundle.model.get_base_model().config.problem_type = MULTI_LABEL
        if self.teacher is not None:
            take_teacher(bundle.model, self.teacher.model)
            bundle.content |= self.teacher.content
        bundle = replace(bundle, recipe=self.published.vary(bundle.recipe))
        noisy_recipe = self.spec.noisy_recipe
        if noisy_recipe is not None and not settings.supervision.is_plain:
            bundle = replace(bundle, recipe=noisy_recipe)
        if self.multi_label and bundle.recipe is not None:  # a crop may leave out what the image is labelled with
            bundle = replace(bundle, recipe=replace(bundle.recipe, crop="none"))
        self.bundle = as_published(bundle, self.benchmark)
        check_features(self.data, settings, self.bundle)
        self.recipe = None if self.bundle.recipe is None else changed_recipe(self.bundle.recipe, settings)
        if self.recipe is not None:
            self._stages(self.recipe)  # too short a length is refused here
        for names in [*self.classes.values(), self.trained_classes]:
            set_class_names(self.bundle.model, names)

    def identify(self, contents: Contents) -> None:
        """Find out what the run is by content, and say so where the folder holds another run."""
        self.identity = self.content(contents)
        tell_changes(self.output, self.identity)

    def content(self, contents: Contents) -> dict:
        """Return what the run is by content, see `Contents.identity`."""
        names = [name for names in self.classes.values() for name in names]
        return contents.identity(self.settings, names, self.bundle.content)

    def prepare_tests(self) -> None:
        """Transform the test images; as pixels, all of them may not fit in memory, so only features are kept.

        Raises:
            ValueError: each epoch is to be tested, and there are no test images.
        """
        self.test_sets = self._eval_sets("test")
        held_out = (self.options.data_description or {}).get("val_fraction")
        asked = held_out or self._is_searched or (self.options.watch and not self.test_sets)
        self.validation_sets = self._eval_sets("validation") if asked else {}
        remedy = (
            "Leave the published validation images out of the training (--train-split train)"
            if self.benchmark
            else "Hold some out by val_fraction (--val-fraction)"
        )
        if self.options.watch and not (self.test_sets or self.validation_sets):
            raise ValueError(
                f"Expected images to test after every epoch. Received no test images. {remedy}, or leave --watch out."
            )
        if self._is_searched and not self.validation_sets:
            raise ValueError(
                f"Expected images to search alpha and beta on. Received no validation images. {remedy}, or leave "
                "search_scale out."
            )

    def _eval_sets(self, split: str) -> dict[str, EvalSet]:
        if split not in self.data:
            return {}
        return eval_sets(self.data[split], self.classes, self.bundle.image_processor, self._tested)

    def _tested(self, images: Dataset, transform) -> Any:
        """Return transformed images to test on."""
        return self._rows(images, transform)

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
            draw_of(self.benchmark, self.data_path),
            self.processes,
        )

    def take_support(self) -> None:
        """Let a method that learns from features of the training images do so, see `MethodSpec.support`.

        Where the authors train on these features, they are the training images from now on.
        """
        support, labelled = self.spec.support, self.labelled
        if support is None or labelled is None:
            return
        model = self.bundle.model
        crop = (find_task(self.benchmark).crop if self.benchmark else None) or "random_resized_crop"
        transform = TrainTransform(self.bundle.image_processor, crop, support.crop_scale)
        views = self.settings.views or support.views
        options = {"views": views, "seed": self.settings.seed, "normalized": support.trained_on}
        with self.processes.one_by_one():
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
            images = labelled.rows
            if self.settings.draft_jpeg:
                images = as_drafts(images, 2 * min(image_size(self.bundle.image_processor)))
            rows = self._rows(images, transform, self.settings.views or 1, in_memory=self.options.cached)
        if self.options.gradients:
            # pyrefly: ignore[bad-argument-type]  # rows are a sequence by what they can do
            self.probes = [GradientProbe(rows, labelled.wrong, self._loss)]
        with self.values_kept():
            if self.settings.ensemble == 1:
                self._train_one(self.bundle.model, rows, self.settings.seed, self.output)
            else:
                self._train_ensemble(rows)

    def search(self) -> None:
        """Search alpha and beta of a Tip-Adapter on the images that were held out, where the config asks for it."""
        if self._is_searched:
            config: Any = self.bundle.model.active_peft_config
            (held_out,) = self.validation_sets.values()
            options = {"scale": config.search_scale, "step": config.search_step}
            self.found = self.bundle.model.search_cache(batches(held_out.rows, 100), **options)

    def _distillation_rows(self, teacher: Teacher) -> DistillationRows:
        recipe, labelled = self._to_train
        config: Any = self.bundle.model.active_peft_config
        with self.processes.one_by_one():
            return teacher.rows(
                labelled.rows,
                self.bundle.image_processor,
                recipe,
                config.temperature,
                views=self.settings.views or 1,
                seed=self.settings.seed,
                progress=None if self.options.quiet else "Teacher",
            )

    def evaluate(self) -> None:
        """Measure the accuracy on every split, and leave the model with the classes it was trained on."""
        options: dict[str, Any] = {
            "progress": None if self.options.quiet else "Test",
            "workers": self.options.workers,
            "processes": self.processes,
        }
        model, untrained = self.bundle.model, not self.spec.trains
        if untrained or not self.options.compare:
            found = measure(model, self.test_sets, zero_shot=untrained, **options)
            plain = found if untrained else None
        else:
            template = None if "template" in self.settings.config else published_template(self.benchmark)
            found, plain = measure_beside_zero_shot(model, self.test_sets, template=template, **options)
        self.accuracy = main_metric(found)
        self.per_class = found.get("per_class")
        self.zero_shot = None if plain is None else main_metric(plain)
        if self.teacher is not None and self.test_sets:
            sets = eval_sets(self.data["test"], self.classes, self.teacher.bundle.image_processor)
            self.teacher_accuracy = self.teacher.accuracy(sets, **options)
        if self.validation_sets:
            self.validation = evaluate(model, self.validation_sets, zero_shot=untrained, processes=self.processes)
        set_class_names(self.bundle.model, self.trained_classes)

    def report(self) -> dict:
        """Return what `results.json` holds, but for the size of the adapter's file."""
        return report_of(self)

    def save(self, writer: Writer) -> dict:
        """Write the adapter, if one was trained, and `results.json` in one step; return what the latter holds.

        Args:
            writer: the right to write to the folder.

        Raises:
            FolderInUseError: another process took over.
            CannotWriteError: the disk is full, or the folder is not to be written.
        """
        writer.check()
        was_other = keep_previous(self.output, self.identity)
        with atomic_files(self.output) as staging:
            report = self.report()
            if self.spec.trains:
                take_card(self.output, staging)
                self.bundle.model.card_details = card_details(
                    report, language=self.options.language, license=self.options.license
                )
                self.bundle.model.save_pretrained(str(staging))
                report["adapter_bytes"] = (staging / SAFETENSORS_WEIGHTS_NAME).stat().st_size
                report["adapter_digest"] = said_digest(staging, {})
            write_json(report, staging / RESULTS)
            writer.check()
        if self.options.report:
            self._write_page(report)
        elif was_other:
            (self.output / PAGE).unlink(missing_ok=True)
        return report

    def _write_page(self, report: dict) -> None:
        """Write `report.html`, and leave the model with the classes it was trained on."""
        model = self.bundle.model
        with nullcontext() if self.spec.trains else model.disable_adapter():
            findings = [look(model, name, test_set) for name, test_set in self.test_sets.items()]
        set_class_names(model, self.trained_classes)
        write_page(report, [found for found in findings if found], self.output / PAGE)

    def _build(self, seed: int, config: dict) -> ModelBundle:
        """Build a model with an untrained adapter of the settings, but for the seed and fields of the config."""
        settings = self.settings
        return build_model(
            settings.model,
            settings.method,
            self.trained_classes,
            seed,
            image_size=settings.image_size,
            device=find_device(self.options.device),
            precision=settings.precision,
            **self.published.config | config,
        )

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
                progress=None if options.quiet else self.spec.title,
                scale_loss=self.settings.precision == "fp16",
                workers=options.workers,
                callbacks=self.probes,
                device=options.device,
                report_to=options.report_to,
            )
            self.results.append(result)

    def _train_ensemble(self, rows) -> None:
        """Train contexts from several seeds one by one and join them in one adapter."""
        contexts = []
        for seed in range(self.settings.seed, self.settings.seed + self.settings.ensemble):
            member = self._build(seed, self.settings.config)
            self._train_one(member.model, rows, seed, self.output / f"context-{seed}")
            contexts.append(context_tokens(member.model))
        set_contexts(self.bundle.model, contexts)
