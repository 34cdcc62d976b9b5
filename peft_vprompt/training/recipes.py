"""The authors' recipes by method, and the learning rates that a `Recipe` means.

What a recipe is: see `tuners.base.recipe`. Nothing here trains: see `trainer`.
"""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..tuners.base.recipe import Averaging, Recipe


__all__ = ["DEMO_CHANGES", "RECIPES", "Averaging", "Recipe", "lr_schedule", "lr_scheduler"]


_CLIP_SOURCE = "SGD momentum 0.9 and weight decay 5e-4 inherited from Dassl; "

#: The authors' recipe of each method, by the method's name on the command line.
RECIPES: dict[str, Recipe] = {
    "coop": Recipe(
        learning_rate=0.002,
        batch_size=32,
        epochs=((1, 50), (4, 100), (16, 200)),
        source=_CLIP_SOURCE
        + "KaiyangZhou/CoOp configs/trainers/CoOp/vit_b16.yaml, vit_b16_ep100.yaml, vit_b16_ep50.yaml",
    ),
    "maple": Recipe(
        learning_rate=0.0035,
        batch_size=4,
        epochs=5,
        source=_CLIP_SOURCE
        + "muzairkhattak/multimodal-prompt-learning configs/trainers/MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml",
    ),
    "ivlp": Recipe(
        learning_rate=0.0035,
        batch_size=4,
        epochs=5,
        source=_CLIP_SOURCE
        + "muzairkhattak/multimodal-prompt-learning configs/trainers/IVLP/vit_b16_c2_ep5_batch4_2+2ctx.yaml",
    ),
    "vpt": Recipe(
        learning_rate=0.0025,
        batch_size=4,
        epochs=5,
        source=_CLIP_SOURCE
        + "muzairkhattak/multimodal-prompt-learning configs/trainers/VPT/vit_b16_c2_ep5_batch4_4.yaml",
    ),
    "cocoop": Recipe(
        learning_rate=0.002,
        batch_size=1,
        epochs=10,
        source=_CLIP_SOURCE + "KaiyangZhou/CoOp configs/trainers/CoCoOp/vit_b16_c4_ep10_batch1_ctxv1.yaml",
    ),
    "rpo": Recipe(
        learning_rate=0.01,
        batch_size=4,
        epochs=15,
        source=_CLIP_SOURCE + "mlvlab/RPO configs/trainers/RPO/main_K24.yaml",
    ),
    # The paper states no recipe of its own.
    "mrpo": Recipe(learning_rate=0.01, batch_size=4, epochs=15, source=_CLIP_SOURCE + "RPO's, on which MRPO builds"),
    "ptnl": Recipe(
        learning_rate=0.002,
        batch_size=32,
        epochs=50,
        source=_CLIP_SOURCE
        + "Wu et al., Why Is Prompt Tuning for Vision-Language Models Robust to Noisy Labels?, 4.1",
    ),
    # On a classifier the authors search the base rate in {50 ... 0.05} and the weight decay in {.01 ... 0} for every
    # data set and set lr = base rate * batch / 256; this is the middle of that range and the batch of their config.
    "vpt-classifier": Recipe(
        learning_rate=0.5,
        batch_size=128,
        epochs=100,
        warmup="linear",
        warmup_epochs=10,
        weight_decay=1e-4,
        crop="random_crop",
        source="KMnP/vpt configs/base-prompt.yaml and src/solver/lr_scheduler.py; base rate 1.0 of their search range",
    ),
}


#: What `vprompt demo` changes, so that the tiny embedded model learns in a few minutes: fields of `Settings`.
DEMO_CHANGES: dict[str, dict] = {
    "zero-shot": {},
    "vpt": {"learning_rate": 0.02, "batch_size": 32, "epochs": 15},
    "coop": {"learning_rate": 0.02, "batch_size": 32, "epochs": 15},
    "maple": {"learning_rate": 0.02, "batch_size": 32, "epochs": 15},
    "ivlp": {"learning_rate": 0.02, "batch_size": 32, "epochs": 15},
    "cocoop": {"learning_rate": 0.02, "batch_size": 32, "epochs": 15},
    "rpo": {"learning_rate": 0.02, "batch_size": 32, "epochs": 15},
    # As published only the prompts of the last prompted layer learn, which leaves them two layers or fewer to read on
    # this model; so each layer's are added up, and every depth learns.
    "mrpo": {
        "learning_rate": 0.1,
        "batch_size": 32,
        "epochs": 15,
        "config": {"prompt_depth": 2, "prompt_update": "accumulate"},
    },
}


def lr_schedule(recipe: Recipe, epochs: int, steps_per_epoch: int = 1, steps: int | None = None) -> list[float]:
    """Return the learning rate of every epoch, or of every step where the recipe's schedule goes by steps.

    Let t count the epochs (or the steps) from 0, T their number and w the warm-up in the same unit. The cosine from
    t = 0 is c(t, T) = min_lr + (lr - min_lr)/2 (1 + cos(pi t / T)). With a constant warm-up: `warmup_learning_rate`,
    then c(t - w, T). The authors' period is the whole number of epochs although the cosine starts late, so the last
    epoch does not reach the minimum (Dassl `optim/lr_scheduler.py`). With a linear warm-up: lr t/w, then
    c(t - w, T - w); epoch 0 trains at zero, as in KMnP/vpt `src/solver/lr_scheduler.py`.

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
    linear = recipe.warmup == "linear"
    period = max(total - warmup, 1) if linear else total

    def rate(time: int) -> float:
        if time < warmup:
            return recipe.learning_rate * time / warmup if linear else recipe.warmup_learning_rate
        height = recipe.learning_rate - recipe.min_learning_rate
        return recipe.min_learning_rate + 0.5 * height * (1 + math.cos(math.pi * (time - warmup) / period))

    return [rate(time) for time in range(total)]


def lr_scheduler(
    optimizer: Optimizer, recipe: Recipe, epochs: int, steps_per_epoch: int, steps: int | None = None
) -> LambdaLR:
    """Return `lr_schedule` for a trainer that steps its scheduler after every batch."""
    rates = lr_schedule(recipe, epochs, steps_per_epoch, steps)
    unit = 1 if recipe.schedule == "cosine_per_step" else steps_per_epoch
    # One step past the last is asked for after the last batch, when the rate does not matter any more.
    return LambdaLR(optimizer, lambda step: rates[min(step // unit, len(rates) - 1)] / recipe.learning_rate)
