"""Batches that several processes share."""

import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler

from peft_vprompt.data.epoch_batches import EpochBatches
from peft_vprompt.utils.processes import Processes


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize(("rows", "batch_size"), [(23, 8), (16, 8), (7, 8), (4, 32)])
def test_batches_are_those_of_the_stock_trainer_however_many_share_them(rows, batch_size, processes):
    order = SeedableRandomSampler(range(rows), data_seed=5)
    each = [EpochBatches(rows, batch_size, 5, Processes(number, processes)) for number in range(processes)]
    for epoch in range(3):
        order.set_epoch(epoch)
        indices = list(order)
        full = max(rows // batch_size, 1)
        expected = [indices[first : first + batch_size] for first in range(0, full * batch_size, batch_size)]
        [batches.set_epoch(epoch) for batches in each]
        assert [len(batches) for batches in each] == [full] * processes
        shares = zip(*each, strict=True)
        assert [sum(parts, []) for parts in shares] == expected
    assert all(len(part) == batches.own_size for batches in each for part in batches)


def test_an_epoch_does_not_depend_on_the_global_random_numbers():
    batches = EpochBatches(9, 3, 1)
    first = list(batches)
    torch.rand(3)
    assert list(batches) == first
    batches.set_epoch(1)
    assert list(batches) != first


def test_a_process_without_a_row_is_refused():
    with pytest.raises(ValueError, match=r"each of 4 processes. Received: batches of 3. Start at most 3"):
        EpochBatches(3, 8, 1, Processes(0, 4))
