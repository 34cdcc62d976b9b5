"""Grid search over learning rate and weight decay: every pair is trained on the training images and rated on others.

The pairs are cells of a grid (`cells`), so a search that was stopped goes on where it was, by any number of workers.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from datasets import DatasetDict

from ..errors import TrainingDivergedError
from ..tuners.base.registry import get_method
from ..utils.arguments import typed
from ..utils.digests import digest_json
from ..utils.fields import check_fields
from .cells import run_cells
from .eval_sets import class_names_of
from .identity import Contents, report_diverged
from .models import recipe_on
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

    base_rates: Sequence[float] = field(default=BASE_RATES, metadata={"above": 0})
    weight_decays: Sequence[float] = field(default=WEIGHT_DECAYS, metadata={"min": 0})

    def __post_init__(self):
        check_fields(self)
        if not self.base_rates or not self.weight_decays:
            raise ValueError(
                f"Expected a learning rate and a weight decay at least. "
                f"Received: base_rates={list(self.base_rates)}, weight_decays={list(self.weight_decays)}."
            )

    @property
    def axes(self) -> dict[str, list[float]]:
        """The grid as the values of each axis, by name."""
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
def search(
    settings: Settings,
    data: DatasetDict,
    output: str | Path,
    grid: Grid,
    storage: str | None = None,
    **options,
) -> list[Trial]:
    """Train with every pair of the grid and rate it on `data["test"]`; pairs that are done are not done again.

    That holds for pairs of a smaller grid, too: a grid may be extended. A run that diverged is rated 0.

    Args:
        settings: what to run.
        data: `train`, and as `test` the images to choose by.
        output: folder for the runs, and for the journal and the locks of `run_cells`.
        grid: the pairs.
        storage: URL of a database, see `run_cells`.
        **options: `data_description`, `cached`, `workers`, `device` of `run_experiment`.

    Returns:
        One trial per pair, in the order of the grid.

    Raises:
        ValueError: the method trains nothing, or as `run_cells`.
        FailedCellsError: runs failed.
    """
    recipe = _recipe(settings)
    contents = Contents(data, options.get("data_description"), options.get("cached", False))
    what = contents.identity(settings, class_names_of(data))
    folder = Path(output) / "trials" / digest_json(what, 12)
    scale = (settings.batch_size or recipe.batch_size) / REFERENCE_BATCH

    def rate(name: str, pair: tuple[float, float]) -> dict:
        base_rate, weight_decay = pair
        tried = replace(settings, learning_rate=base_rate * scale, weight_decay=weight_decay)
        try:
            report = run_once(tried, data, folder / name, contents, compare=False, quiet=True, **options)
        except TrainingDivergedError as error:
            report = report_diverged(error, tried, folder / name, contents)
        shutil.rmtree(folder / name / "checkpoints", ignore_errors=True)  # a trial that is done needs none
        return report

    cells = {_name(pair): pair for pair in grid.pairs}
    book = digest_json([what, grid.axes], 12)
    reports = run_cells(cells, rate, output, book=book, storage=storage, title="Search")
    accuracies = [reports[_name(pair)]["accuracy"]["all"] for pair in grid.pairs]
    return [
        Trial(base_rate, base_rate * scale, weight_decay, accuracy or 0.0)  # one that diverged is as bad as can be
        for (base_rate, weight_decay), accuracy in zip(grid.pairs, accuracies, strict=True)
    ]


def _name(pair: tuple[float, float]) -> str:
    """Return the name of a pair's run: its numbers as short as they can be told."""
    rate, decay = (short if float(short := f"{value:g}") == value else repr(value) for value in pair)
    return f"rate-{rate}-decay-{decay}"


def best_trial(trials: Sequence[Trial]) -> Trial:
    """Return the trial of the highest validation accuracy; among equals the smallest learning rate, then the smallest weight decay."""
    return max(trials, key=lambda trial: (trial.accuracy, -trial.learning_rate, -trial.weight_decay))


def _recipe(settings: Settings):
    method = get_method(settings.method)
    recipe = recipe_on(settings.model, method)
    if recipe is None:
        raise ValueError(f"{method.title} trains nothing, so there is no learning rate to search.")
    return recipe
