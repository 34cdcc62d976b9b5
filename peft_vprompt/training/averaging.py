"""`AverageWeights`: a run ends with an average of the weights it went through, not with the last ones."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from ..tuners.base.recipe import Averaging
from ..utils.arguments import typed
from ..utils.digests import digest_tensors
from ..utils.io import atomic_path
from .callbacks import named_trained_values
from .checkpoints import AVERAGE_FILE, CHECKPOINTS, checkpoint_of, find_average, waiting_average


#: Entries of the file beside the values: the last epoch that was averaged, and the logarithm of the weights' sum.
_EPOCH, _LOG_TOTAL = "average.epoch", "average.log_total"

#: Entry of the file's metadata: the digest of the weights that the model had when the average was written.
_WEIGHTS = "weights"


class AverageWeights(TrainerCallback):
    """Average what is trained over a run, and give the average to the model at the end of training.

    Works with any `Trainer` that saves in its `output_dir`. The average is kept in float32 at least, beside the
    model: training, evaluation along the way and the weights in checkpoints are those without it. Each checkpoint has
    the average so far in `weight_average.safetensors`, from which a resumed run goes on to the same bits; it is read
    in `output_dir`, so a run is resumed in its own folder or in a copy of it. Where a step makes a value that is not
    finite the model keeps its own.

    Args:
        averaging: which average.

    Raises:
        ValueError: when training begins: a checkpoint to resume from has no average, or one of other values or of
            another run; there are no epochs to average; or the arguments ask for the best checkpoint at the end, or for
            sharded weights.
    """

    @typed
    def __init__(self, averaging: Averaging):
        self.averaging = averaging
        self._average: dict[str, Tensor] = {}
        self._epoch = 0
        self._log_total = -math.inf
        self._written: int | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control, model=None, **kwargs):
        """Start from the weights as they are, or from a checkpoint's average."""
        self._check(args, state)
        self._written = None
        self._epoch = 0
        self._log_total = -math.inf
        self._average = {
            name: value.detach().to(torch.promote_types(value.dtype, torch.float32), copy=True)
            for name, value in named_trained_values(model).items()
        }
        if state.global_step:
            self._load(checkpoint_of(args, state), model)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model=None, **kwargs):
        """Count the step, or the epoch where the step was its last: the checkpoint of this step has it then."""
        if self.averaging.kind == "ema":
            self._add(model, 1 - self.averaging.decay)  # pyrefly: ignore[unsupported-operation]  # set for this kind
        elif float(state.epoch).is_integer() or state.global_step >= state.max_steps:
            self._add_epoch(model, state)
        self._save(args, state, control, model)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model=None, **kwargs
    ):
        """Count an epoch that was cut short."""
        if self.averaging.kind != "ema":
            self._add_epoch(model, state)
        self._save(args, state, control, model)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model=None, **kwargs):
        """Complete the checkpoint that the Trainer has just written."""
        if args.should_save:
            checkpoint = checkpoint_of(args, state)
            if self._written != state.global_step:  # a later callback asked for the checkpoint
                self._write(waiting_average(checkpoint), model)
            checkpoint.mkdir(parents=True, exist_ok=True)
            os.replace(waiting_average(checkpoint), checkpoint / AVERAGE_FILE)
            for left in checkpoint.parent.glob(waiting_average(Path(CHECKPOINTS)).name):  # of steps before a kill
                left.unlink(missing_ok=True)

    @torch.no_grad()
    def on_train_end(self, args: TrainingArguments, state: TrainerState, control, model=None, **kwargs):
        """Give the model the average, unless nothing was averaged or training diverged."""
        averaged = self.averaging.kind == "ema" or self._epoch
        if averaged and all(bool(value.isfinite().all()) for value in self._average.values()):
            for name, value in named_trained_values(model).items():
                value.copy_(self._average[name])

    def _check(self, args: TrainingArguments, state: TrainerState) -> None:
        if args.load_best_model_at_end:
            raise ValueError(
                "Expected a run that ends with its average. Received: load_best_model_at_end=True, which asks for the "
                "weights of one checkpoint. Set it to False, or leave out AverageWeights."
            )
        if args.fsdp or args.deepspeed:
            raise ValueError(
                f"Expected whole weights in every process. Received: fsdp={args.fsdp!r}, deepspeed={args.deepspeed!r}, "
                "which share them out. Use one process, or several with DistributedDataParallel."
            )
        first = self.averaging.from_epoch
        if first is not None and not state.global_step and first > state.num_train_epochs:
            raise ValueError(
                f"Expected from_epoch to be one of the {state.num_train_epochs} epochs. Received: from_epoch={first}."
            )

    def _add_epoch(self, model: torch.nn.Module, state: TrainerState) -> None:
        """Count the epoch that ends, once; the last epoch of a run that counts steps may be cut short."""
        epoch = math.ceil(state.epoch or 0)
        if epoch <= self._epoch or epoch < (self.averaging.from_epoch or 0):
            return
        self._epoch = epoch
        # By logarithms, since the weight of an early epoch may be too small for a number.
        log_weight = 0.0
        if self.averaging.kind == "gaussian":
            # pyrefly: ignore[unsupported-operation]  # both are set for this kind
            log_weight = -0.5 * ((epoch - self.averaging.mean) / self.averaging.std) ** 2
        high, low = max(self._log_total, log_weight), min(self._log_total, log_weight)
        self._log_total = high + math.log1p(math.exp(low - high))
        self._add(model, math.exp(log_weight - self._log_total))

    @torch.no_grad()
    def _add(self, model: torch.nn.Module, share: float) -> None:
        """Move the average towards the model's weights; after shares w_e / (w_1 + ... + w_e) it is the weighted mean."""
        for name, value in named_trained_values(model).items():
            average = self._average[name]
            average.lerp_(value.to(average), share)

    def _save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any) -> None:
        # Beside the checkpoint, before the Trainer writes its part: there is never a checkpoint with the average alone,
        # which a Trainer would resume from, nor a whole one without the average.
        if control.should_save and args.should_save:
            self._write(waiting_average(checkpoint_of(args, state)), model)
            self._written = state.global_step

    def _write(self, path: Path, model: torch.nn.Module) -> None:
        progress = {_EPOCH: torch.tensor(self._epoch), _LOG_TOTAL: torch.tensor(self._log_total, dtype=torch.float64)}
        average = {name: value.contiguous() for name, value in self._average.items()}
        weights = digest_tensors(named_trained_values(model))
        with atomic_path(path) as partial:
            save_file(average | progress, partial, {_WEIGHTS: weights})

    def _load(self, checkpoint: Path, model: torch.nn.Module) -> None:
        path = find_average(checkpoint)
        if path is None:
            raise ValueError(
                f"Expected the average of the weights beside the checkpoint that training resumes from. Received: no "
                f"file {checkpoint / AVERAGE_FILE}. Set output_dir to the folder of a run with AverageWeights and resume "
                "from its checkpoint, or start afresh."
            )
        with safe_open(path, "pt") as file:
            weights = (file.metadata() or {}).get(_WEIGHTS)
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no dict
        self._epoch = int(saved.pop(_EPOCH, torch.tensor(0)))
        self._log_total = float(saved.pop(_LOG_TOTAL, torch.tensor(-math.inf)))
        shapes = {name: tuple(value.shape) for name, value in saved.items()}
        if shapes != {name: tuple(value.shape) for name, value in self._average.items()}:
            raise ValueError(
                f"Expected the average of the {len(self._average)} values that are trained. Received: others in {path}. "
                "Resume with the model and the method of the checkpoint, or start afresh."
            )
        if weights not in (None, digest_tensors(named_trained_values(model))):
            raise ValueError(
                f"Expected the average that goes with the weights that training resumes from. Received: that of another run, "
                f"{path}. Set output_dir to the folder of the checkpoint to resume from, or to a copy of it."
            )
        for name, value in self._average.items():
            value.copy_(saved[name])
