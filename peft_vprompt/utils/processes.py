"""The processes of a launcher (`torchrun`, `accelerate launch`) that share one piece of work.

Each takes a contiguous share of the batches, and all get what all found, in the order of one process. Joining is
Accelerate's: NCCL between graphics cards, gloo between processors. What ends them together is in `process_watch`.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed


Found = TypeVar("Found")
Work = TypeVar("Work", bound=Sequence)

#: How long a process waits for another that lives: for one that decodes a data set, say. One that is dead or stopped is
#: noticed by `process_watch` long before.
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Processes:
    """Who shares the work.

    Attributes:
        number: of this process, from 0.
        count: how many there are.
    """

    number: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.number == 0

    def share(self, work: Work) -> Work:
        """Return this process's part of a sequence: contiguous, and as long as the others' or one longer or shorter."""
        first = len(work) * self.number // self.count
        return work[first : len(work) * (self.number + 1) // self.count]  # pyrefly: ignore[bad-return]  # a slice

    def gather(self, mine: list[Found]) -> list[Found]:
        """Return the lists of all processes as one, in the order of the processes."""
        if self.count == 1:
            return mine
        parts: list[Any] = [None] * self.count
        distributed.all_gather_object(parts, mine)
        return [found for part in parts for found in part]

    def from_first(self, make: Callable[[], Found]) -> Found:
        """Return what the first process makes; the others wait for it.

        Raises:
            ValueError: the first process could not make it; the others say the same.
        """
        if self.count == 1:
            return make()
        box: list[Any] = [None, None]
        error = None
        if self.is_first:
            try:
                box[0] = make()
            except Exception as failed:
                error, box[1] = failed, str(failed) or type(failed).__name__
        distributed.broadcast_object_list(box)
        if error is not None:
            raise error
        if box[1] is not None:
            raise ValueError(box[1])
        return box[0]

    def wait(self) -> None:
        """Wait until all are here."""
        self.gather([])

    @contextmanager
    def one_by_one(self) -> Iterator[None]:
        """Run a block in the first process of each machine, then in the others, which find on the disk what it left."""
        if self.count == 1:
            yield
            return
        if not is_first_here():
            self.wait()
        yield
        if is_first_here():
            self.wait()


#: One process that shares with nobody.
ALONE = Processes()


def launched() -> int:
    """Return how many processes a launcher started, this one among them; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1") or 1)


def launched_number() -> int:
    """Return the number that a launcher gave this process, from 0; 0 without a launcher."""
    return int(os.environ.get("RANK", "0") or 0)


def is_first_here() -> bool:
    """Tell whether this process is the first that a launcher started on this machine; True without a launcher."""
    return not int(os.environ.get("LOCAL_RANK", "0") or 0)


def all_processes(device: str | torch.device | None = None) -> Processes:
    """Return the processes of the launcher, which this one joins if it has not; `ALONE` without a launcher.

    Args:
        device: where to compute; "cpu" on a machine with graphics cards.

    Raises:
        ValueError: a launcher for DeepSpeed or FSDP.
    """
    if not distributed.is_available() or launched() == 1:
        return ALONE
    if not distributed.is_initialized():
        _join(device)
    return Processes(distributed.get_rank(), distributed.get_world_size())


def _join(device: str | torch.device | None) -> None:
    for name in ("DEEPSPEED", "FSDP"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise ValueError(
                f"Expected processes that hold the whole model each (DDP). Received: a launcher for {name}, which shares the "
                "weights out. Start it with torchrun, or with accelerate launch --multi_gpu; frozen weights are shared out "
                "in Python, see docs/scaling.md."
            )
    from accelerate import PartialState

    PartialState(cpu=on_cpu(device), timeout=PATIENCE)
    atexit.register(_leave)


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def on_cpu(device: str | torch.device | None = None) -> bool:
    """Tell whether several processes compute on the CPU: they are told to, or there is nothing else for them."""
    told = device is not None and str(device) == "cpu"
    if told or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        return True
    return not torch.accelerator.is_available() or torch.backends.mps.is_available()  # one MPS is for one process
