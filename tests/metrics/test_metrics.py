"""Metrics against scikit-learn's own and their definitions; as modules of `evaluate`; in the Trainer's hands."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    classification_report,
    top_k_accuracy_score,
)

from peft_vprompt import metrics
from peft_vprompt.training.evaluation import compute_metrics, make_compute_metrics, metrics_of


CLASSES = 5


@pytest.fixture
def answers():
    """Logits, their probabilities and labels of which the last class has none."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, CLASSES)).astype(np.float32)
    labels = rng.choice(CLASSES - 1, p=[0.6, 0.2, 0.15, 0.05], size=200)
    logits[np.arange(200), labels] += 1
    logits[:, 0] += 0.5  # the most frequent class is favoured
    exponentials = np.exp(logits.astype(np.float64))
    return SimpleNamespace(
        logits=logits, probabilities=exponentials / exponentials.sum(1, keepdims=True), labels=labels
    )


@pytest.fixture
def several():
    """Scores and labels of several classes for each image, of which some are not known."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(60, 4)), rng.choice([0, 1, -100], p=[0.5, 0.4, 0.1], size=(60, 4))


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_accuracies_are_those_of_scikit_learn(answers):
    predicted = answers.logits.argmax(-1)
    assert metrics.accuracy(predicted, answers.labels) == pytest.approx(
        top_k_accuracy_score(answers.labels, answers.probabilities, k=1, labels=np.arange(CLASSES))
    )
    per_class = metrics.mean_per_class_accuracy(predicted, answers.labels)
    assert per_class == pytest.approx(balanced_accuracy_score(answers.labels, predicted))
    assert per_class != pytest.approx(metrics.accuracy(predicted, answers.labels), abs=0.01)


def test_classes_without_an_image_do_not_count():
    assert metrics.mean_per_class_accuracy([0, 3, 1, 1], [0, 0, 1, 2]) == pytest.approx((1 / 2 + 1 + 0) / 3)


def test_harmonic_mean_is_that_of_precision_and_recall():
    report = classification_report([0, 0, 0, 1, 1], [0, 1, 0, 0, 0], output_dict=True, zero_division=0)["0"]
    assert metrics.harmonic_mean(report["precision"], report["recall"]) == pytest.approx(report["f1-score"])
    assert metrics.harmonic_mean(0.0, 0.7) == 0
    with pytest.raises(ValueError, match="must not be negative"):
        metrics.harmonic_mean(-0.1, 0.7)


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_calibration_is_that_of_scikit_learn_and_of_the_definition(bins, answers):
    top = answers.probabilities.max(1)
    right = answers.logits.argmax(-1) == answers.labels
    found = metrics.calibration(answers.probabilities, answers.labels, bins)
    accuracy, confidence = calibration_curve(right, top, n_bins=bins)
    np.testing.assert_allclose(found.accuracy[found.count > 0], accuracy)
    np.testing.assert_allclose(found.confidence[found.count > 0], confidence)
    bounds = np.linspace(0, 1, bins + 1)
    inside = [(low < top) & (top <= high) for low, high in zip(bounds[:-1], bounds[1:], strict=True)]
    gaps = [abs(right[some].mean() - top[some].mean()) * some.sum() for some in inside if some.any()]
    assert found.count.tolist() == [some.sum() for some in inside]
    assert metrics.expected_calibration_error(answers.probabilities, answers.labels, bins) == pytest.approx(
        sum(gaps) / len(top)
    )


def test_rounded_probabilities_above_one_are_taken():
    assert metrics.expected_calibration_error(np.float32([[1 + 1e-6, 0], [0, 1 + 1e-6]]), [0, 1]) == pytest.approx(0)


def test_mean_average_precision_is_that_of_scikit_learn(several):
    scores, labels = several
    known = [labels[:, c] != -100 for c in range(4)]
    expected = [average_precision_score(labels[known[c], c], scores[known[c], c]) for c in range(4)]
    np.testing.assert_allclose(metrics.average_precisions(scores, labels), expected)
    assert metrics.mean_average_precision(scores, labels) == pytest.approx(np.mean(expected))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda: metrics.accuracy([0, 1], [0]), r"shapes \[2\] and \[1\]"),
        (lambda: metrics.mean_per_class_accuracy([], []), "at least one image"),
        (lambda: metrics.metric_path("f1"), "Expected one of the metrics accuracy.*'f1'"),
        (lambda: make_compute_metrics("f1"), "metrics among accuracy, per_class, ece.*'f1'"),
    ],
)
def test_wrong_input_is_refused(wrong, match):
    with pytest.raises(ValueError, match=match):
        wrong()


def test_the_trainer_is_given_percent(answers, several):
    prediction = SimpleNamespace(predictions=answers.logits, label_ids=answers.labels)
    predicted = answers.logits.argmax(-1)
    expected = {
        "accuracy": 100 * metrics.accuracy(predicted, answers.labels),
        "per_class": 100 * metrics.mean_per_class_accuracy(predicted, answers.labels),
        "ece": 100 * metrics.expected_calibration_error(answers.probabilities, answers.labels),
    }
    assert make_compute_metrics()(prediction) == pytest.approx(expected)
    assert make_compute_metrics("ece")(prediction) == pytest.approx({"ece": expected["ece"]})
    assert compute_metrics(prediction) == {"accuracy": expected["accuracy"]}
    for size in (3, 7):  # eval_do_concat_batches=False
        starts = range(size, len(answers.labels), size)
        parts = [np.split(array, starts) for array in (answers.logits, answers.labels)]
        assert metrics_of(*parts, tuple(expected)) == pytest.approx(expected)
    mean = 100 * metrics.mean_average_precision(*several)
    assert make_compute_metrics()(SimpleNamespace(predictions=several[0], label_ids=several[1])) == {"map": mean}
    assert metrics_of(*several) == {"map": mean}


@pytest.fixture
def load(monkeypatch, tmp_path):
    """Load a metric as users of `evaluate` do, from a cache of the test's own."""
    pytest.importorskip("evaluate", reason="the extra `metrics` is not installed")
    import evaluate

    monkeypatch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", True)
    options = {"cache_dir": str(tmp_path / "cache")}
    monkeypatch.setattr("evaluate.config.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("evaluate.loading.config.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return lambda name: evaluate.load(str(metrics.metric_path(name)), **options)


def test_modules_give_what_the_functions_give(load, answers, several):
    predicted = answers.logits.argmax(-1)
    labels = {"references": answers.labels}
    for name in ("accuracy", "mean_per_class_accuracy"):
        value = getattr(metrics, name)(predicted, answers.labels)
        assert load(name).compute(predictions=predicted, **labels) == {name: pytest.approx(value)}
    calibration = load("expected_calibration_error").compute(predictions=answers.probabilities, **labels, bins=10)
    value = metrics.expected_calibration_error(answers.probabilities, answers.labels, 10)
    assert calibration == {"expected_calibration_error": pytest.approx(value)}
    precision = load("mean_average_precision").compute(predictions=several[0], references=several[1])
    assert precision == {"mean_average_precision": pytest.approx(metrics.mean_average_precision(*several))}
    novel = np.arange(200) % 3 == 0
    base, other = (metrics.accuracy(predicted[some], answers.labels[some]) for some in (~novel, novel))
    assert load("harmonic_mean").compute(predictions=predicted, **labels, novel=novel) == pytest.approx(
        {"base": base, "novel": other, "harmonic_mean": metrics.harmonic_mean(base, other)}
    )


def test_modules_take_batches(load):
    metric = load("accuracy")
    metric.add_batch(predictions=[0, 1], references=[0, 0])
    metric.add_batch(predictions=[2, 2], references=[2, 2])
    assert metric.compute() == {"accuracy": 0.75}


def test_every_module_is_there():
    folders = {path.parent for path in metrics.metric_path("accuracy").parent.glob("*/*.py")}
    assert folders == {metrics.metric_path(name) for name in metrics.MODULES}
    assert all((folder / f"{folder.name}.py").is_file() for folder in folders)
