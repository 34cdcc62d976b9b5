"""A study of label noise: methods x kinds of noise x rates x losses x seeds on one data set, and runs without labels.

Every run is saved when it is done and is not repeated, so a study that was stopped goes on where it was.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

from ..data import EvalTransform, draw_of
from ..data.options import portable
from ..errors import TrainingDivergedError
from ..losses.classification import make_loss
from ..metrics import scores
from ..training.cached_features import cache_features, feature_rows
from ..training.evaluation import EvalSet, evaluate
from ..tuners.base.registry import get_method
from ..tuners.base.shared_recipes import PTNL
from ..utils.arguments import typed
from ..utils.devices import find_device
from ..utils.digests import digest_json
from ..utils.environment import environment
from ..utils.fields import check_fields
from ..utils.io import write_json
from ..utils.locks import only_writer
from ..utils.validation import require_different
from .cells import run_cells
from .eval_sets import class_names_of, require_test_images
from .identity import IDENTITY, RESULTS, Contents, finished_run, keep_previous, report_diverged
from .models import ModelBundle, as_published, build_model, published_fields
from .run import run_experiment
from .settings import SEED, Settings, parse_method, safe_name
from .supervision import Supervision, training_images


#: The six ways to tune of the PTNL paper (section 3), and a logistic regression on the image features.
LINEAR_PROBE = "linear-probe"
METHODS = ("coop", "full-prompt", "class-name", "classifier-c", "classifier-r", "tenc-ft", LINEAR_PROBE)

#: Parts of the training images in the cross-validation of the logistic regression.
FOLDS = 3

#: Runs without labels: zero-shot, UPL, and robust UPL with its two parts apart.
WITHOUT_LABELS = (("zero-shot", None, None), ("coop", "top-k", None), ("coop", "top-k", "gce"),
                  ("coop", "random-k", None), ("coop", "random-k", "gce"))  # fmt: skip


@dataclass(frozen=True)
class Study:
    """What to run.

    Attributes:
        base: settings that all runs share: model, shots, recipe; what it leaves open of the recipe is PTNL's.
        methods: method names; `coop:num_virtual_tokens=4` sets fields of the method's config.
        kinds: kinds of noise.
        rates: noise rates; at rate 0 the kinds are one and the same run.
        losses: names of losses.
        seeds: seeds.
        loss_options: parameters of each loss, by its name.
        gradients: also measure the gradients of clean and noisy samples, at the highest rate.
        without_labels: also compare zero-shot, UPL and robust UPL.

    Raises:
        ValueError: nothing to compare, or a value of another type; names the field.
    """

    base: Settings
    methods: tuple[str, ...] = METHODS
    kinds: tuple[str, ...] = ("symmetric",)
    rates: tuple[float, ...] = (0.0, 0.125, 0.25, 0.5)
    losses: tuple[str, ...] = ("ce", "gce")
    seeds: tuple[int, ...] = field(default=(1, 2, 3), metadata=SEED)
    loss_options: dict[str, dict] = field(default_factory=dict)
    gradients: bool = False
    without_labels: bool = False

    def __post_init__(self):
        check_fields(self)
        for name in ("methods", "kinds", "rates", "losses", "seeds"):
            require_different(name, getattr(self, name))

    def runs(self) -> Iterator[tuple[str, Settings]]:
        """Yield every run: the method as it was asked for, and its settings. All of the first seed come first.

        Raises:
            ValueError: an unknown method, loss or kind of noise, a rate out of range, or too few shots.
        """
        for seed in self.seeds:
            for spec in self.methods:
                for loss in self.losses if spec != LINEAR_PROBE else (None,):
                    for noise, rate in self._noises():
                        yield spec, self._settings(spec, loss, seed, Supervision(noise, rate))
            for method, selector, loss in WITHOUT_LABELS if self.without_labels else ():
                yield method, self._settings(method, loss, seed, Supervision(unlabelled=selector))

    def _noises(self) -> list[tuple[str | None, float]]:
        clean: list[tuple[str | None, float]] = [(None, 0.0)] if 0 in self.rates else []
        return clean + [(kind, rate) for kind in self.kinds for rate in self.rates if rate]

    def _settings(self, spec: str, loss: str | None, seed: int, supervision: Supervision) -> Settings:
        method, config = parse_method(spec)
        options = {} if loss is None else self.loss_options.get(loss, {})
        if loss is not None:
            make_loss(loss, **options)
        if method != LINEAR_PROBE:
            get_method(method)
        elif self.base.shots is not None and self.base.shots < FOLDS:
            raise ValueError(
                f"Expected at least {FOLDS} shots with {LINEAR_PROBE!r}, which is cross-validated. "
                f"Received: shots={self.base.shots}. Use more shots, or leave {LINEAR_PROBE!r} out of the methods."
            )
        changes = {"method": method, "seed": seed, "loss": loss, "loss_options": options, "supervision": supervision}
        for name in ("learning_rate", "batch_size", "epochs"):
            if getattr(self.base, name) is None:
                changes[name] = getattr(PTNL, name)
        return replace(self.base, config=self.base.config | config, base_novel=False, **changes)


@typed
def run_study(
    study: Study,
    data: DatasetDict,
    output: str | Path,
    data_description: dict | None = None,
    device: str | None = None,
    storage: str | None = None,
) -> dict:
    """Run what is not done yet, by content as `run_experiment` says, and write `study.json`.

    Whoever starts the same study on the same folder takes part in it, see `cells.run_cells`.

    Args:
        study: what to run.
        data: `train` and `test`, as for `run_experiment`.
        output: folder for `study.json` and the single runs.
        data_description: where the images are from.
        device: where to compute, see `utils.devices.find_device`; None for the device that the Trainer takes.
        storage: URL of a database, see `cells.run_cells`.

    Returns:
        What `study.json` holds: the runs, their means and standard deviations over seeds, zero-shot and guessing beside
        them, machine and versions.

    Raises:
        ValueError: an unknown method, loss or kind of noise, a rate out of range, or whatever `run_experiment` refuses.
        FailedCellsError: runs failed.
        CannotWriteError: the disk is full, or the folder is not to be written.
    """
    require_test_images(data, "A noise study")
    runs = list(study.runs())  # refuses what is wrong before the first run
    return _run_all(study, runs, data, Path(output), data_description, device, storage)


def _run_all(
    study: Study,
    runs: list[tuple[str, Settings]],
    data: DatasetDict,
    output: Path,
    data_description: dict | None,
    device: str | None,
    storage: str | None,
) -> dict:
    contents = Contents(data, data_description)
    names = class_names_of(data)
    identities = [contents.identity(settings, names) for _, settings in runs]
    folders = [_name(spec, settings, identity) for (spec, settings), identity in zip(runs, identities, strict=True)]

    def work(folder: str, run: tuple[Settings, dict]) -> dict:
        settings, identity = run
        place = output / "runs" / folder
        probe = study.gradients and _is_probed(study, settings)
        report = finished_run(place, identity, gradients=probe)
        return report or _run(settings, data, place, data_description, probe, contents, device)

    cells = {
        folder: (settings, identity) for folder, (_, settings), identity in zip(folders, runs, identities, strict=True)
    }
    book = digest_json([folders, study.gradients], 12)
    reports = run_cells(cells, work, output, book=book, storage=storage, title="Study")
    records = [_record(spec, reports[folder]) for folder, (spec, _) in zip(folders, runs, strict=True)]
    plain = zero_shot_accuracy(study.base, data, data_description, device)
    identity = contents.identity(study.base, names) | {"runs": digest_json(folders, 32)}
    result = {
        "runs": records,
        "summary": summarise(records),
        "zero_shot": plain,
        "chance": 100 / len(names),
        "data": portable(data_description, output),
        IDENTITY: identity,
        "environment": environment(),
    }
    with only_writer(output, wait=True):
        keep_previous(output, identity, "study.json")
        write_json(result, output / "study.json")
    return result


def _is_probed(study: Study, settings: Settings) -> bool:
    rate = settings.supervision.noise_rate
    return settings.method != LINEAR_PROBE and rate > 0 and rate == max(study.rates)


def _name(spec: str, settings: Settings, identity: dict) -> str:
    """Return the folder of a run: readable, and different for every difference in content."""
    supervision = settings.supervision
    parts = [safe_name(spec.replace("=", "-")), settings.loss or "own", supervision.unlabelled]
    parts += [supervision.noise, f"{supervision.noise_rate:g}" if supervision.noise else "clean", str(settings.seed)]
    return "-".join([*filter(None, parts), digest_json(identity, 8)])


@typed
def zero_shot_accuracy(
    settings: Settings, data: DatasetDict, data_description: dict | None = None, device: str | None = None
) -> float:
    """Return the accuracy of zero-shot on the test images, in percent, from their cached features."""
    names = class_names_of(data)
    clip = _plain_clip(settings, names, data_description, device)
    with clip.model.disable_adapter():
        features = cache_features(clip.model, data["test"], EvalTransform(clip.image_processor))
    rows: Any = feature_rows(features)
    return evaluate(clip.model, {"all": EvalSet(rows, names)}, zero_shot=True)["all"]


def _plain_clip(
    settings: Settings, names: list[str], data_description: dict | None, device: str | None
) -> ModelBundle:
    """Return the base model as it is, with the preprocessing of the data's benchmark."""
    benchmark = (data_description or {}).get("benchmark")
    place = {
        "image_size": settings.image_size,
        "device": find_device(device),
        "precision": settings.precision,
    }
    bundle = build_model(settings.model, "zero-shot", names, **place, **published_fields(benchmark, "zero-shot"))
    return as_published(bundle, benchmark)


