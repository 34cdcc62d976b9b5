"""Tasks of published benchmarks, read from local folders: those of VPT (FGVC, VTAB-1k) and those of prompt learning."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, concatenate_datasets

from ...utils.arguments import typed
from ...utils.validation import shorten
from ...utils.warning import warn_caller
from ..class_names import class_label
from ..few_shot import few_shot
from ..images import RGBImage
from . import prompting
from .few_shot_lists import listed_few_shot
from .prompting import PromptingTask
from .task import Rows, Task
from .transfer import TRANSFER_TASKS, TransferTask


__all__ = [
    "TASKS",
    "TRAINVAL",
    "TRANSFER_TASKS",
    "PromptingTask",
    "Task",
    "TransferTask",
    "draw_of",
    "find_task",
    "find_tasks",
    "group_means",
    "load_task",
    "with_trainval",
]

#: Every task by its full name.
TASKS: dict[str, Task] = {**TRANSFER_TASKS, **{task.full_name: task for task in prompting.TASKS}}

#: Name of training and validation images together, on which the last runs of the protocol are trained.
TRAINVAL = "trainval"


@typed
def find_tasks(name: str) -> list[Task]:
    """Return the task of that full name, or all tasks of a benchmark.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    found = [task for task in TASKS.values() if name in (task.full_name, task.benchmark)]
    if not found:
        benchmarks = dict.fromkeys(task.benchmark for task in TASKS.values())
        raise ValueError(
            f"Expected a benchmark ({', '.join(benchmarks)}) or one of its tasks: {', '.join(TASKS)}. Received: {name!r}."
        )
    return found


@typed
def find_task(name: str) -> Task:
    """Return the task of that full name.

    Raises:
        ValueError: there is none, or the name is of a whole benchmark.
    """
    tasks = find_tasks(name)
    if len(tasks) > 1:
        raise ValueError(f"Expected one task, such as {tasks[0].full_name}. Received: the whole benchmark {name!r}.")
    return tasks[0]


@typed
def draw_of(benchmark: str | None, folder: str | Path | None = None) -> Callable[..., Dataset]:
    """Return how few shots are drawn from the images of a task, or from other images.

    Args:
        benchmark: full name of the task; None for other images.
        folder: the task's folder, or the one that holds a folder of the task's name; where it has lists of few-shot images
            as CoOp's code writes them, these are taken.
    """
    if benchmark is None:
        return few_shot
    task = find_task(benchmark)
    if folder is None or not isinstance(task, PromptingTask):
        return task.draw
    return functools.partial(listed_few_shot, _folder_of(task, folder), task.draw)


@typed
def load_task(name: str, folder: str | Path, class_names: Sequence[str] | None = None) -> DatasetDict:
    """Read the published splits of a task.

    Args:
        name: full name, such as `vtab-1k/caltech101`.
        folder: the task's folder, or the one that holds a folder of the task's name.
        class_names: names in label order; default: the published ones, else the class ids as text.

    Returns:
        `train`, `validation`, `test`, as far as the task has them, with the columns `image` and `label`.

    Raises:
        FileNotFoundError: split files or images are missing; names them.
        ValueError: unknown task, an unreadable line, more classes than the task has, or names that do not fit.
    """
    task = find_task(name)
    splits, published = task.read(_folder_of(task, folder))
    ids = sorted(published or {label for rows in splits.values() for _, label in rows})
    _check_classes(task, ids, class_names)
    names = list(class_names or (published[number] if published else str(number) for number in ids))
    label = {number: position for position, number in enumerate(ids)}
    features = Features({"image": RGBImage(), "label": class_label(names)})
    return DatasetDict({split: _dataset(rows, label, features) for split, rows in splits.items()})


def _folder_of(task: Task, folder: str | Path) -> Path:
    """Return the folder of a task, which may be inside the one given."""
    folder = Path(folder).expanduser()
    return folder / task.folder if (folder / task.folder).is_dir() else folder


def _dataset(rows: Rows, label: Mapping[int, int], features: Features) -> Dataset:
    columns = {"image": [path for path, _ in rows], "label": [label[number] for _, number in rows]}
    return Dataset.from_dict(columns, features)


def _check_classes(task: Task, ids: list[int], class_names: Sequence[str] | None) -> None:
    if len(ids) > task.num_classes:
        raise ValueError(f"{task.title} has {task.num_classes} classes. Received: {len(ids)} in the published files.")
    if len(ids) < task.num_classes:
        warn_caller(f"{task.title} has {task.num_classes} classes; the published files name {len(ids)}.")
    if class_names and len(class_names) != len(ids):
        raise ValueError(f"Expected {len(ids)} class names. Received: {len(class_names)} ({shorten(class_names)}).")


def with_trainval(splits: DatasetDict) -> DatasetDict:
    """Return the splits with `trainval`, training and validation images together, where there are both."""
    if not {"train", "validation"} <= set(splits):
        return splits
    return DatasetDict(splits | {TRAINVAL: concatenate_datasets([splits["train"], splits["validation"]])})


@typed
def group_means(accuracies: Mapping[str, float]) -> dict[str, float]:
    """Return the means over the tasks of every group, as the papers report them, by `benchmark/group`.

    Args:
        accuracies: accuracy by full task name.

    Returns:
        `fgvc/fgvc`, `vtab-1k/natural`, `vtab-1k/specialised`, `vtab-1k/structured`, `coop-11/mean`,
        `imagenet-shifts/mean` as far as all their tasks are there, and `vtab-1k/mean`, the mean of the three groups'
        means, if all three are.

    Raises:
        ValueError: an unknown task.
    """
    groups: dict[str, list[str]] = {}
    for task in TASKS.values():
        groups.setdefault(f"{task.benchmark}/{task.group}", []).append(task.full_name)
    for name in accuracies:
        find_task(name)
    means = {
        group: statistics.mean(accuracies[name] for name in names)
        for group, names in groups.items()
        if all(name in accuracies for name in names)
    }
    vtab = [value for group, value in means.items() if group.startswith("vtab-1k/")]
    return means | ({"vtab-1k/mean": statistics.mean(vtab)} if len(vtab) == 3 else {})
