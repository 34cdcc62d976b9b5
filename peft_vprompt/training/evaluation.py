"""Accuracy of a prompted model on base classes, novel classes and their harmonic mean. All in percent.

Where images have several labels (`labels` [classes] of 1 and 0), the mean average precision stands for the accuracy.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from peft import PeftConfig, PeftModel
from torch.utils.data import DataLoader
from transformers import default_data_collator

from ..errors import OutputNotFiniteError
from ..metrics import expected_calibration_error, harmonic_mean, scores
from ..utils.arguments import typed
from ..utils.devices import device_of
from ..utils.eval_mode import eval_mode
from ..utils.processes import ALONE, Processes
from ..utils.progress import with_progress
from .cached_features import FEATURES, encode_frozen
from .eval_classes import EvalSet, among_own_classes, compares_with_text, set_class_names
from .loading import Workers, find_workers


def chance(class_names: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return the accuracies of guessing, in percent, by the name of the test set and as `hm` of base and novel."""
    return with_harmonic_mean({name: 100 / len(names) for name, names in class_names.items()})


def with_harmonic_mean(accuracies: dict[str, float]) -> dict[str, float]:
    """Return accuracies with `hm`, the harmonic mean of base and novel, where there are both."""
    if not {"base", "novel"} <= accuracies.keys():
        return accuracies
    return accuracies | {"hm": harmonic_mean(accuracies["base"], accuracies["novel"])}


#: What `make_compute_metrics` computes of logits [n, c] and labels [n], by name.
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda logits, labels: scores.accuracy(logits.argmax(-1), labels),
    "per_class": lambda logits, labels: scores.mean_per_class_accuracy(logits.argmax(-1), labels),
    "ece": lambda logits, labels: expected_calibration_error(
        torch.from_numpy(logits).double().softmax(-1).numpy(), labels
    ),
}

#: What is measured unless something else is asked for.
MEASURED = ("accuracy", "per_class")


@typed
def compute_metrics(prediction: Any) -> dict[str, float]:
    """Return the accuracy in percent, for `transformers.Trainer(compute_metrics=...)`; of multi-hot labels `map`."""
    return metrics_of(prediction.predictions, prediction.label_ids)


@typed
def make_compute_metrics(*names: str) -> Callable[[Any], dict[str, float]]:
    """Return a function for `transformers.Trainer(compute_metrics=...)` that computes several metrics in percent.

    Args:
        *names: of `accuracy` (micro), `per_class` (mean per-class accuracy) and `ece` (expected calibration error); default:
            all of them. Of multi-hot labels `map` alone, the mean average precision, is computed.

    Raises:
        ValueError: there is no such metric.

    Example:

    ```python
    trainer = Trainer(model, args, eval_dataset=rows, compute_metrics=make_compute_metrics())
    trainer.evaluate()  # {"eval_accuracy": 71.4, "eval_per_class": 69.8, "eval_ece": 3.1, ...}
    ```
    """
    if unknown := [name for name in names if name not in METRICS]:
        raise ValueError(f"Expected metrics among {', '.join(METRICS)}. Received: {', '.join(map(repr, unknown))}.")

    def compute(prediction: Any) -> dict[str, float]:
        return metrics_of(prediction.predictions, prediction.label_ids, names or tuple(METRICS))

    return compute


def metrics_of(logits: Any, labels: Any, names: Sequence[str] = ("accuracy",)) -> dict[str, float]:
    """Return metrics of logits [n, c] in percent by name: those of `METRICS`, or `map` of multi-hot labels [n, c].

    Lists have an array for each batch, as the Trainer gives them with `eval_do_concat_batches=False`.

    Raises:
        ValueError: no image, or none is of any class.
    """
    if isinstance(logits, list) and logits and np.ndim(logits[0]) == 2:  # batches one by one
        logits = np.concatenate(logits)
        labels = np.concatenate(labels)
    logits = np.asarray(logits)
    labels = np.asarray(labels)
    if labels.ndim == 2:
        return {"map": 100 * scores.mean_average_precision(logits, labels)}
    return {name: 100 * METRICS[name](logits, labels) for name in names}


