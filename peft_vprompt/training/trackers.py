"""Trackers of experiments that a training logs to, through the Trainer's `report_to`."""

from collections.abc import Sequence
from importlib.util import find_spec

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK


#: Packages of trackers that are not called as they are, any of which does: the first is what pip installs. Kubeflow needs none.
PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "azure_ml": ("azureml-sdk", "azureml"),
    "flyte": ("flytekit",),
    "kubeflow": (),
}


def check_trackers(names: Sequence[str]) -> list[str]:
    """Return the names of trackers as `TrainingArguments(report_to=...)` takes them.

    Raises:
        ValueError: a name that is none.
        ImportError: a tracker that is not installed; says how to install it.
    """
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(f"Expected trackers among {', '.join(INTEGRATION_TO_CALLBACK)}. Received: {name!r}.")
        packages = PACKAGES.get(name, (name,))
        if packages and not any(map(find_spec, packages)):
            raise ImportError(
                f"Logging to {name} needs a package of its own. Install it with `pip install {packages[0]}`."
            )
    return list(names)
