"""What `results.json` says of a run."""

import statistics
from dataclasses import asdict

from ..data.options import portable
from ..training.evaluation import chance
from ..training.trainer import TrainResult
from ..tuners.base.recipe import Recipe
from ..utils.environment import environment
from .identity import IDENTITY
from .run_state import RunState
from .several_labels import MEAN_AVERAGE_PRECISION, chance_of_several


def _published_report(run: RunState) -> dict:
    """Return what was followed of the authors, without values that a search set where nothing was trained with them."""
    searched = run.found._asdict() if run.found and run.recipe is None else {}
    return {name: value for name, value in run.published.report.items() if name not in searched}


def report_of(run: RunState) -> dict:
    """Return what `results.json` holds, of a run that was evaluated, but for the size of the adapter's file."""
    return {
        "title": run.spec.title,
        "settings": asdict(run.settings),
        "model_commit": getattr(run.bundle.model.get_base_model().config, "_commit_hash", None),
        "recipe": _recipe_report(run.recipe, run.settings.shots) if run.recipe else None,
        **({"published": _published_report(run)} if run.benchmark else {}),
        "trainable_parameters": run.bundle.trainable_parameters if run.results else 0,
        "adapter_bytes": None,
        **_training_report(run.results),
        "data": portable(run.options.data_description, run.output),  # seen from the folder of the results
        "cached": run.options.cached,
        "classes": run.classes,
        "test_images": {name: len(test_set.rows) for name, test_set in run.test_sets.items()},
        **({"metric": MEAN_AVERAGE_PRECISION} if run.multi_label else {}),
        "accuracy": run.accuracy,
        **({"per_class": run.per_class} if run.per_class else {}),
        **({"validation": run.validation} if run.validation else {}),
        **({"search": run.found._asdict()} if run.found else {}),
        **({"teacher": run.teacher_accuracy} if run.teacher_accuracy else {}),
        "zero_shot": run.zero_shot,
        "chance": _chance(run),
        **(run.labelled.report if run.labelled else {}),
        **({"gradients": run.probes[0].history} if run.probes else {}),
        IDENTITY: run.identity,
        "environment": environment(),
    }


def _chance(run: RunState) -> dict[str, float]:
    if not run.multi_label:
        return chance(run.classes)
    return chance_of_several(run.data["test"], run.classes) if "test" in run.data else {}


def _recipe_report(recipe: Recipe, shots: int | None) -> dict:
    """Return the recipe as it was followed: with the length that the number of shots means."""
    return asdict(recipe) | {"epochs": recipe.epochs_for(shots), "steps": recipe.steps_for(shots)}


def _training_report(results: list[TrainResult]) -> dict:
    """Return what `results.json` says of the trainings: steps, times and the log."""
    return {
        "steps": sum(result.steps for result in results),
        "seconds_per_step": statistics.median(result.seconds_per_step for result in results) if results else None,
        "train_seconds": sum(result.train_seconds for result in results) if results else None,
        "resumed_step": sum(result.resumed_step for result in results),
        "history": [entry for result in results for entry in result.history],
    }
