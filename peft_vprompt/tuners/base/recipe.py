"""How a method is trained, as plain data with its source: `Recipe`, and `Averaging` of the trained weights.

A recipe stands with its method, whatever the data; `training` executes it. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from ...utils.fields import check_fields


#: What each kind of averaging is told.
_AVERAGING_FIELDS = {"gaussian": ("mean", "std"), "ema": ("decay",), "uniform": ("from_epoch",)}

#: Fields that say how long to train: a recipe has one of them.
_LENGTHS = ("epochs", "steps", "steps_per_shot")

#: Numbers that may be 0 where a recipe is overridden.
_MAY_BE_ZERO = ("weight_decay", "momentum", "warmup_epochs", "min_learning_rate")


@dataclass(frozen=True)
class Averaging:
    """Which average of the trained weights a run ends with; `training.AverageWeights` computes it.

    Attributes:
        kind: `"gaussian"`: the weights after epoch e = 1..E count as exp(-(e - mean)^2 / (2 std^2)), divided by the sum
            over all epochs (PromptSRC, muzairkhattak/PromptSRC `trainers/promptsrc.py`); `"ema"`: after every step,
            decay * average + (1 - decay) * weights, from the weights before the first step (Polyak and Juditsky 1992);
            `"uniform"`: the mean over the ends of the epochs `from_epoch`..E (SWA, Izmailov et al. 2018).
        mean: the epoch, counted from 1, that counts most. PromptSRC: 15 of 20.
        std: width in epochs. PromptSRC: 1.
        decay: share of the average that a step keeps, at least 0 and below 1.
        from_epoch: the first epoch, counted from 1, that is averaged.

    Raises:
        ValueError: an unknown kind, a field of another kind or none of its own, or a value out of range.
    """

    kind: Literal["gaussian", "ema", "uniform"]
    mean: float | None = None
    std: float | None = field(default=None, metadata={"above": 0})
    decay: float | None = field(default=None, metadata={"min": 0, "below": 1})
    from_epoch: int | None = field(default=None, metadata={"min": 1})

    def __post_init__(self):
        check_fields(self)
        given = tuple(
            name for fields in _AVERAGING_FIELDS.values() for name in fields if getattr(self, name) is not None
        )
        if given != _AVERAGING_FIELDS[self.kind]:
            raise ValueError(
                f"Expected {' and '.join(_AVERAGING_FIELDS[self.kind])} for kind={self.kind!r}, and no other field. "
                f"Received: {', '.join(f'{name}={getattr(self, name)!r}' for name in given) or 'none'}."
            )


@dataclass(frozen=True)
class SupportViews:
    """How the training images of a method on features are encoded, once, before anything is trained.

    Attributes:
        views: augmented passes over the images.
        source: where the authors state these values.
        crop_scale: range of the random resized crop's share of the image area.
        trained_on: whether the features of all views are what is trained on (CLAP); else their mean is each image's
            (Tip-Adapter).
    """

    views: int
    source: str
    crop_scale: tuple[float, float] = (0.08, 1.0)
    trained_on: bool = False


@dataclass(frozen=True)
class Recipe:
    """Everything about the training of a method that is not the method.

    Exactly one of `epochs`, `steps` and `steps_per_shot` says how long to train.

    Attributes:
        learning_rate: the highest learning rate.
        batch_size: images per step.
        epochs: passes over the few shots, or pairs (most shots, epochs) in ascending order, the last for any number.
        source: where the authors state these values.
        warmup: `"constant"`: `warmup_epochs` at `warmup_learning_rate`; `"linear"`: from zero up to the learning rate (VPT);
            `"linear_dassl"`: from `warmup_learning_rate` up to the learning rate, before a cosine over all epochs.
        warmup_epochs: length of the warm-up in epochs.
        warmup_learning_rate: learning rate of a constant warm-up, and the first one of Dassl's linear warm-up.
        momentum: momentum of SGD.
        weight_decay: of all trained parameters: added to the gradient by `"sgd"` and `"adam"`, decoupled by `"adamw"`.
        crop: augmentation, see `data.TrainTransform`.
        crop_scale: range of a random resized crop's share of the image area, see `data.TrainTransform`.
        optimizer: `"sgd"`, `"adam"` or `"adamw"`, as in `torch.optim`.
        betas: decay rates of the moments of Adam and AdamW.
        eps: what Adam and AdamW add to the denominator.
        schedule: whether the cosine takes a step at the end of every epoch (Dassl; CoOp and its descendants) or after
            every step (torch's CosineAnnealingLR over all steps; CLIP-LoRA, 2SFS, Tip-Adapter-F).
        min_learning_rate: where the cosine would end. CLIP-LoRA and 2SFS: 1e-6.
        steps: optimiser steps in all, however many epochs they are.
        steps_per_shot: optimiser steps per training image of a class. CLIP-LoRA: 500; 2SFS: 300.
        averaging: average of the weights that the run ends with; None for the weights of the last step.
        first_stage: share of the length, rounded down, after which the class head is started and trained alone by a new
            optimizer with a schedule of its own; None for one stage. 2SFS: 0.6.

    Raises:
        ValueError: a value out of range, or not exactly one length.
    """

    learning_rate: float = field(metadata={"above": 0})
    batch_size: int = field(metadata={"min": 1})
    epochs: int | tuple[tuple[int, int], ...] | None = field(metadata={"min": 1})
    source: str
    warmup: Literal["constant", "linear", "linear_dassl"] = "constant"
    warmup_epochs: int = field(default=1, metadata={"min": 0})
    warmup_learning_rate: float = field(default=1e-5, metadata={"min": 0})
    momentum: float = field(default=0.9, metadata={"min": 0, "below": 1})
    weight_decay: float = field(default=5e-4, metadata={"min": 0})
    crop: Literal["random_resized_crop", "random_crop", "none"] = "random_resized_crop"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    betas: tuple[float, float] = field(default=(0.9, 0.999), metadata={"min": 0, "below": 1})
    eps: float = field(default=1e-8, metadata={"min": 0})
    schedule: Literal["cosine_per_epoch", "cosine_per_step"] = "cosine_per_epoch"
    min_learning_rate: float = field(default=0.0, metadata={"min": 0})
    steps: int | None = field(default=None, metadata={"min": 1})
    steps_per_shot: int | None = field(default=None, metadata={"min": 1})
    averaging: Averaging | None = None
    first_stage: float | None = field(default=None, metadata={"above": 0, "below": 1})

    def __post_init__(self):
        check_fields(self)
        if sum(getattr(self, name) is not None for name in _LENGTHS) != 1:
            received = ", ".join(f"{name}={getattr(self, name)!r}" for name in _LENGTHS)
            raise ValueError(f"Expected exactly one of {', '.join(_LENGTHS)}. Received: {received}.")
        if isinstance(self.epochs, (tuple, list)):
            shots = [most for most, _ in self.epochs]
            if not shots or shots != sorted(set(shots)):
                raise ValueError(f"Expected epochs by ascending shots. Received: epochs={self.epochs!r}.")
        if self.min_learning_rate >= self.learning_rate:
            raise ValueError(
                f"Expected min_learning_rate to be less than learning_rate={self.learning_rate:g}. "
                f"Received: min_learning_rate={self.min_learning_rate:g}."
            )
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"Expected crop_scale to ascend in (0, 1]. Received: crop_scale={self.crop_scale!r}.")

    def epochs_for(self, shots: int | None) -> int | None:
        """Return the number of epochs for `shots` images per class; None stands for all images.

        A recipe that counts steps gives None: see `steps_for`.
        """
        if self.epochs is None or isinstance(self.epochs, int):
            return self.epochs
        return next((epochs for most, epochs in self.epochs if shots and shots <= most), self.epochs[-1][1])

    def steps_for(self, shots: int | None) -> int | None:
        """Return the number of optimiser steps for `shots` images per class; None for a recipe that counts epochs.

        Raises:
            ValueError: steps are counted by shots, and all images are asked for.
        """
        if self.steps_per_shot is None:
            return self.steps
        if shots is None:
            raise ValueError(
                "Expected a number of shots, by which the recipe counts its steps "
                f"(steps_per_shot={self.steps_per_shot}). Received: all images. Override its epochs or its steps."
            )
        return self.steps_per_shot * shots

    def stages(self, epochs: int | None, steps: int | None) -> list[tuple[int | None, int | None]]:
        """Return the epochs or the steps of each stage, of a length in one of these units.

        Raises:
            ValueError: the length is too short for two stages.
        """
        if self.first_stage is None:
            return [(epochs, steps)]
        whole = (epochs if steps is None else steps) or 0
        first = int(whole * self.first_stage)
        if not first:
            raise ValueError(
                f"Expected a length that two stages can share, the first of which takes {self.first_stage:g} of it. "
                f"Received: {'epochs' if steps is None else 'steps'}={whole}. Train for longer."
            )
        lengths = [first, whole - first]
        return [(length, None) if steps is None else (None, length) for length in lengths]

    def override(self, **values) -> Recipe:
        """Return the same recipe with the values that are not None replaced.

        A linear warm-up keeps its share of the epochs (10 of 100 in VPT's recipe) when their number changes, and a Gaussian
        average its place (epoch 15 of 20 in PromptSRC's) when there are more. A number of epochs or of steps replaces the
        recipe's length, in whatever unit that was.

        Raises:
            ValueError: if a number is not positive (a weight decay, say, may be 0), or is out of range.
        """
        changed = {name: value for name, value in values.items() if value is not None}
        for name, value in changed.items():
            if name in _MAY_BE_ZERO and value == 0:
                continue
            if isinstance(value, (int, float)) and not value > 0:
                raise ValueError(f"`{name}` must be greater than 0. Received: {name}={value}.")
        if self.warmup == "linear" and self.epochs and "epochs" in changed and "warmup_epochs" not in changed:
            changed["warmup_epochs"] = round(self.warmup_epochs * changed["epochs"] / self.epochs_for(None))
        average, length = self.averaging, self.epochs
        if average and average.mean and average.std and length and changed.get("epochs", 0) > length:
            longer = changed["epochs"] / length
            changed.setdefault("averaging", replace(average, mean=average.mean * longer, std=average.std * longer))
        source = f"{self.source}; changed by the user: {', '.join(sorted(changed))}" if changed else self.source
        lengths = {name: changed.get(name) for name in _LENGTHS} if changed.keys() & set(_LENGTHS) else {}
        return replace(self, source=source, **changed | lengths)
