"""Training by a recipe with the stock `transformers.Trainer`: optimizer, schedule, callbacks, resume after a kill."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from ..data.augmentation import with_own_random_numbers
from ..data.epoch_batches import EpochBatches
from ..errors import TrainingDivergedError
from ..tuners.base.module_state import fixed_weights
from ..tuners.base.recipe import Recipe
from ..utils.arguments import typed
from ..utils.devices import find_device
from ..utils.io import disk_errors, write_json
from ..utils.locks import only_writer
from ..utils.processes import all_processes, launched, on_cpu
from ..utils.validation import require_int
from ..utils.warning import warn_caller
from .averaging import AverageWeights
from .callbacks import EpochOf, StepTimer, StopIfDiverged, progress_bar
from .checkpoints import KeepLastCheckpoint, checkpoint_folder, last_checkpoint, say_kept
from .evaluation import compute_metrics
from .loading import Workers, find_workers, require_workers
from .recipe_trainer import RecipeTrainer
from .recipes import lr_scheduler
from .trackers import check_trackers


@dataclass(frozen=True)
class TrainResult:
    """Hold what training gives beside the trained model.

    Attributes:
        steps: optimiser steps in all, those before a resume included.
        seconds_per_step: median wall time of forward, backward and update in this process; NaN if it made no step.
        train_seconds: wall time of this process's training, data loading and checkpoints included.
        history: what the Trainer logged: loss and learning rate per epoch, accuracy if there was an `eval_set`.
        resumed_step: step of the checkpoint that was resumed from, 0 for a fresh start.
    """

    steps: int
    seconds_per_step: float
    train_seconds: float
    history: list[dict]
    resumed_step: int


@typed
def train(
    model: torch.nn.Module,
    train_set: Sequence[dict],
    recipe: Recipe,
    output_dir: str | Path,
    eval_set: Sequence[dict] | None = None,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    seed: int = 1,
    loss: Callable | None = None,
    settings: dict | None = None,
    checkpoints: bool = True,
    progress: str | None = None,
    scale_loss: bool = False,
    workers: Workers = 0,
    callbacks: Sequence[TrainerCallback] = (),
    device: str | None = None,
    report_to: Sequence[str] = (),
) -> TrainResult:
    """Train the parameters of `model` that require gradients, in place.

    What is trained depends on neither `eval_set`, `checkpoints`, `progress`, `workers`, `callbacks` that only look nor
    `report_to`: a random augmentation has its own random numbers, and evaluation leaves those of the training alone.

    What the method does beside its loss, such as a projection of its gradients, comes from the model: callbacks of the
    Trainer that `model.method_callbacks()` makes, if the model has that. Where the recipe averages weights the model
    holds the average at the end; the accuracies and the checkpoints along the way are of the weights without it.

    Args:
        model: a PEFT model whose call takes `labels` and `pixel_values` or `image_features`.
        train_set: rows with `labels` and `pixel_values` or `image_features`; a data set with a `TrainTransform` is
            augmented anew in every epoch.
        recipe: how to train.
        output_dir: checkpoints go to `output_dir/checkpoints/<digest of the settings>`.
        eval_set: rows to measure the accuracy on after every epoch.
        epochs: passes over `train_set`, see `Recipe.epochs_for`; None with `steps`.
        steps: optimiser steps instead, see `Recipe.steps_for`; the last epoch may be cut short.
        seed: seed of the order of images and of the augmentation.
        loss: what to minimise instead of the model's own loss, such as those in `losses`.
        settings: whatever else the run depends on (data, method). A run with the same recipe, length, seed and
            settings goes on from its last complete checkpoint; any other starts afresh beside it.
        checkpoints: whether to save one after every epoch (only the last is kept).
        progress: label of the progress bar; None for no bar.
        scale_loss: scale the loss, without which small gradients vanish in float16; computes in it.
        workers: processes that load images; 0 loads them in this one, "auto" finds out how many the step needs.
        callbacks: further callbacks of the Trainer.
        device: where to train, see `utils.devices.find_device`; None for the device that the Trainer takes.
        report_to: trackers of experiments that the Trainer logs to, such as "tensorboard".

    Raises:
        ImportError: a tracker is not installed.
        OSError: a checkpoint cannot be read back.
        ValueError: if `train_set` is empty, or not exactly one of `epochs` and `steps` is given, or there is no such
            device or tracker.
        TrainingDivergedError: a trained value is not finite any more. The model holds the last finite ones, and no
            checkpoint is made of the others.
        FolderInUseError: another process makes checkpoints of the same run there.
        CannotWriteError: the disk is full, or the folder is not to be written.
    """
    _check(train_set, epochs, steps)
    require_workers(workers)
    train_set = with_own_random_numbers(train_set, seed)
    processes = all_processes(device)
    batches = EpochBatches(len(train_set), recipe.batch_size, seed, processes)
    length = {"epochs": epochs} if steps is None else {"steps": steps}
    loaders = find_workers(workers, model, train_set)
    folder = checkpoint_folder(
        output_dir, {"recipe": asdict(recipe), **length, "seed": seed, "scale_loss": scale_loss, "run": settings}
    )
    arguments = _arguments(
        recipe,
        folder,
        epochs or 1,
        seed,
        checkpoints,
        scale_loss,
        loaders,
        eval_set is not None,
        report_to,
        launched() > 1 and on_cpu(device),
    )
    if device not in (None, "auto") and not arguments.use_cpu:
        _compute_on(arguments, find_device(device))
    if (
        arguments.n_gpu > 1
    ):  # `nn.DataParallel`, which the Trainer starts wherever it sees several, multiplies the batch
        arguments._n_gpu = 1
    if steps is not None:
        epochs = math.ceil(steps / len(batches))
        arguments.max_steps = steps
    _warn_of_warmup(recipe, epochs)  # pyrefly: ignore[bad-argument-type]  # there is one of `epochs` and `steps`
    optimizer = make_optimizer(model, recipe)
    # pyrefly: ignore[bad-argument-type]  # likewise
    scheduler = lr_scheduler(optimizer, recipe, epochs, len(batches), steps)
    timer = StepTimer()
    divergence = StopIfDiverged()
    method_callbacks = getattr(model, "method_callbacks", list)
    # After the watch for divergence, so that no average is saved of values that are not finite.
    average = [AverageWeights(recipe.averaging)] if recipe.averaging is not None else []
    # One writer from the choice of a checkpoint on, so that nobody takes it away before it is read.
    writer = only_writer(folder) if checkpoints else nullcontext()
    # The Trainer and these callbacks write into tensors as optimisers do: frozen weights need not be read in every step.
    with progress_bar(progress) as bars, writer, disk_errors(folder), fixed_weights():
        if checkpoints and processes.is_first:
            write_json(settings or {}, folder / "identity.json")
        find = partial(last_checkpoint, folder, averaged=bool(average))
        checkpoint = processes.from_first(find) if checkpoints else None
        say_kept(checkpoint)
        resumed_step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        if steps is not None and resumed_step >= steps:
            # All steps are made: without this the Trainer would make one more, to complete the last epoch.
            arguments.max_steps = -1
            arguments.num_train_epochs = resumed_step // len(batches)
        watchers = [EpochOf(batches, train_set), timer, *method_callbacks(), *callbacks, divergence, *average, *bars]
        watchers += [KeepLastCheckpoint()]
        trainer = _trainer(model, arguments, batches, train_set, eval_set, (optimizer, scheduler), loss, watchers)
        start = time.perf_counter()
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if divergence.epoch is not None:
        raise TrainingDivergedError(
            f"Training diverged in epoch {divergence.epoch} of {epochs}: values are not finite. Use a lower learning rate "
            f"than {recipe.learning_rate:g}.",
            divergence.epoch,
        )
    return TrainResult(
        steps=trainer.state.global_step,
        seconds_per_step=timer.median,
        train_seconds=time.perf_counter() - start,
        # Without the Trainer's summary, whose loss is the mean over the steps since a resume alone.
        history=[entry for entry in trainer.state.log_history if "train_runtime" not in entry],
        resumed_step=resumed_step,
    )


def _check(train_set: Sequence[dict], epochs: int | None, steps: int | None) -> None:
    if not len(train_set):
        raise ValueError("The training set is empty.")
    if (epochs is None) == (steps is None):
        raise ValueError(f"Expected a number of epochs or of steps. Received: epochs={epochs}, steps={steps}.")
    require_int("epochs" if steps is None else "steps", epochs if steps is None else steps, 1)


def _warn_of_warmup(recipe: Recipe, epochs: int) -> None:
    if epochs <= recipe.warmup_epochs:
        warn_caller(
            f"All of epochs={epochs} is warm-up (warmup_epochs={recipe.warmup_epochs}): hardly anything will be learned."
        )


def _trainer(
    model: torch.nn.Module,
    arguments: TrainingArguments,
    batches: EpochBatches,
    train_set: Sequence[dict],
    eval_set: Sequence[dict] | None,
    optimizers: tuple[torch.optim.Optimizer, LambdaLR],
    loss: Callable | None,
    callbacks: list[TrainerCallback],
) -> Trainer:
    trainer = RecipeTrainer(
        batches,
        model=model,
        args=arguments,
        train_dataset=train_set,
        eval_dataset=eval_set,
        data_collator=default_data_collator,
        compute_metrics=compute_metrics,
        compute_loss_func=loss,
        optimizers=optimizers,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def _arguments(
    recipe: Recipe,
    folder: Path,
    epochs: int,
    seed: int,
    checkpoints: bool,
    scale_loss: bool,
    workers: int,
    watch: bool,
    report_to: Sequence[str],
    use_cpu: bool,
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=recipe.batch_size,  # `EpochBatches` shares it out
        per_device_eval_batch_size=100,
        num_train_epochs=epochs,
        max_grad_norm=0.0,  # the authors do not clip; the Trainer would
        seed=seed,
        data_seed=seed,
        fp16=scale_loss,
        save_strategy="epoch" if checkpoints else "no",
        eval_strategy="epoch" if watch else "no",
        logging_strategy="epoch",
        logging_nan_inf_filter=False,  # the Trainer would log a loss of NaN as 0
        report_to=check_trackers(report_to) or "none",
        use_cpu=use_cpu,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=workers,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


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


@typed
def make_optimizer(model: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer of the parameters of `model` that require gradients."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    shared = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=recipe.momentum, **shared)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, betas=tuple(recipe.betas), eps=recipe.eps, **shared)
