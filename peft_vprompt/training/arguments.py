"""The `TrainingArguments` that a `Recipe` means, and where the Trainer computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from ..tuners.base.recipe import Recipe
from ..utils.devices import find_device
from ..utils.processes import launched, on_cpu
from .trackers import check_trackers


def training_arguments(
    recipe: Recipe,
    folder: Path,
    *,
    epochs: int,
    max_steps: int,
    seed: int,
    save: bool,
    evaluate: bool,
    fp16: bool,
    workers: int,
    report_to: Sequence[str],
    device: str | None,
) -> TrainingArguments:
    """Return the Trainer's arguments for a training by a recipe.

    Args:
        recipe: how to train.
        folder: where checkpoints go.
        epochs: passes over the training images.
        max_steps: optimiser steps instead; -1 for whole epochs.
        seed: of the order of images.
        save: whether to save a checkpoint after every epoch.
        evaluate: whether to evaluate after every epoch.
        fp16: whether to compute in float16 with a scaled loss.
        workers: processes that load images.
        report_to: trackers of experiments.
        device: where to train; None or "auto" for the device that the Trainer takes.

    Raises:
        ImportError: a tracker is not installed.
        ValueError: there is no such device or tracker, or a device is named to one of several processes.
    """
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=recipe.batch_size,  # `EpochBatches` shares it out
        per_device_eval_batch_size=100,
        num_train_epochs=epochs,
        max_steps=max_steps,
        max_grad_norm=0.0,  # the authors do not clip; the Trainer would
        seed=seed,
        data_seed=seed,
        fp16=fp16,
        save_strategy="epoch" if save else "no",
        eval_strategy="epoch" if evaluate else "no",
        logging_strategy="epoch",
        logging_nan_inf_filter=False,  # the Trainer would log a loss of NaN as 0
        report_to=check_trackers(report_to) or "none",
        use_cpu=launched() > 1 and on_cpu(device),
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=workers,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    if device not in (None, "auto") and not arguments.use_cpu:
        _compute_on(arguments, find_device(device))
    if arguments.n_gpu > 1:  # `nn.DataParallel`, which the Trainer starts where it sees several, multiplies the batch
        arguments._n_gpu = 1
    return arguments


def _compute_on(arguments: TrainingArguments, device: torch.device) -> None:
    """Let the Trainer compute on a device, where it would take the first one of the machine.

    Raises:
        ValueError: several processes, each of which has a device of its own.
    """
    if arguments.world_size > 1:
        raise ValueError(
            f"Each of {arguments.world_size} processes takes a device of its own. Received: device={str(device)!r}. "
            "Leave it out."
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    state: Any = arguments.distributed_state
    state.device = device  # where Accelerate puts model and batches
    arguments.__dict__["_setup_devices"] = device  # what `arguments.device` has looked up
