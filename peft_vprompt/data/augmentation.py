"""Rows whose random numbers depend on a seed, the epoch and the row alone.

The same images are then seen however many processes load them, whatever else draws random numbers meanwhile (dropout, an
evaluation), and whether or not the run was stopped and resumed.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from datasets import Dataset

from ..utils.arguments import typed
from .transforms import TrainTransform, Transform


class RandomRows(torch.utils.data.Dataset):
    """What rows with random numbers of their own share.

    Attributes:
        seed: whole number >= 0.
        epoch: from 0. `training.trainer.train` sets it, and so does a Trainer in one process; elsewhere (several
            processes, a loop of your own) call `set_epoch` before each epoch.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draw the random numbers of another epoch from now on."""
        self.epoch = epoch

    def with_seed(self, seed: int) -> Self:
        """Return the same rows with other random numbers, at the first epoch."""
        other = copy.copy(self)
        other.seed = seed
        other.epoch = 0
        return other

    def generator(self, index: int) -> torch.Generator:
        """Return the random numbers of a row in this epoch, from their start."""
        (seed,) = np.random.SeedSequence((self.seed, self.epoch, index)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(seed))

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        raise NotImplementedError


class AugmentedRows(RandomRows):
    """Rows of a data set as a transform gives them, a random one anew in every epoch.

    Args:
        rows: data set with `image` and, if labelled, `label`, without a transform.
        transform: the augmentation; one without random numbers gives the same in every epoch.
        seed: seed of its random numbers.
    """

    @typed
    def __init__(self, rows: Dataset, transform: Transform, seed: int = 0):
        super().__init__(seed)
        self.rows = rows
        self.transform = transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        batch = self.transform(self.rows[list(indices)], [self.generator(index) for index in indices])
        return [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]


def with_own_random_numbers(rows: Any, seed: int) -> Any:
    """Return rows to train on whose random numbers are those of `seed`, the epoch and the row.

    Args:
        rows: a data set with a `TrainTransform`, or `RandomRows`; any other rows are returned as they are.
        seed: whole number >= 0.
    """
    if isinstance(rows, RandomRows):
        return rows.with_seed(seed)
    transform = rows.format["format_kwargs"].get("transform") if isinstance(rows, Dataset) else None
    if not isinstance(transform, TrainTransform):
        return rows
    return AugmentedRows(rows.with_format(None, columns=rows.format["columns"]), transform, seed)
