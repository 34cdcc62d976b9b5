"""How the authors train each method: learning rate, batch, epochs, schedule, augmentation, as data with its source.

A `Recipe` says how to train, whatever the data; `epochs_for` turns its table of shots into a number of epochs and
`lr_schedule` its warm-up into one learning rate per epoch. Nothing here trains: see `training`.
"""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..tuners.base.recipe import Recipe


def lr_schedule(recipe: Recipe, epochs: int) -> list[float]:
    """The learning rate of every epoch.

    With a constant warm-up of w epochs: `warmup_learning_rate`, then lr/2 (1 + cos(pi (e - w) / epochs)). The authors'
    period is the whole number of epochs although the cosine starts late, so the last epoch does not reach zero.
    With a linear warm-up: lr e/w, then lr/2 (1 + cos(pi (e - w) / (epochs - w))); epoch 0 trains at zero, as theirs.

    Returns:
        `epochs` learning rates.

    Raises:
        ValueError: if `epochs` is below 1.
    """
    if epochs < 1:
        raise ValueError(f"`epochs` must be at least 1. Received: epochs={epochs}.")
    warmup = recipe.warmup_epochs

    def rate(epoch: int) -> float:
        if epoch < warmup:
            linear = recipe.learning_rate * epoch / warmup
            return linear if recipe.warmup == "linear" else recipe.warmup_learning_rate
        period = max(epochs - warmup, 1) if recipe.warmup == "linear" else epochs
        return 0.5 * recipe.learning_rate * (1 + math.cos(math.pi * (epoch - warmup) / period))

    return [rate(epoch) for epoch in range(epochs)]


def lr_scheduler(optimizer: Optimizer, recipe: Recipe, epochs: int, steps_per_epoch: int) -> LambdaLR:
    """`lr_schedule` for a trainer that steps its scheduler after every batch: the rate changes between epochs only."""
    rates = lr_schedule(recipe, epochs)
    # One step past the last epoch is asked for after the last batch, when the rate does not matter any more.
    return LambdaLR(optimizer, lambda step: rates[min(step // steps_per_epoch, epochs - 1)] / recipe.learning_rate)
