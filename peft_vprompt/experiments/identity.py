"""What a run is, by content: two runs are the same where base model, images, classes, settings and code are, not paths."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from datasets import Dataset, DatasetDict

from ..data import draw_of
from ..data.image_digests import image_fingerprint
from ..errors import TrainingDivergedError
from ..peft_models.adapter_files import ADAPTER, PAGE, RESULTS, keep_files
from ..tuners.base.registry import METHODS, get_method
from ..utils.digests import digest_arrays, digest_json
from ..utils.io import finish_saving, read_json, write_json
from ..utils.locks import only_writer
from ..utils.warning import warn_caller
from ..version import __version__
from .authors import published_choices
from .eval_sets import class_names_of
from .models import build_model
from .pseudo_labels import PseudoLabels
from .settings import Settings, as_json, changed_settings


#: Entry of `results.json` that holds the identity.
IDENTITY = "identity"


class Contents:
    """Digests of base models and images, each made once for all runs of a study.

    Args:
        data: `train` and `test`, as for `run_experiment`.
        data_description: where the images are from. Of it only the benchmark counts, which decides the preprocessing
            and the draw, and whether images are held out of the training images.
        cached: whether every training image is augmented once.
    """

    def __init__(self, data: DatasetDict, data_description: dict | None = None, cached: bool = False):
        self.data = data
        self.benchmark = (data_description or {}).get("benchmark")
        self.data_path = (data_description or {}).get("path")
        validated = bool((data_description or {}).get("val_fraction"))
        self._held_out = [name for name in ("test", *(["validation"] * validated)) if name in data]
        self.cached = cached
        self._bases: dict[tuple, dict[str, str | None]] = {}
        self._splits: dict[str, dict[str, str | None]] = {}

    def identity(self, settings: Settings, class_names: list[str], base: dict[str, str | None] | None = None) -> dict:
        """Return the identity of a run with these settings, as JSON has it.

        Args:
            settings: what to run.
            class_names: names of all classes of the images.
            base: the base model's content, where it is known: `ModelBundle.content`.

        Raises:
            ValueError: too few images for the shots, or a file of pseudo-labels that cannot be read.
            OSError: a file of images or of pseudo-labels is not there.
        """
        own = changed_settings(asdict(settings))
        for name in ("model", "teacher", "teacher_model"):  # known by what they are
            own.pop(name, None)
        if labels := own.get("supervision", {}).pop("pseudo_labels", None):
            own["pseudo-labels"] = PseudoLabels.load(labels).content
        about = {
            "code": __version__,
            "settings": own,
            "cached": self.cached,
            "benchmark": self.benchmark,
            "class names": class_names,
            **(base or self._base(settings, class_names)),
            **self._training(settings, class_names),
        }
        if self.benchmark is not None and settings.method in METHODS:
            about["published"] = published_choices(settings, self.benchmark).report
        searched = ["validation"] if settings.config.get("search_scale") and "validation" in self.data else []
        for name in dict.fromkeys([*self._held_out, *searched]):
            about |= self._split(name, labels=True)
        return as_json(about)

    def _base(self, settings: Settings, class_names: list[str]) -> dict[str, str | None]:
        spec = METHODS.get(settings.method)  # none for a linear probe
        tokenizer = settings.config.get("tokenizer_name_or_path")
        key = (settings.model, spec is not None and spec.is_baseline, tokenizer, settings.image_size)
        if key not in self._bases:
            method, config = ("zero-shot", {}) if spec is None else (spec.name, settings.config)
            built = build_model(
                settings.model, method, class_names, settings.seed, image_size=settings.image_size, **config
            )
            self._bases[key] = built.content
        return self._bases[key]

    def _training(self, settings: Settings, class_names: list[str]) -> dict[str, str | None]:
        """Return digests of the images that a run draws its own from, of few shots those alone that it takes."""
        spec = METHODS.get(settings.method)
        if spec is not None and not spec.trains:
            return {}
        labelled = settings.reads_labels
        if settings.shots is None or not labelled or settings.supervision.noise == "false-positive":
            return self._split("train", labelled)
        names = class_names[: (len(class_names) + 1) // 2] if settings.base_novel else class_names
        draw = draw_of(self.benchmark, self.data_path)
        return _digests("train", draw(self.data["train"], settings.shots, settings.seed, class_names=names), True)

    def of_split(self, name: str) -> dict[str, str | None]:
        """Return digests of the images of a split and of their labels."""
        return self._split(name, labels=True)

    def _split(self, name: str, labels: bool) -> dict[str, str | None]:
        if name not in self._splits:
            self._splits[name] = _digests(name, self.data[name], labels)
        return self._splits[name]


def _digests(name: str, images: Dataset, labels: bool) -> dict[str, str | None]:
    return {
        f"{name} images": image_fingerprint(images)[:32],
        f"{name} labels": digest_arrays(images["label"][:], length=32) if labels else None,
    }


def differences(identity: dict, other: dict) -> list[str]:
    """Return in what two identities differ, as a person says it."""
    names = [name for name in dict.fromkeys([*identity, *other]) if identity.get(name) != other.get(name)]
    return [{"code": "version of peft_vprompt", "cached": "augmentation"}.get(name, name) for name in names]


def finished_report(folder: Path, name: str = RESULTS) -> dict | None:
    """Return what `results.json`, or another report, in a folder holds; None where there is none that can be read."""
    finish_saving(folder)
    try:
        report = read_json(folder / name, missing_ok=True)
    except ValueError:
        return None
    return report if isinstance(report, dict) else None


def finished_run(folder: Path, identity: dict, gradients: bool = False) -> dict | None:
    """Return the report in a folder if it is of this run, else None.

    Args:
        folder: where the run was saved.
        identity: what the run is, see `Contents.identity`.
        gradients: whether the gradients must have been measured; of a run that diverged there are none.
    """
    report = finished_report(folder)
    if report is None or report.get(IDENTITY) != identity:
        return None
    return report if report.get("gradients") or "diverged" in report or not gradients else None


def report_diverged(
    error: TrainingDivergedError,
    settings: Settings,
    folder: Path,
    contents: Contents,
    identity: dict | None = None,
    more: dict | None = None,
) -> dict:
    """Write and return the report of a run that diverged, without an accuracy: made again it would diverge again.

    Args:
        error: how it diverged.
        settings: what was run.
        folder: of the run.
        contents: digests of the data.
        identity: what the run is by content, where it is more than settings and data say.
        more: further entries of the report.
    """
    warn_caller(f"{folder.name}: {error}")
    identity = identity or contents.identity(settings, class_names_of(contents.data))
    report = {
        "title": get_method(settings.method).title,
        "settings": asdict(settings),
        "accuracy": {"all": None},
        "diverged": error.epoch,
        IDENTITY: identity,
        **(more or {}),
    }
    with only_writer(folder, wait=True):
        if keep_previous(folder, identity):
            for name in (*ADAPTER, PAGE):  # of the run before
                (folder / name).unlink(missing_ok=True)
        write_json(report, folder / RESULTS)
    return report


def tell_changes(folder: Path, identity: dict) -> None:
    """Warn where a folder holds the result of another run, or one that is on the way there: this one starts afresh."""
    earlier = (finished_report(folder) or {}).get(IDENTITY)
    found = [earlier] if isinstance(earlier, dict) else []
    places = [path for start in ("", "context-*/") for path in folder.glob(f"{start}checkpoints/*/{IDENTITY}.json")]
    found += [unfinished for path in places if isinstance(unfinished := _read(path), dict)]
    if found and identity not in found:
        changed = ", ".join(differences(identity, found[0]))
        warn_caller(
            f"The run in {str(folder)!r} was made with other {changed}: training afresh. What it left is kept."
        )


def _read(path: Path) -> dict | None:
    try:
        about = read_json(path)
    except (OSError, ValueError):
        return None
    return about.get(IDENTITY) if isinstance(about, dict) else None


def keep_previous(folder: Path, identity: dict, report: str = RESULTS) -> bool:
    """Copy the results, and the adapter, of another run, whose place this run's take, to `previous/` in their folder.

    Returns:
        Whether there was another run.

    Raises:
        CannotWriteError: the disk is full, or the folder is not to be written.
    """
    found = finished_report(folder, report) or {}
    names = (*ADAPTER, report, PAGE) if report == RESULTS else (report,)
    files = [folder / name for name in names if (folder / name).is_file()]
    if not files or found.get(IDENTITY) == identity:
        return False
    keep_files(files, folder, digest_json(found[IDENTITY], 12) if IDENTITY in found else None)
    return True
