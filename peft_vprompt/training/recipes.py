"""The optimizer and the learning rates that a `Recipe` means. What a recipe is: see `tuners.base.recipe`; who trains: see `trainer`."""

import math

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..tuners.base.recipe import Recipe
from ..utils.arguments import typed


@typed
def make_optimizer(model: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer of the parameters of `model` that require gradients.

    Raises:
        ValueError: there are none.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError(
            f"Expected a model of which something is trained. Received: a {type(model).__name__} without a parameter that "
            "requires gradients. Load its adapter with is_trainable=True, or call model.set_adapter(name); and train it outside "
            "of disable_adapter()."
        )
    shared = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=recipe.momentum, **shared)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, betas=tuple(recipe.betas), eps=recipe.eps, **shared)


@typed
def lr_schedule(recipe: Recipe, epochs: int, steps_per_epoch: int = 1, steps: int | None = None) -> list[float]:
    """Return the learning rate of every epoch, or of every step where the recipe's schedule goes by steps.

    Let t count the epochs (or the steps) from 0, T their number and w the warm-up in the same unit. The cosine from
    t = 0 is c(t, T) = min_lr + (lr - min_lr)/2 (1 + cos(pi t / T)). With a constant warm-up: `warmup_learning_rate`,
    then c(t - w, T). The authors' period is the whole number of epochs although the cosine starts late, so the last
    epoch does not reach the minimum (Dassl `optim/lr_scheduler.py`). Dassl's linear warm-up: `warmup_learning_rate` at t = 0,
    lr t/w from there on, then c(t - w, T). With a linear warm-up: lr t/w, then c(t - w, T - w); epoch 0 trains at zero, as in
    KMnP/vpt `src/solver/lr_scheduler.py`.

    Args:
        recipe: the rates, the warm-up and the unit of the schedule.
        epochs: passes over the training images.
        steps_per_epoch: optimiser steps in each; only a schedule by steps needs it.
        steps: optimiser steps in all, where the last epoch is not a whole one; None for whole epochs.

    Returns:
        One learning rate per epoch, or per step.

    Raises:
        ValueError: if `epochs` is below 1.
    """
    if epochs < 1:
        raise ValueError(f"`epochs` must be at least 1. Received: epochs={epochs}.")
    by_step = recipe.schedule == "cosine_per_step"
    total = (steps or epochs * steps_per_epoch) if by_step else epochs
    warmup = recipe.warmup_epochs * (steps_per_epoch if by_step else 1)
    period = max(total - warmup, 1) if recipe.warmup == "linear" else total

    def rate(time: int) -> float:
        if time < warmup:
            starts_low = recipe.warmup == "constant" or (recipe.warmup == "linear_dassl" and time == 0)
            return recipe.warmup_learning_rate if starts_low else recipe.learning_rate * time / warmup
        height = recipe.learning_rate - recipe.min_learning_rate
        return recipe.min_learning_rate + 0.5 * height * (1 + math.cos(math.pi * (time - warmup) / period))

    return [rate(time) for time in range(total)]


@typed
def lr_scheduler(
    optimizer: Optimizer, recipe: Recipe, epochs: int, steps_per_epoch: int, steps: int | None = None
) -> LambdaLR:
    """Return `lr_schedule` for a trainer that steps its scheduler after every batch."""
    rates = lr_schedule(recipe, epochs, steps_per_epoch, steps)
    unit = 1 if recipe.schedule == "cosine_per_step" else steps_per_epoch
    # One step past the last is asked for after the last batch, when the rate does not matter any more.
    return LambdaLR(optimizer, lambda step: rates[min(step // unit, len(rates) - 1)] / recipe.learning_rate)
