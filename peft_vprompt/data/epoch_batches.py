"""The batches of an epoch: the same images in the same batches however many processes share them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from ..utils.processes import ALONE, Processes


class EpochBatches(Sampler[list[int]]):
    """Draw a new order of the rows in every epoch, and give this process its share of each batch.

    The order is that of the stock Trainer with the same `data_seed`.

    Args:
        rows: number of rows.
        batch_size: rows of a batch in all processes together. Only full batches are given, as by the authors' loaders; where
            there are fewer rows than in one, they are a batch of their own.
        seed: seed of the order.
        processes: who shares the batches.

    Attributes:
        batch_size: as above, or the number of rows where that is smaller.
        epoch: from 0; `set_epoch` before each.

    Raises:
        ValueError: a process would have no row of a batch.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, processes: Processes = ALONE):
        self.rows = rows
        self.batch_size = min(batch_size, rows)
        self.seed = seed
        self.processes = processes
        self.epoch = 0
        if self.batch_size < processes.count:
            raise ValueError(
                f"Expected a row of each batch for each of {processes.count} processes. Received: batches of {self.batch_size}. "
                f"Start at most {self.batch_size}, or give a larger batch size."
            )

    @property
    def own_size(self) -> int:
        """Return how many rows of a batch are this process's."""
        return len(self.processes.share(range(self.batch_size)))

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of another epoch from now on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        for first in range(0, len(self) * self.batch_size, self.batch_size):
            yield self.processes.share(order[first : first + self.batch_size])