def _run(
    settings: Settings,
    data: DatasetDict,
    folder: Path,
    data_description: dict | None,
    probe: bool,
    contents: Contents,
    device: str | None,
) -> dict:
    if settings.method == LINEAR_PROBE:
        return linear_probe(settings, data, folder, data_description, device, contents)
    if not settings.supervision.uses_labels:
        data = DatasetDict(train=data["train"].select_columns("image"), test=data["test"])
    try:
        return run_experiment(
            settings,
            data,
            folder,
            data_description=data_description,
            checkpoints=False,
            gradients=probe,
            quiet=True,
            contents=contents,
            device=device,
            compare=False,
        )
    except TrainingDivergedError as error:
        return report_diverged(error, settings, folder, contents)


@typed
def linear_probe(
    settings: Settings,
    data: DatasetDict,
    output: str | Path,
    data_description: dict | None = None,
    device: str | None = None,
    contents: Contents | None = None,
) -> dict:
    """Train a logistic regression on the frozen image features and write its `results.json`.

    The strength of regularisation is chosen by cross-validation. The features are those of the images as they are:
    nothing is augmented, as in the paper.

    Args:
        settings: what to run: base model, shots, seed and supervision count.
        data: `train` and `test`, as for `run_experiment`.
        output: folder for `results.json`.
        data_description: where the images are from.
        device: where to compute the features; None for the device that the Trainer takes.
        contents: digests of the data that are known already.

    Returns:
        What `results.json` holds: settings, accuracy and what is worth reporting about the labels.

    Raises:
        ValueError: what the model, the data or the supervision refuses.

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, A.3.
    """
    names = class_names_of(data)
    clip = _plain_clip(settings, names, data_description, device)
    about = data_description or {}
    draw = draw_of(about.get("benchmark"), about.get("path"))
    labelled = training_images(
        settings.supervision, data["train"], names, settings.shots, settings.seed, clip, True, draw
    )
    x, y = _features(clip, labelled.rows)
    x_test, y_test = _features(clip, data["test"])
    strengths = {"C": np.logspace(-2, 4, 7)}
    probe = GridSearchCV(LogisticRegression(max_iter=1000), strengths, cv=FOLDS, scoring="accuracy").fit(x, y)
    accuracy = {"all": 100 * scores.accuracy(probe.predict(x_test), y_test)}
    report = {"title": "Linear probe", "settings": asdict(settings), "accuracy": accuracy, **labelled.report}
    contents = contents or Contents(data, data_description)
    report[IDENTITY] = contents.identity(settings, names, clip.content)
    write_json(report, Path(output) / RESULTS)
    return report


