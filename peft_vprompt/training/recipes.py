"""How the authors train each method: learning rate, batch, epochs, schedule, augmentation, as data with its source.

A `Recipe` says how to train, whatever the data; `epochs_for` turns its table of shots into a number of epochs and
`lr_schedule` its warm-up into one learning rate per epoch. Nothing here trains: see `training`.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class Recipe:
    """Everything about the training of a method that is not the method.

    Attributes:
        learning_rate: the highest learning rate of SGD.
        batch_size: images per step.
        epochs: passes over the few shots, or pairs (most shots, epochs) in ascending order, the last for any number.
        source: where the authors state these values.
        warmup: `"constant"`: `warmup_epochs` at `warmup_learning_rate`; `"linear"`: from zero up to the learning rate.
        warmup_epochs: length of the warm-up in epochs.
        warmup_learning_rate: learning rate of a constant warm-up.
        momentum: momentum of SGD.
        weight_decay: weight decay of SGD, on all trained parameters.
        crop: augmentation, see `data.TrainTransform`.
    """

    learning_rate: float
    batch_size: int
    epochs: int | tuple[tuple[int, int], ...]
    source: str
    warmup: Literal["constant", "linear"] = "constant"
    warmup_epochs: int = 1
    warmup_learning_rate: float = 1e-5
    momentum: float = 0.9
    weight_decay: float = 5e-4
    crop: str = "random_resized_crop"

    def epochs_for(self, shots: int | None) -> int:
        """Number of epochs for `shots` images per class; None stands for all images."""
        if isinstance(self.epochs, int):
            return self.epochs
        return next((epochs for most, epochs in self.epochs if shots and shots <= most), self.epochs[-1][1])

    def override(self, **values) -> "Recipe":
        """The same recipe with the values that are not None replaced.

        A linear warm-up keeps its share of the epochs (10 of 100 in VPT's recipe) when their number changes.

        Raises:
            ValueError: if a number is not positive (a weight decay may be 0).
        """
        changed = {name: value for name, value in values.items() if value is not None}
        for name, value in changed.items():
            if name == "weight_decay" and value == 0:
                continue
            if isinstance(value, (int, float)) and not value > 0:
                raise ValueError(f"`{name}` must be greater than 0. Received: {name}={value}.")
        if self.warmup == "linear" and "epochs" in changed and "warmup_epochs" not in changed:
            changed["warmup_epochs"] = round(self.warmup_epochs * changed["epochs"] / self.epochs_for(None))
        source = f"{self.source}; changed by the user: {', '.join(sorted(changed))}" if changed else self.source
        return replace(self, source=source, **changed)


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
