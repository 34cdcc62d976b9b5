"""Callbacks of a run: a stop when it diverges, step times, the progress bar, which checkpoints stay.

Averages of weights: see `averaging`.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..data.augmentation import RandomRows
from ..utils.progress import make_bar
from ..utils.readable import unreadable_files


class StopIfDiverged(TrainerCallback):
    """Stop when a trained value is not finite any more, and give the model the last finite ones back.

    Attributes:
        epoch: the epoch, counted from 1, in which training diverged; None while it has not.
    """

    def __init__(self):
        self.epoch: int | None = None
        self._finite: list[torch.Tensor] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Keep what training starts from."""
        self._keep(model)

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        """Look at what was trained, before a checkpoint is made of it."""
        if all(bool(value.isfinite().all()) for value in trained_values(model)):
            self._keep(model)
            return
        control.should_save, control.should_evaluate, control.should_training_stop = False, False, True
        self.epoch = round(state.epoch)
        with torch.no_grad():
            for value, finite in zip(trained_values(model), self._finite, strict=True):
                value.copy_(finite)

    def _keep(self, model: torch.nn.Module) -> None:
        self._finite = [value.detach().clone() for value in trained_values(model)]


class EpochOfRows(TrainerCallback):
    """Tell rows with random numbers of their own which epoch it is.

    The Trainer does so in one process only.
    """

    def __init__(self, rows: RandomRows):
        self.rows = rows

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Count the epochs from 0, those before a resume included."""
        self.rows.set_epoch(round(state.epoch or 0))


class KeepLastCheckpoint(TrainerCallback):
    """Delete older checkpoints once the new one was read back. Stands after all callbacks that write into it.

    Raises:
        OSError: the new checkpoint cannot be read back. The older one stays.
    """

    def on_save(self, args, state, control, **kwargs):
        """Read the checkpoint of this step, then delete the others."""
        if args.world_size > 1:  # each process writes its random numbers into it
            args.distributed_state.wait_for_everyone()
        if not state.is_world_process_zero:
            return
        new = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if problems := unreadable_files(new):
            shutil.rmtree(new, ignore_errors=True)
            raise OSError(
                f"The checkpoint {new} cannot be read back: {'; '.join(problems[:4])}. It was deleted, and an older one "
                "stays. Look whether the disk is full or damaged, and start the run again: it goes on from there."
            )
        for other in new.parent.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
            if other != new:
                shutil.rmtree(other, ignore_errors=True)


def named_trained_values(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return what training changes, by name.

    These are the parameters that require gradients, and the statistics (floating-point buffers) of modules that have
    such parameters. A parameter that several modules share has the first one's name.
    """
    values = {}
    seen = set()
    for prefix, module in model.named_modules():
        own = [(name, p) for name, p in module.named_parameters(recurse=False) if p.requires_grad]
        buffers = module.named_buffers(recurse=False) if own else []
        for name, value in [*own, *((name, b) for name, b in buffers if b.is_floating_point())]:
            if id(value) not in seen:
                seen.add(id(value))
                values[f"{prefix}.{name}" if prefix else name] = value
    return values


def trained_values(model: torch.nn.Module) -> list[torch.Tensor]:
    """Return the values of `named_trained_values`."""
    return list(named_trained_values(model).values())


class StepTimer(TrainerCallback):
    """Measure the wall time of every optimiser step.

    Attributes:
        seconds: of each step made so far in this process.
    """

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        """Start the clock."""
        self._start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        """Note the time of the step."""
        self.seconds.append(time.perf_counter() - self._start)

    @property
    def median(self) -> float:
        """Return the median in seconds; NaN without a step."""
        return statistics.median(self.seconds) if self.seconds else float("nan")


class ProgressBar(TrainerCallback):
    """Show one rich progress bar over all steps, with the last loss.

    Args:
        label: what stands in front of the bar.
    """

    def __init__(self, label: str):
        self.bar = make_bar(label, "steps")

    def on_train_begin(self, args, state, control, **kwargs):
        """Show the bar, in the first process alone; steps made before a resume count as done."""
        if state.is_world_process_zero:
            self.task = self.bar.add_task("", total=state.max_steps, completed=state.global_step, note="")
            self.bar.start()

    def on_step_end(self, args, state, control, **kwargs):
        """Move the bar to the step that was made."""
        if self.bar.tasks:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Show the loss of the epoch that was logged."""
        if self.bar.tasks and logs and "loss" in logs:
            self.bar.update(self.task, note=f"loss {float(logs['loss']):.3f}")


@contextmanager
def progress_bar(label: str | None) -> Iterator[list[ProgressBar]]:
    """Yield the callbacks that show progress, none without a label; the line is free again however the block ends."""
    bars = [ProgressBar(label)] if label is not None else []
    try:
        yield bars
    finally:
        for bar in bars:
            bar.bar.stop()
