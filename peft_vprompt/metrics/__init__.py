"""Metrics in [0, 1], as functions and as modules that Hugging Face `evaluate` loads from a local path."""

from pathlib import Path

from .reliability import Calibration, calibration, expected_calibration_error
from .scores import (
    accuracy,
    average_precisions,
    harmonic_mean,
    mean_average_precision,
    mean_per_class_accuracy,
)


__all__ = [
    "MODULES",
    "Calibration",
    "accuracy",
    "average_precisions",
    "calibration",
    "expected_calibration_error",
    "harmonic_mean",
    "mean_average_precision",
    "mean_per_class_accuracy",
    "metric_path",
]

#: Metrics that `evaluate` loads, each from the folder of its name.
MODULES = (
    "accuracy",
    "mean_per_class_accuracy",
    "harmonic_mean",
    "expected_calibration_error",
    "mean_average_precision",
)


def metric_path(name: str) -> Path:
    """Return the folder of a metric, for `evaluate.load(str(metric_path(name)))`, which needs no network.

    Raises:
        ValueError: there is no such metric; names those there are.
    """
    if name not in MODULES:
        raise ValueError(f"Expected one of the metrics {', '.join(MODULES)}. Received: {name!r}.")
    return Path(__file__).parent / "modules" / name
