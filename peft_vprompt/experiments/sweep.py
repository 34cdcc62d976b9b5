"""Grid search over learning rate and weight decay, then runs with the best pair: the protocol of the VPT paper.

Every pair is trained on the training images and rated on the validation images; the best is trained anew with several
seeds and tested once.

Source: Jia et al., "Visual Prompt Tuning", ECCV 2022, appendix A, and KMnP/vpt `tune_vtab.py`, `tune_fgvc.py`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from datasets import Dataset, DatasetDict, concatenate_datasets

from ..data import stratified_split
from ..data.options import portable
from ..training.loading import Workers
from ..tuners.base.registry import get_method
from ..utils.arguments import typed
from ..utils.digests import digest_json
from ..utils.environment import environment
from ..utils.io import write_json
from ..utils.locks import only_writer
from ..utils.validation import require_different
from .cells import run_cells
from .eval_sets import class_names_of, require_test_images
from .grid_search import Grid, best_trial, search
from .identity import IDENTITY, Contents, keep_previous
from .run import run_once
from .settings import Settings, as_json


#: Share of the training images that is held out to choose by where the data has no validation split.
VALIDATION_FRACTION = 0.2


@typed
def sweep(
    settings: Settings,
    data: DatasetDict,
    output: str | Path,
    *,
    grid: Grid | None = None,
    seeds: Sequence[int] = (1, 2, 3, 4, 5),
    data_description: dict | None = None,
    cached: bool = False,
    workers: Workers = 0,
    device: str | None = None,
    storage: str | None = None,
) -> dict:
    """Choose learning rate and weight decay on the validation images, then train with several seeds and test.

    A trial or a run that is done is not made again where it is the same by content, see `run_experiment`. Whoever starts
    the same sweep on the same folder takes part in it, see `cells.run_cells`.

    With all images (`shots=None`) the last runs train on training and validation images together, as the paper's do;
    with few shots they train on the shots alone. All classes are used.

    Args:
        settings: what to run; its learning rate and weight decay are what is searched.
        data: `train`, `test` and maybe `validation`, else a fifth of every class of `train` is held out.
        output: folder for the journal, the runs and `sweep.json`.
        grid: the pairs; default: the paper's forty.
        seeds: seeds of the last runs.
        data_description: where the images are from, to tell searches apart.
        cached: augment every training image once and keep the pixels.
        workers: processes that load images, or "auto" for as many as the step needs.
        device: where to compute, see `utils.devices.find_device`; None for the device that the Trainer takes.
        storage: URL of a database, see `cells.run_cells`.

    Returns:
        What `sweep.json` holds: settings, every trial, the best, the last runs with their mean and standard deviation,
        beside zero-shot and guessing.

    Raises:
        ValueError: no seed, a method that trains nothing, or whatever `run_experiment` refuses.
        FailedCellsError: runs failed; a last run that diverges does, a trial is rated 0.
        CannotWriteError: the disk is full, or the folder is not to be written.
    """
    require_different("seeds", seeds)
    for seed in seeds:
        replace(settings, seed=seed)  # refuses what is no seed before the search
    require_test_images(data, "A sweep")
    output = Path(output)
    options = {"data_description": data_description, "cached": cached, "workers": workers, "device": device}
    settings = replace(settings, base_novel=False)
    train, validation = training_and_validation(data)
    trials = search(settings, DatasetDict(train=train, test=validation), output, grid or Grid(), storage, **options)
    best = best_trial(trials)
    whole = train if settings.shots is not None else concatenate_datasets([train, validation])
    chosen = replace(settings, learning_rate=best.learning_rate, weight_decay=best.weight_decay)
    runs = final_runs(chosen, DatasetDict(train=whole, test=data["test"]), output, seeds, storage, **options)
    asked = as_json({"axes": (grid or Grid()).axes, "seeds": list(seeds)})
    identity = Contents(data, data_description, cached).identity(settings, class_names_of(data)) | {"grid": asked}
    report = {
        "title": get_method(settings.method).title,
        "settings": asdict(settings),
        IDENTITY: identity,
        "data": portable(data_description, output),
        "images": {"train": len(train), "validation": len(validation), "test": len(data["test"])},
        "trials": [asdict(trial) for trial in trials],
        "best": asdict(best),
        **summary(runs),
        "environment": environment(),
    }
    with only_writer(output, wait=True):
        keep_previous(output, identity, "sweep.json")
        write_json(report, output / "sweep.json")
    return report


def training_and_validation(data: DatasetDict) -> tuple[Dataset, Dataset]:
    """Return the training and validation images, of which the second are split off where the data has none.

    Raises:
        ValueError: a class has too few images to split some off.
    """
    if "validation" in data:
        return data["train"], data["validation"]
    return stratified_split(data["train"], VALIDATION_FRACTION, seed=0)


def final_runs(
    settings: Settings,
    data: DatasetDict,
    output: str | Path,
    seeds: Sequence[int],
    storage: str | None = None,
    **options,
) -> list[dict]:
    """Train with every seed and test, in `final/` of a folder; a run whose results are there already is read.

    Zero-shot, which is the same for all, is measured beside the first.

    Args:
        settings: what to run.
        data: `train` and `test`.
        output: folder for the runs, and for the journal and the locks of `run_cells`.
        seeds: one for each run.
        storage: URL of a database, see `run_cells`.
        **options: `data_description`, `cached`, `workers`, `device` of `run_experiment`.

    Returns:
        The reports of `run_experiment`, in the order of the seeds.

    Raises:
        ValueError, FailedCellsError: as `run_cells`.
    """
    contents = Contents(data, options.get("data_description"), options.get("cached", False))

    def work(name: str, seed: int) -> dict:
        compare = seed == seeds[0]
        folder = Path(output) / "final" / name
        return run_once(replace(settings, seed=seed), data, folder, contents, compare=compare, quiet=True, **options)

    cells = {f"seed-{seed}": seed for seed in seeds}
    names = class_names_of(data)
    book = digest_json([contents.identity(replace(settings, seed=seed), names) for seed in seeds], 12)
    reports = run_cells(cells, work, output, book=book, storage=storage, title="Last runs")
    return [reports[f"seed-{seed}"] for seed in seeds]


def summary(runs: Sequence[dict]) -> dict:
    """Return the accuracy of every run, their mean and their standard deviation (of a sample; 0 for a single run).

    Beside it those of zero-shot, where it was measured, and of guessing.
    """
    values = [run["accuracy"]["all"] for run in runs]
    return {
        "trainable_parameters": runs[0]["trainable_parameters"],
        "runs": [{"seed": run["settings"]["seed"], "accuracy": run["accuracy"]["all"]} for run in runs],
        "accuracy": {
            "mean": statistics.mean(values),
            "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        },
        "zero_shot": runs[0].get("zero_shot"),
        "chance": runs[0].get("chance"),
    }