def _features(clip: ModelBundle, images: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the frozen image features, float32 [n, dim], and the labels, int [n]."""
    with clip.model.disable_adapter():
        cached = cache_features(clip.model, images, EvalTransform(clip.image_processor)).with_format("numpy")
    return np.stack(cached["image_features"][:]), np.asarray(cached["label"][:])


def _record(spec: str, report: dict) -> dict:
    """Return what the study keeps of a run."""
    settings = report["settings"]
    supervision = settings["supervision"]
    return {
        "method": spec,
        "title": report["title"],
        "loss": settings["loss"] or "ce",
        "noise": supervision["noise"],
        "rate": supervision["noise_rate"],
        "unlabelled": "zero-shot" if settings["method"] == "zero-shot" else supervision["unlabelled"],
        "seed": settings["seed"],
        "accuracy": report["accuracy"]["all"],
        "achieved_rate": report.get("noise", {}).get("achieved_rate", 0.0),
        "gradients": report.get("gradients"),
        "recipe": report.get("recipe")
        and {key: report["recipe"][key] for key in ("learning_rate", "batch_size", "epochs")},
        "train_seconds": report.get("train_seconds"),
    }


def summarise(records: list[dict]) -> list[dict]:
    """Return mean and standard deviation of the accuracy over seeds, for every method, loss, noise and rate.

    Runs that diverged are counted in `diverged` and are no part of the mean; a row of which nothing is left is left out.
    """
    keys = ("method", "title", "loss", "noise", "rate", "unlabelled")
    groups: dict[tuple, list[float | None]] = {}
    for record in records:
        groups.setdefault(tuple(record[key] for key in keys), []).append(record["accuracy"])
    finite = {group: [value for value in values if value is not None] for group, values in groups.items()}
    return [
        dict(zip(keys, group, strict=True))
        | {"mean": statistics.mean(values), "std": statistics.stdev(values) if len(values) > 1 else None}
        | {"seeds": len(values), "diverged": len(groups[group]) - len(values)}
        for group, values in finite.items()
        if values
    ]
