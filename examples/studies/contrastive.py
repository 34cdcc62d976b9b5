"""Contrastive training of a small CLIP of which a kill loses little: optimizers, schedule, steps, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from peft_vprompt.utils.io import atomic_path


#: Parts of a run, after each of which the model is measured and a checkpoint is written.
PARTS = 10

#: Name of the checkpoint in the folder of a run; there is none where the run is done.
CHECKPOINT = "checkpoint.pt"

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class TrainingOptions:
    """What decides the outcome of a training run, beside the model and the data.

    Args:
        steps: Optimiser steps.
        batch_size: Image-caption pairs per step.
        learning_rate: AdamW's peak rate, for embeddings, norms, biases, projections and convolutions.
        matrix_learning_rate: Muon's peak rate, for the weight matrices of the transformer layers.
        weight_decay: On all weights but those of norms and biases.
        warmup_share: Share of the run with a rising learning rate; a cosine to zero follows.
        seed: Seed of new weights and of the order and the details of the pictures.
    """

    steps: int = 3750
    batch_size: int = 64
    learning_rate: float = 1e-3
    matrix_learning_rate: float = 0.03
    weight_decay: float = 0.1
    warmup_share: float = 1 / 15
    seed: int = 0


def make_optimizers(model: PreTrainedModel, options: TrainingOptions) -> list[torch.optim.Optimizer]:
    """Return Muon for the weight matrices inside the transformer layers, and AdamW for all else that is trained.

    Raises:
        RuntimeError: If this torch has no Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise RuntimeError(
            f"Expected torch 2.9 or later, for torch.optim.Muon. Received: torch {torch.__version__}. Install a later one."
        )
    matrices, others, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inside = ".layers." in name
        (vectors if parameter.ndim < 2 else matrices if inside else others).append(parameter)
    adamw = torch.optim.AdamW(
        [{"params": others}, {"params": vectors, "weight_decay": 0.0}],
        lr=options.learning_rate,
        betas=(0.9, 0.98),
        eps=1e-6,
        weight_decay=options.weight_decay,
        fused=True,
    )
    if not matrices:
        return [adamw]
    return [adamw, torch.optim.Muon(matrices, lr=options.matrix_learning_rate, weight_decay=options.weight_decay)]


class InFloat32(TorchFunctionMode):
    """Let Muon compute in float32 what it computes in bfloat16, ten times slower where the processor has no such arithmetic."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func == Tensor.bfloat16:
            return args[0].clone()
        return func(*args, **(kwargs or {}))


def has_bfloat16() -> bool:
    """Tell whether this processor multiplies matrices of bfloat16."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def clip_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """CLIP's contrastive loss: each image has its caption, and no other."""
    return model(**batch, return_loss=True).loss


class Training:
    """A run, all of whose state is in a checkpoint.

    Args:
        model: What is trained, in place.
        options: What decides the outcome.
        folder: Folder of the checkpoint.

    Attributes:
        step: Steps that are done.
        curve: What was measured after each part.
        seconds, cpu_seconds: Time that the run has taken, over all its starts.

    Raises:
        ValueError: If the folder holds the checkpoint of another run.
    """

    def __init__(self, model: PreTrainedModel, options: TrainingOptions, folder: Path):
        self.model, self.options, self.checkpoint = model, options, folder / CHECKPOINT
        warmup = round(options.warmup_share * options.steps)
        optimizers = make_optimizers(model, options)
        schedules = [get_cosine_schedule_with_warmup(optimizer, warmup, options.steps) for optimizer in optimizers]
        self.stages = [*optimizers, *schedules]
        self.step = 0
        self.losses: list[float] = []
        self.curve: list[dict] = []
        self.seconds = self.cpu_seconds = 0.0
        if self.checkpoint.is_file():
            self._load()

    def run(
        self,
        batches_from: Callable[[int], Iterable[Batch]],
        measure: Callable[[], dict[str, float]],
        loss: Callable[[PreTrainedModel, Batch], Tensor] = clip_loss,
        console: Console | None = None,
    ) -> None:
        """Train to the end, from where the run was stopped.

        Args:
            batches_from: Gives the batches from a step on, the same whenever it is asked.
            measure: Gives what is worth noting of the model as it is.
            loss: Loss of a batch.
            console: Where the progress bar goes.
        """
        every = max(1, self.options.steps // PARTS)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        clock = self._clock()
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("pretraining", total=self.options.steps, completed=self.step)
            for batch in batches_from(self.step):
                self._take_step(loss(self.model.train(), batch))
                progress.update(bar, advance=1, description=f"loss {np.mean(self.losses[-50:]):.3f}")
                if self.step % every == 0:
                    measured = measure()
                    self.curve.append(
                        {"step": self.step, "loss": round(float(np.mean(self.losses[-50:])), 4), **measured}
                    )
                    progress.console.print(listed(self.curve[-1]))
                    clock()
                    self._save()
        clock()

    def finish(self) -> None:
        """Remove the checkpoint, when what it has led to is saved."""
        self.checkpoint.unlink(missing_ok=True)

    def _take_step(self, loss: Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        with nullcontext() if has_bfloat16() else InFloat32():
            for stage in self.stages:
                stage.step()
        self.model.zero_grad()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(100))
        self.losses.append(loss.item())
        self.step += 1

    def _clock(self) -> Callable[[], None]:
        """Return a function that adds the time since it was called last."""
        since = [time.perf_counter(), time.process_time()]

        def add() -> None:
            now = [time.perf_counter(), time.process_time()]
            self.seconds += now[0] - since[0]
            self.cpu_seconds += now[1] - since[1]
            since[:] = now

        return add

    def _save(self) -> None:
        state = {
            "options": asdict(self.options),
            "model": self.model.state_dict(),
            "stages": [stage.state_dict() for stage in self.stages],
            "noted": {name: getattr(self, name) for name in ("step", "losses", "curve", "seconds", "cpu_seconds")},
        }
        with atomic_path(self.checkpoint) as partial:
            torch.save(state, partial)

    def _load(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        if state["options"] != asdict(self.options):
            raise ValueError(
                f"Expected the checkpoint of a run with the options {asdict(self.options)}. Received: "
                f"{str(self.checkpoint)!r} of {state['options']}. Give the run a folder of its own, or remove the file."
            )
        self.model.load_state_dict(state["model"])
        for stage, values in zip(self.stages, state["stages"], strict=True):
            stage.load_state_dict(values)
        for name, value in state["noted"].items():
            setattr(self, name, value)


def listed(numbers: dict[str, float]) -> str:
    """Return names with their numbers, in a line."""
    return ", ".join(f"{name} {value}" for name, value in numbers.items())
