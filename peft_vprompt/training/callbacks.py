"""Callbacks of a run: a stop when it diverges, step times, the progress bar.

Averages of weights: see `averaging`. Which checkpoints stay: see `checkpoints`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import TrainerCallback

from ..data.augmentation import RandomRows
from ..data.epoch_batches import EpochBatches
from ..utils.arguments import typed
from ..utils.progress import make_bar


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


class EpochOf(TrainerCallback):
    """Tell batches, and rows with random numbers of their own, which epoch it is."""

    def __init__(self, batches: EpochBatches, rows: Sequence[dict]):
        self.drawn = [batches, rows] if isinstance(rows, RandomRows) else [batches]

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Count the epochs from 0, those before a resume included."""
        for each in self.drawn:
            each.set_epoch(round(state.epoch or 0))


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

    @typed
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
