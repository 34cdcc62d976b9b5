"""Options of commands that train on noisy labels, or on none: the loss, and whose labels."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from .choices import LOSSES, NOISE_KINDS, SELECTORS
from .options import bundle, option


if TYPE_CHECKING:
    from peft_vprompt.experiments.supervision import Supervision


NOISY, UNLABELLED = "Noisy labels", "No labels"
Loss = Annotated[
    str | None, option(f"One of: {', '.join(LOSSES)}. Default: the model's own cross-entropy.", panel=NOISY)
]
Q = Annotated[float | None, option("q of the loss gce or phuber-gce.", "--q", panel=NOISY)]
LossOptions = Annotated[
    list[str] | None,
    option("Parameter of the loss, as NAME=VALUE. May be repeated.", "--loss-set", panel=NOISY),
]
SELECTOR_HELP = (
    f"Which images that zero-shot labelled to take: {', '.join(SELECTORS)}. quota gives every class as many, those that it "
    "hardly ever predicts included."
)
#: Whose labels to train on: type and default of each option.
SUPERVISION_OPTIONS = {
    "noise": (
        Annotated[
            str | None, option(f"Put label noise in: {', '.join(NOISE_KINDS[:-1])} or {NOISE_KINDS[-1]}.", panel=NOISY)
        ],
        None,
    ),
    "noise_rate": (Annotated[float, option("Share of wrong labels in every class.", panel=NOISY)], 0.0),
    "unlabelled": (
        Annotated[
            bool,
            option("Do not read labels: train on those that zero-shot gives (UPL).", "--unlabelled", panel=UNLABELLED),
        ],
        False,
    ),
    "selector": (Annotated[str | None, option(f"{SELECTOR_HELP} Default: top-k.", panel=UNLABELLED)], None),
    "pseudo_labels": (
        Annotated[Path | None, option("Labels that `vprompt pseudo-label` made for these images.", panel=UNLABELLED)],
        None,
    ),
}


def takes_loss(command: Callable) -> Callable:
    """Give a command the options of a loss, as `loss`: fields of `Settings`."""
    return bundle("loss", {"loss": (Loss, None), "q": (Q, None), "loss_set": (LossOptions, None)}, _read_loss)(command)


def _read_loss(loss: str | None, q: float | None, loss_set: list[str] | None) -> dict:
    from peft_vprompt.utils.validation import parse_fields

    return {"loss": loss, "loss_options": ({} if q is None else {"q": q}) | parse_fields(loss_set, "--loss-set")}


def takes_supervision(command: Callable) -> Callable:
    """Give a command the options that say whose labels to train on, as `supervision`."""
    return bundle("supervision", SUPERVISION_OPTIONS, _read_supervision)(command)


def _read_supervision(unlabelled: bool, selector: str | None, pseudo_labels: Path | None, **noise) -> "Supervision":
    from peft_vprompt.experiments.supervision import Supervision

    if selector is not None and not unlabelled:
        raise ValueError(f"A selector needs --unlabelled. Received: --selector {selector} without it.")
    path = None if pseudo_labels is None else str(pseudo_labels)
    return Supervision(**noise, unlabelled=(selector or "top-k") if unlabelled else None, pseudo_labels=path)
