"""How a method is trained, as plain data with its source: `Recipe`, and `Averaging` of the trained weights.

A recipe stands with its method, whatever the data; `training` executes it. Nothing here imports torch.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import Literal

from ...utils.fields import check_fields, shown
from ...utils.validation import require_choice, require_int


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
    std: float | None = None
    decay: float | None = None
    from_epoch: int | None = None

    def __post_init__(self):
        check_fields(self)
        require_choice("kind", self.kind, list(_AVERAGING_FIELDS))
        given = tuple(
            name for fields in _AVERAGING_FIELDS.values() for name in fields if getattr(self, name) is not None
        )
        if given != _AVERAGING_FIELDS[self.kind]:
            raise ValueError(
                f"Expected {' and '.join(_AVERAGING_FIELDS[self.kind])} for kind={self.kind!r}, and no other field. "
                f"Received: {', '.join(f'{name}={getattr(self, name)!r}' for name in given) or 'none'}."
            )
        if self.kind == "gaussian":
            _require_number("mean", self.mean)
            _require_number("std", self.std, above=0)
        elif self.kind == "ema":
            _require_number("decay", self.decay, least=0, below=1)
        else:
            require_int("from_epoch", self.from_epoch, 1)


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

    learning_rate: float
    batch_size: int
    epochs: int | tuple[tuple[int, int], ...] | None
    source: str
    warmup: Literal["constant", "linear", "linear_dassl"] = "constant"
    warmup_epochs: int = 1
    warmup_learning_rate: float = 1e-5
    momentum: float = 0.9
    weight_decay: float = 5e-4
    crop: Literal["random_resized_crop", "random_crop", "none"] = "random_resized_crop"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    schedule: Literal["cosine_per_epoch", "cosine_per_step"] = "cosine_per_epoch"
    min_learning_rate: float = 0.0
    steps: int | None = None
    steps_per_shot: int | None = None
    averaging: Averaging | None = None
    first_stage: float | None = None

    def __post_init__(self):
        self._check_length()
        require_int("batch_size", self.batch_size, 1)
        require_int("warmup_epochs", self.warmup_epochs, 0)
        require_choice("warmup", self.warmup, ["constant", "linear", "linear_dassl"])
        require_choice("optimizer", self.optimizer, ["sgd", "adam", "adamw"])
        require_choice("schedule", self.schedule, ["cosine_per_epoch", "cosine_per_step"])
        require_choice("crop", self.crop, ["random_resized_crop", "random_crop", "none"])
        _require_number("learning_rate", self.learning_rate, above=0)
        _require_number("min_learning_rate", self.min_learning_rate, least=0, below=self.learning_rate)
        _require_number("warmup_learning_rate", self.warmup_learning_rate, least=0)
        _require_number("momentum", self.momentum, least=0, below=1)
        _require_number("weight_decay", self.weight_decay, least=0)
        _require_number("eps", self.eps, least=0)
        _require_pair("betas", self.betas)
        for beta in self.betas:
            _require_number("each of betas", beta, least=0, below=1)
        _require_pair("crop_scale", self.crop_scale)
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"Expected crop_scale to ascend in (0, 1]. Received: crop_scale={self.crop_scale!r}.")
        if self.first_stage is not None:
            _require_number("first_stage", self.first_stage, above=0, below=1)
        if not isinstance(self.averaging, Averaging | None):
            raise ValueError(f"Expected averaging to be an Averaging or None. Received: averaging={self.averaging!r}.")
        check_fields(self)  # last: what is said above says more

    def _check_length(self) -> None:
        given = [name for name in _LENGTHS if getattr(self, name) is not None]
        if len(given) != 1:
            received = ", ".join(f"{name}={getattr(self, name)!r}" for name in _LENGTHS)
            raise ValueError(f"Expected exactly one of {', '.join(_LENGTHS)}. Received: {received}.")
        length = getattr(self, given[0])
        if given != ["epochs"] or not isinstance(length, (tuple, list)):
            require_int(given[0], length, 1)
            return
        for pair in length:
            _require_pair("each of epochs", pair)
        shots = [most for most, _ in length]
        if not length or shots != sorted(set(shots)):
            raise ValueError(f"Expected epochs by ascending shots. Received: epochs={length!r}.")
        for most, epochs in length:
            require_int("the shots in epochs", most, 1)
            require_int("epochs", epochs, 1)

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


def _require_number(
    name: str, value, *, least: float = -math.inf, above: float = -math.inf, below: float = math.inf
) -> None:
    """Raise a ValueError unless `value` is a finite number in the range."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if number and value >= least and above < value < below:
        return
    bounds = [(">=", least), (">", above), ("<", below)]
    wanted = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if math.isfinite(bound))
    raise ValueError(
        f"Expected {name} to be a finite number {wanted}".rstrip() + f". Received: {name}={shown(value)}."
    )


def _require_pair(name: str, value) -> None:
    """Raise a ValueError unless `value` is a pair of numbers."""
    numbers = isinstance(value, (tuple, list)) and all(isinstance(item, (int, float)) for item in value)
    if not numbers or len(value) != 2:
        raise ValueError(f"Expected {name} to be a pair of numbers. Received: {name}={value!r}.")
