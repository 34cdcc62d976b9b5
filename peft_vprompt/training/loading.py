"""How many processes load images: as many as the step would wait for, and none where it does not wait."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from typing import Any, Literal

import torch
from datasets import Dataset
from transformers import default_data_collator

from ..data.augmentation import AugmentedRows
from ..utils.devices import device_of
from ..utils.eval_mode import eval_mode
from ..utils.fields import shown
from ..utils.validation import MAX_WORKERS, require_int


#: Number of processes that load images, or "auto" for what this machine and the model want.
Workers = int | Literal["auto"]

#: Images that are loaded, and classified, to find out which of both takes longer.
TRIED = 4

#: Most processes that are chosen; more are slower where they share one disk.
MOST = 16

#: Share of a step, and seconds of an epoch, that loading in this very process may take before others are started.
NEGLIGIBLE, SHORT = 0.1, 2.0


def require_workers(workers: Workers) -> None:
    """Refuse what is no number of processes.

    Raises:
        ValueError: neither "auto" nor an integer from 0 on.
    """
    if isinstance(workers, str) and workers != "auto":
        raise ValueError(f'Expected workers to be "auto" or an integer >= 0. Received: workers={shown(workers)}.')
    if workers != "auto":
        require_int("workers", workers, 0, MAX_WORKERS)


def usable_cores() -> int:
    """Return the cores that this process may use; of several processes that a launcher started here, each its share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1))


def find_workers(workers: Workers, model: torch.nn.Module, rows: Sequence[dict]) -> int:
    """Return how many processes are to load the rows that a model is trained on.

    "auto" loads some images and classifies them, unless the rows are in memory or the machine has no core to spare.

    Args:
        workers: a number, which is taken, or "auto".
        model: what is trained, on its device.
        rows: the training images.
    """
    if workers != "auto":
        return workers
    # On a CPU the step takes most of the cores itself; elsewhere it waits for whoever loads.
    room = usable_cores() if device_of(model).type != "cpu" else usable_cores() // 4
    if room < 1 or not decodes(rows):
        return 0
    loading, step = _seconds(model, rows)
    epoch = loading * len(rows) / min(TRIED, len(rows))
    return 0 if epoch < SHORT else enough_workers(loading, step, room)


def enough_workers(loading: float, step: float, most: int) -> int:
    """Return how many processes load images as fast as steps take them.

    Args:
        loading: seconds to load some images in one process.
        step: seconds of a step on as many.
        most: processes that there is room for.
    """
    if loading <= NEGLIGIBLE * step:
        return 0
    return min(math.ceil(loading / max(step, 1e-9)), most, MOST)


def decodes(rows: Any) -> bool:
    """Tell whether rows decode images each time they are read: not so features, and pixels that are kept in memory."""
    if isinstance(rows, AugmentedRows):
        return True
    return isinstance(rows, Dataset) and "image" in rows.column_names


def _seconds(model: torch.nn.Module, rows: Sequence[dict]) -> tuple[float, float]:
    """Return the seconds to load some images in this process and those of a forward pass, which is a third of a step.

    Nothing is drawn from torch's random numbers, and nothing of the model changes.
    """
    count = min(TRIED, len(rows))
    device = device_of(model)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), eval_mode(model), torch.no_grad():
        start = time.perf_counter()
        examples = [rows[index] for index in range(count)]
        loading = time.perf_counter() - start
        batch = default_data_collator(examples)
        inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
        model(**inputs)  # what is computed once, such as class features, is not a part of each step
        start = time.perf_counter()
        model(**inputs)
        if cuda:
            torch.cuda.synchronize(device)
        return loading, 3 * (time.perf_counter() - start)