@typed
def predict_logits(
    model: torch.nn.Module,
    rows: Sequence[dict],
    batch_size: int = 100,
    *,
    progress: str | None = None,
    workers: Workers = 0,
    processes: Processes = ALONE,
) -> tuple[np.ndarray, np.ndarray]:
    """Classify images with a model whose call takes what the rows hold beside `labels` and returns `logits`.

    Args:
        model: the model, on the device to compute on.
        rows: labelled rows.
        batch_size: images per batch.
        progress: label of a progress bar; None for no bar.
        workers: processes that load images, or "auto", see `loading.find_workers`.
        processes: share the batches with these, which all make the same call and all get the whole result.

    Returns:
        Logits, float32 [images, classes], and true labels, int [images], or multi-hot [images, classes].
    """
    labels: list[torch.Tensor] = []
    loaders = find_workers(workers, model, rows)

    def unlabelled() -> Iterator[dict[str, torch.Tensor]]:
        for batch in with_progress(batches(rows, batch_size, processes, loaders), progress):
            labels.append(batch.pop("labels"))
            yield batch

    logits = processes.gather(_logits_by_batch(model, unlabelled()))
    return require_finite(torch.cat(logits)).numpy(), torch.cat(processes.gather(labels)).numpy()


def logits_of(model: torch.nn.Module, inputs: Iterable[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Return logits, float32 [images, classes] on the CPU, of batches of what a model's call takes; model as above.

    Raises:
        OutputNotFiniteError: some are NaN or infinite, of which no class is the largest.
    """
    return require_finite(torch.cat(_logits_by_batch(model, inputs)))


@torch.no_grad()
def _logits_by_batch(model: torch.nn.Module, inputs: Iterable[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
    device = device_of(model)
    logits = []
    with eval_mode(model):
        for batch in inputs:
            output = model(**{name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()})
            logits.append(output.logits.float().cpu())
    return logits


def require_finite(table: torch.Tensor) -> torch.Tensor:
    """Return logits [images, classes] as they are.

    Raises:
        OutputNotFiniteError: some are NaN or infinite, of which no class is the largest.
    """
    if bad := int((~table.isfinite()).any(-1).sum()):
        raise OutputNotFiniteError(
            f"Expected finite logits. Received NaN or infinity for {bad} of {len(table)} images: the training of the adapter "
            "diverged, or values are too large for the precision. Train with a lower learning rate, or in float32 (--precision "
            "float32)."
        )
    return table


def batches(rows: Sequence[dict], batch_size: int, processes: Processes = ALONE, workers: int = 0) -> DataLoader:
    """Return batches of all rows; going through them draws from no random numbers but their own.

    Of several processes each has its share of the batches.
    """
    return DataLoader(
        rows,  # pyrefly: ignore[bad-argument-type]  # torch takes whatever has __len__ and __getitem__
        batch_sampler=processes.share(batches_of(len(rows), batch_size)),
        collate_fn=default_data_collator,
        generator=torch.Generator(),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )


def batches_of(rows: int, batch_size: int) -> list[list[int]]:
    """Return the places of the rows of each batch, in their order; the last batch may be short."""
    return [list(range(first, min(first + batch_size, rows))) for first in range(0, rows, batch_size)]


@typed
def accuracy(model: torch.nn.Module, rows: Sequence[dict], batch_size: int = 100, **options) -> float:
    """Return the share of images classified correctly, in percent, over all images alike (micro average).

    `options` are those of `predict_logits`.

    Raises:
        ValueError: if there is no image.
    """
    if not len(rows):
        raise ValueError("No image to evaluate on.")
    logits, labels = predict_logits(model, rows, batch_size, **options)
    if labels.ndim == 2:
        raise ValueError("Expected one class for each image. Received multi-hot labels: call evaluate.")
    return 100 * scores.accuracy(logits.argmax(-1), labels)


def _measure(model: torch.nn.Module, rows: Sequence[dict], metrics: Sequence[str], batch_size: int, **options) -> dict:
    """Return metrics on images by name, see `metrics_of`.

    Raises:
        ValueError: if there is no image, or none is of any class.
    """
    if not len(rows):
        raise ValueError("No image to evaluate on.")
    return metrics_of(*predict_logits(model, rows, batch_size, **options), metrics)


@typed
def evaluate(
    model: PeftModel, test_sets: dict[str, EvalSet], batch_size: int = 100, zero_shot: bool = False, **options
) -> dict[str, float]:
    """Measure the accuracy, or the mean average precision, on every test set among that set's own class names.

    Args, raises: as `measure`.

    Returns:
        Accuracies in percent by test-set name, and `hm`, the harmonic mean of base and novel.
    """
    return main_metric(measure(model, test_sets, batch_size, zero_shot, ("accuracy",), **options))


@typed
def measure(
    model: PeftModel,
    test_sets: dict[str, EvalSet],
    batch_size: int = 100,
    zero_shot: bool = False,
    metrics: Sequence[str] = MEASURED,
    **options,
) -> dict[str, dict[str, float]]:
    """Measure several metrics on every test set among that set's own class names.

    A model with a classification head tells apart all classes of the head, of which the set may have some, in any order.

    Args:
        model: a PEFT model of this package. Its class names are those of the last test set afterwards.
        test_sets: by name; `base` and `novel` together also give `hm`.
        batch_size: images per batch; the result does not depend on it.
        zero_shot: switch the adapter off, which leaves the plain model with the config's template.
        metrics: names in `METRICS`. Where images have several labels, `map` is measured in their place.
        **options: `progress`, `workers` and `processes` of `predict_logits`.

    Returns:
        By metric, what it is in percent by test-set name; and `hm`, the harmonic mean of base and novel, of accuracies.

    Raises:
        ValueError: `zero_shot` of a model with a classification head, or no image.
    """
    if zero_shot and not compares_with_text(model):
        raise ValueError("Zero-shot takes a model with a text tower. Received: a model with a classification head.")
    found: dict[str, dict[str, float]] = {}
    with model.disable_adapter() if zero_shot else nullcontext():
        for name, test_set in test_sets.items():
            rows, class_names = among_own_classes(model, test_set)
            set_class_names(model, class_names)
            for metric, value in _measure(model, rows, metrics, batch_size, **options).items():
                found.setdefault(metric, {})[name] = value
    return {metric: values if metric == "ece" else with_harmonic_mean(values) for metric, values in found.items()}


def main_metric(found: Mapping[str, dict[str, float]]) -> dict[str, float]:
    """Return the first metric of what `measure` gives: the accuracy, or the mean average precision."""
    return next(iter(found.values()), {})


def measure_beside_zero_shot(
    model,
    test_sets: dict[str, EvalSet],
    batch_size: int = 100,
    *,
    metrics: Sequence[str] = MEASURED,
    template: str | None = None,
    **options,
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]] | None]:
    """Measure with the adapter and without it, as `measure` does.

    Where the adapter leaves the image features alone, images are encoded once for both. `template` is the text around class
    names without the adapter; None for that of the config.

    Returns:
        Metrics with the adapter, and those without; None for these where the model has no text tower.

    Raises:
        ValueError: as `measure`.
    """
    if not compares_with_text(model):
        return measure(model, test_sets, batch_size, metrics=metrics, **options), None
    if leaves_images(model):
        test_sets = {
            name: EvalSet(_encoded(model, rows, batch_size, **options), names)
            for name, (rows, names) in test_sets.items()
        }
    found = measure(model, test_sets, batch_size, metrics=metrics, **options)
    with fields_replaced(model.active_peft_config, {} if template is None else {"template": template}):
        return found, measure(model, test_sets, batch_size, zero_shot=True, metrics=metrics, **options)


@contextmanager
def fields_replaced(config: PeftConfig, values: Mapping[str, Any]) -> Iterator[None]:
    """Give those fields of a config that it has other values until the block ends."""
    before = {name: getattr(config, name) for name in values if hasattr(config, name)}
    try:
        for name in before:
            setattr(config, name, values[name])
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


def leaves_images(model) -> bool:
    """Return whether image features stand for images, with the adapter as without it."""
    classifier = model.class_name_classifier
    return classifier.images.is_fixed and not classifier.adapted.changes_images


def _encoded(
    model,
    rows: Sequence[dict],
    batch_size: int,
    progress: str | None = None,
    workers: Workers = 0,
    processes: Processes = ALONE,
) -> Sequence[dict]:
    """Return the rows with features in the place of images."""
    if FEATURES in getattr(rows, "column_names", ()):
        return rows
    encoded = []
    loaders = find_workers(workers, model, rows)
    for batch in with_progress(batches(rows, batch_size, processes, loaders), progress):
        labels = batch.pop("labels")
        encoded.append((encode_frozen(model, batch), labels))
    pairs = [pair for features, labels in processes.gather(encoded) for pair in zip(features, labels, strict=True)]
    return [{FEATURES: features, "labels": label} for features, label in pairs]
