"""Grid search over learning rate and weight decay: every pair is trained on the training images and rated on others.

Optuna keeps the book in a journal file, so a search that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from datasets import DatasetDict

from ..errors import TrainingDivergedError
from ..tuners.base.registry import get_method
from ..utils.arguments import typed
from ..utils.digests import digest_json
from ..utils.fields import check_fields
from ..utils.io import atomic_path, disk_errors, sync
from ..utils.warning import warn_caller
from .eval_sets import class_names_of
from .identity import Contents
from .run import run_once
from .settings import Settings


#: The learning rate for a batch of 256; the rate of a run is in proportion to its batch.
BASE_RATES = (50.0, 25.0, 10.0, 5.0, 2.5, 1.0, 0.5, 0.25, 0.1, 0.05)
WEIGHT_DECAYS = (0.01, 0.001, 0.0001, 0.0)
REFERENCE_BATCH = 256


@dataclass(frozen=True)
class Grid:
    """The pairs to try.

    Attributes:
        base_rates: learning rates for a batch of 256.
        weight_decays: weight decays.

    Raises:
        ValueError: an axis is empty, a rate is not positive or a weight decay is negative.
    """

    base_rates: Sequence[float] = BASE_RATES
    weight_decays: Sequence[float] = WEIGHT_DECAYS

    def __post_init__(self):
        check_fields(self)
        for name, allowed in (("base_rates", "> 0"), ("weight_decays", ">= 0")):
            values = getattr(self, name)
            if not values or not all(v > 0 or (v == 0 and name == "weight_decays") for v in values):
                raise ValueError(f"Expected {name} to be numbers {allowed}. Received: {name}={list(values)}.")

    @property
    def axes(self) -> dict[str, list[float]]:
        """The grid as Optuna's sampler takes it."""
        return {"base_rate": list(self.base_rates), "weight_decay": list(self.weight_decays)}

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """Every (base rate, weight decay)."""
        return list(product(self.base_rates, self.weight_decays))


@dataclass(frozen=True)
class Trial:
    """One pair and how it did.

    Attributes:
        base_rate: learning rate for a batch of 256.
        learning_rate: learning rate of the run.
        weight_decay: weight decay.
        accuracy: on the validation images, in percent.
    """

    base_rate: float
    learning_rate: float
    weight_decay: float
    accuracy: float


@typed
def search(settings: Settings, data: DatasetDict, output: str | Path, grid: Grid, **options) -> list[Trial]:
    """Train with every pair of the grid and rate it on `data["test"]`; pairs that are done are not done again.

    That holds for pairs of a smaller grid, too: a grid may be extended.

    Args:
        settings: what to run.
        data: `train`, and as `test` the images to choose by.
        output: folder for the journal and the runs.
        grid: the pairs.
        **options: `data_description`, `cached`, `workers`, `device` of `run_experiment`.

    Returns:
        One trial per pair, in the order of the grid.

    Raises:
        ImportError: Optuna is missing; the message says how to install it.
        ValueError: the method trains nothing, or whatever `run_experiment` refuses.
    """
    optuna = _optuna()
    output = Path(output)
    contents = Contents(data, options.get("data_description"), options.get("cached", False))
    what = contents.identity(settings, class_names_of(data))
    objective = _Objective(settings, data, grid, output / "trials" / digest_json(what, 12), options, contents)
    sampler = optuna.samplers.GridSampler(grid.axes, seed=0)
    with disk_errors(output):
        return _search(optuna, output, grid, sampler, objective, digest_json([what, grid.axes], 12))


def _search(optuna, output: Path, grid: Grid, sampler, objective: _Objective, name: str) -> list[Trial]:
    """See `search`."""
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(_journal(optuna, output / "journal.log")),
        sampler=sampler,
        study_name=name,
        direction="maximize",
        load_if_exists=True,
    )
    if not sampler.is_exhausted(study):
        study.optimize(objective)  # the sampler stops it when the grid is done
    # The sampler does not repeat pairs that failed, and a search that failed again and again left some waiting already.
    while missing := [pair for pair in grid.pairs if pair not in _accuracies(study)]:
        for base_rate, weight_decay in missing:
            study.enqueue_trial({"base_rate": base_rate, "weight_decay": weight_decay})
        study.optimize(objective, n_trials=len(missing))
    accuracies = _accuracies(study)
    return [Trial(rate, objective.learning_rate(rate), decay, accuracies[rate, decay]) for rate, decay in grid.pairs]


