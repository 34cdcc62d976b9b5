"""Training by a recipe with the stock `transformers.Trainer`: optimizer, schedule, callbacks, resume after a kill."""

import inspect
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import TrainerCallback

from ..data.augmentation import with_own_random_numbers
from ..data.epoch_batches import EpochBatches
from ..errors import TrainingDivergedError
from ..tuners.base.module_state import fixed_weights
from ..tuners.base.recipe import Recipe
from ..utils.arguments import typed
from ..utils.fields import shown
from ..utils.io import disk_errors, write_json
from ..utils.locks import only_writer
from ..utils.processes import all_processes
from ..utils.validation import require_int
from ..utils.warning import warn_caller
from .arguments import training_arguments
from .averaging import AverageWeights
from .callbacks import EpochOf, StepTimer, StopIfDiverged, named_trained_values, progress_bar
from .checkpoints import KeepLastCheckpoint, checkpoint_folder, last_checkpoint, say_kept, step_of
from .loading import Workers, find_workers, require_workers
from .recipe_trainer import RecipeTrainer
from .recipes import lr_scheduler, make_optimizer


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
        loss: what to minimise instead of the model's own loss, such as those in `losses`; called as
            `loss(output, labels, num_items_in_batch=...)` with what the model returns.
        settings: whatever else the run depends on (data, method). A run with the same recipe, length, seed and
            settings, in which the same is trained (by names and shapes), goes on from its last complete checkpoint; any
            other starts afresh beside it.
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
        ValueError: if `train_set` is empty or has no labels, or not exactly one of `epochs` and `steps` is given, or nothing
            of the model is trained, or `loss` cannot be called so, or there is no such device or tracker.
        TrainingDivergedError: a trained value is not finite any more. The model holds the last finite ones, and no
            checkpoint is made of the others.
        FolderInUseError: another process makes checkpoints of the same run there.
        CannotWriteError: the disk is full, or the folder is not to be written.
    """
    _check(train_set, epochs, steps)
    _check_loss(loss)
    require_workers(workers)
    length = {"epochs": epochs} if steps is None else {"steps": steps}
    train_set = with_own_random_numbers(train_set, seed)
    processes = all_processes(device)
    batches = EpochBatches(len(train_set), recipe.batch_size, seed, processes)
    epochs = epochs or math.ceil((steps or 0) / len(batches))
    identity = {"recipe": asdict(recipe), **length, "seed": seed, "scale_loss": scale_loss, "run": settings}
    # What is trained tells methods apart, and the stages of one.
    trained = {name: list(value.shape) for name, value in named_trained_values(model).items()}
    folder = checkpoint_folder(output_dir, identity | {"trained": trained})
    arguments = training_arguments(
        recipe,
        folder,
        epochs=epochs,
        max_steps=steps or -1,
        seed=seed,
        save=checkpoints,
        evaluate=eval_set is not None,
        fp16=scale_loss,
        workers=find_workers(workers, model, train_set),
        report_to=report_to,
        device=device,
    )
    _warn_of_warmup(recipe, epochs)
    optimizer = make_optimizer(model, recipe)
    scheduler = lr_scheduler(optimizer, recipe, epochs, len(batches), steps)
    timer = StepTimer()
    divergence = StopIfDiverged()
    # After the watch for divergence, so that no average is saved of values that are not finite.
    average = [AverageWeights(recipe.averaging)] if recipe.averaging is not None else []
    watchers = [EpochOf(batches, train_set), timer, *getattr(model, "method_callbacks", list)(), *callbacks]
    watchers += [divergence, *average]
    # One writer from the choice of a checkpoint on, so that nobody takes it away before it is read.
    writer = only_writer(folder) if checkpoints else nullcontext()
    # The Trainer and these callbacks write into tensors as optimisers do: frozen weights need not be read in every step.
    with progress_bar(progress) as bars, writer, disk_errors(folder), fixed_weights():
        if checkpoints and processes.is_first:
            write_json(settings or {}, folder / "identity.json")
        find = partial(last_checkpoint, folder, averaged=bool(average))
        checkpoint = processes.from_first(find) if checkpoints else None
        say_kept(checkpoint)
        resumed_step = step_of(checkpoint) if checkpoint else 0
        if steps is not None and resumed_step >= steps:
            # All steps are made: without this the Trainer would make one more, to complete the last epoch.
            arguments.max_steps = -1
            arguments.num_train_epochs = resumed_step // len(batches)
        trainer = RecipeTrainer(
            batches,
            model=model,
            args=arguments,
            train_dataset=train_set,
            eval_dataset=eval_set,
            compute_loss_func=loss,
            optimizers=(optimizer, scheduler),
            callbacks=[*watchers, *bars, KeepLastCheckpoint()],
        )
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


def _check_loss(loss: Callable | None) -> None:
    """Refuse a loss that cannot be called as the Trainer does."""
    if loss is None:
        return
    try:
        signature = inspect.signature(getattr(loss, "forward", loss))  # the call of a module takes anything
    except ValueError:  # written in C: its arguments are not known
        return
    try:
        signature.bind("output", "labels", num_items_in_batch=1)
    except TypeError as error:
        raise ValueError(
            "Expected a loss that is called as loss(output, labels, num_items_in_batch=...), where output.logits are the "
            f"logits [b, c]. Received: loss={shown(loss)}: {error}. Take one of peft_vprompt.losses, such as CrossEntropy()."
        ) from error


def _warn_of_warmup(recipe: Recipe, epochs: int) -> None:
    if epochs <= recipe.warmup_epochs:
        warn_caller(
            f"All of epochs={epochs} is warm-up (warmup_epochs={recipe.warmup_epochs}): hardly anything will be learned."
        )
