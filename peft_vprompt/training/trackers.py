"""Trackers of experiments that a training logs to, through the Trainer's `report_to`."""

from collections.abc import Sequence
from importlib.util import find_spec


#: Trackers by the Trainer's name, with the packages any of which it takes.
TRACKERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow",),
    "comet_ml": ("comet_ml",),
    "swanlab": ("swanlab",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "dvclive": ("dvclive",),
}


def check_trackers(names: Sequence[str]) -> list[str]:
    """Return the names of trackers as `TrainingArguments(report_to=...)` takes them.

    Raises:
        ValueError: a name that is none.
        ImportError: a tracker that is not installed; says how to install it.
    """
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"Expected trackers among {', '.join(TRACKERS)}. Received: {name!r}.")
        if not any(find_spec(package) for package in TRACKERS[name]):
            package = TRACKERS[name][0]
            raise ImportError(
                f"Logging to {name} needs a package of its own. Install it with `pip install {package}`."
            )
    return list(names)
