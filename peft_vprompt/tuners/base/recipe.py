"""`Recipe`: how the authors train a method, as plain data; `training` executes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


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

    def override(self, **values) -> Recipe:
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