def _journal(optuna, path: Path):
    """Return Optuna's journal, whose own lock is not needed: the folder has one writer, and whoever dies keeps none."""

    class Unlocked(optuna.storages.journal.JournalFileOpenLock):
        def acquire(self) -> bool:
            return True

        def release(self) -> None:
            pass

    path.parent.mkdir(parents=True, exist_ok=True)
    for left in (path.with_name(f"{path.name}.lock"), *path.parent.glob(f"{path.name}.lock*.rename")):
        left.unlink(missing_ok=True)
    _mend(path)
    return optuna.storages.journal.JournalFileBackend(str(path), lock_obj=Unlocked(str(path)))


def _mend(path: Path) -> None:
    """Drop an entry of the journal that was cut off; move a journal that is damaged otherwise aside, and say so."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    whole = [line for line in lines if _is_entry(line)]
    if len(whole) == len(lines):
        return
    if len(whole) < len(lines) - 1 or _is_entry(lines[-1]):
        aside = path.with_suffix(".damaged")
        os.replace(path, aside)
        sync(path.parent)
        warn_caller(
            f"The journal {str(path)!r} is damaged. It is now {aside.name!r}; trials that are done are read from their own "
            "results."
        )
        return
    with atomic_path(path) as partial:
        partial.write_bytes(b"".join(whole))


def _is_entry(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


class _Objective:
    """The validation accuracy of a pair, in percent, as Optuna asks for it."""

    def __init__(
        self, settings: Settings, data: DatasetDict, grid: Grid, folder: Path, options: dict, contents: Contents
    ):
        self.contents = contents
        self.settings = settings
        self.data = data
        self.axes = grid.axes
        self.folder = folder
        self.options = options
        recipe = _recipe(settings)
        self.batch_size = settings.batch_size or recipe.batch_size

    def learning_rate(self, base_rate: float) -> float:
        """Return the learning rate of a run, in proportion to its batch."""
        return base_rate * self.batch_size / REFERENCE_BATCH

    def __call__(self, trial) -> float:
        """Train with the pair that the sampler suggests and rate it; a run that diverged is rated 0."""
        base_rate = trial.suggest_categorical("base_rate", self.axes["base_rate"])
        weight_decay = trial.suggest_categorical("weight_decay", self.axes["weight_decay"])
        tried = replace(self.settings, learning_rate=self.learning_rate(base_rate), weight_decay=weight_decay)
        folder = self.folder / f"rate-{base_rate:g}-decay-{weight_decay:g}"
        try:
            report = run_once(tried, self.data, folder, self.contents, compare=False, **self.options)
        except TrainingDivergedError as error:
            warnings.warn(f"Base rate {base_rate:g}, weight decay {weight_decay:g}: {error}", stacklevel=2)
            return 0.0  # as bad as can be, so that it is not chosen
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # a trial that is done needs none
        return report["accuracy"]["all"]


def _accuracies(study) -> dict[tuple[float, float], float]:
    """Return the validation accuracy of the pairs that are done."""
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    return {(trial.params["base_rate"], trial.params["weight_decay"]): trial.value for trial in done}


def best_trial(trials: Sequence[Trial]) -> Trial:
    """Return the trial of the highest validation accuracy; among equals the smallest learning rate, then the smallest weight decay."""
    return max(trials, key=lambda trial: (trial.accuracy, -trial.learning_rate, -trial.weight_decay))


def _recipe(settings: Settings):
    method = get_method(settings.method)
    recipe = method.recipe or method.classifier_recipe
    if recipe is None:
        raise ValueError(f"{method.title} trains nothing, so there is no learning rate to search.")
    return recipe


def _optuna():
    try:
        import optuna
    except ImportError as error:
        raise ImportError(
            "The grid search needs Optuna. Install it with `pip install 'peft_vprompt[sweep]'`."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a trial that failed raises what it would write
    return optuna
