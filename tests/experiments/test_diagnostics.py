"""Calibration, noise estimates and reports on pseudo-labels, against cases whose answer is known."""

import json

import numpy as np
import pytest
from scipy.special import softmax

from peft_vprompt.data import DataOptions, EvalTransform, load_images
from peft_vprompt.data.label_noise import symmetric_noise
from peft_vprompt.experiments.diagnostics import (
    diagnose,
    estimate_noise,
    most_confused,
    plot_reliability,
    pseudo_label_report,
)
from peft_vprompt.experiments.models import load_adapter
from peft_vprompt.experiments.pseudo_labels import PseudoLabels, top_k
from peft_vprompt.metrics import calibration
from peft_vprompt.training.evaluation import EvalSet, predict_logits
from tests.support.command_line import QUICK, train, vprompt
from tests.support.saved_models import COLOURS


NAMES = ["a", "b", "c", "d"]


def sharp(labels, confidence=0.9, classes=4):
    """A model that is right, with this confidence."""
    table = np.full((len(labels), classes), (1 - confidence) / (classes - 1))
    table[np.arange(len(labels)), labels] = confidence
    return table


def test_calibration_of_a_known_model():
    labels = np.zeros(100, dtype=int)
    table = np.tile([[0.75, 0.25]], (100, 1))
    assert calibration(table, labels).ece == pytest.approx(0.25)
    labels[:25] = 1
    result = calibration(table, labels, bins=10)
    assert result.ece == pytest.approx(0)
    assert result.count.tolist() == [0] * 7 + [100, 0, 0]
    assert result.accuracy[7] == pytest.approx(0.75) and np.isnan(result.accuracy[0])
    mixed = calibration(np.array([[1.0, 0.0], [0.6, 0.4]]), [0, 1], bins=10)
    assert mixed.ece == pytest.approx(0.5 * 0 + 0.5 * 0.6)


def test_bins_are_closed_above():
    result = calibration([[0.5, 0.5], [0.51, 0.49], [1.0, 0.0]], [0, 0, 0], bins=2)
    assert result.count.tolist() == [1, 2]


def test_reliability_plot(figures, tmp_path):
    table = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.6, 0.4]])
    plot_reliability(calibration(table, [0, 0, 1, 0], bins=10), tmp_path / "r.png", "Title")
    (axes,) = figures[0].axes
    bars = {round(bar.get_x(), 6): bar.get_height() for bar in axes.patches if bar.get_height()}
    assert bars == pytest.approx({0.8: 2 / 3, 0.5: 1.0})  # confidences from 0.8 to 0.9, and from 0.5 to 0.6
    share = next(line for line in axes.lines if line.get_label() == "share of samples")
    assert share.get_ydata().tolist() == [0, 0, 0, 0, 0, 0.25, 0, 0, 0.75, 0]
    assert axes.get_title() == f"Title (ECE {75 * (0.9 - 2 / 3) + 25 * (1 - 0.6):.1f} %)"


@pytest.mark.parametrize("rate", [0, 0.1, 0.3])
def test_noise_is_estimated_by_a_good_model(rate):
    true = np.arange(400) % 4
    noise = symmetric_noise(true, rate, 4, seed=0)
    estimate = estimate_noise(noise.labels, sharp(true))
    assert estimate.rate == pytest.approx(rate, abs=0.01)
    assert set(estimate.suspects) == set(np.flatnonzero(noise.mask))
    np.testing.assert_allclose(estimate.joint.sum(), 1)
    np.testing.assert_allclose(estimate.joint.sum(1), np.bincount(noise.labels, minlength=4) / 400)


def test_suspects_begin_with_the_clearest():
    table = np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8], [0.05, 0.95]])
    assert estimate_noise([0, 1, 0, 0], table).suspects.tolist() == [3, 2]


def test_most_confused():
    pairs = most_confused([0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 0, 2], NAMES)
    assert [(p["true"], p["predicted"], p["count"]) for p in pairs] == [("a", "b", 2), ("b", "a", 1)]
    assert pairs[0]["share"] == pytest.approx(2 / 3)


def test_report_on_pseudo_labels():
    table = sharp(np.array([0, 0, 1, 1, 1, 2]), 0.7)
    table[0, 0] += 0.1
    table[0] /= table[0].sum()
    chosen = top_k(table, NAMES, 2)
    assert pseudo_label_report(chosen) == {
        "images": 6, "chosen": 5, "coverage": 0.75, "per_class": {"a": 2, "b": 2, "c": 1, "d": 0},
    }  # fmt: skip
    report = pseudo_label_report(chosen, [0, 1, 1, 1, 0, 2])
    assert report["accuracy"] == pytest.approx(4 / 5) and report["accuracy_of_all"] == pytest.approx(4 / 6)
    assert report["accuracy_per_class"] == {"a": 0.5, "b": 1.0, "c": 1.0, "d": None}
    assert report["ece"] == pytest.approx(calibration(table, [0, 1, 1, 1, 0, 2]).ece)
    assert [(pair["true"], pair["predicted"]) for pair in report["confused"]] == [("a", "b"), ("b", "a")]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: calibration([[0.5, 0.6]], [0]), "sum to 1.*apply a softmax"),
        (lambda: calibration([[0.5, 0.5]], [0, 1]), r"\[1, 2\] and \[2\]"),
        (lambda: calibration([[0.5, 0.5]], [2]), "from 0 to 1. Received labels from 2"),
        (lambda: calibration([[0.5, 0.5]], [0], bins=0), "bins=0"),
    ],
)
def test_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_pseudo_label_command(clip_path, colours, tmp_path):
    output, data = tmp_path / "labels.safetensors", ("--data", colours, "--label-column", "colour")
    options = ("--output", output, "--model", clip_path, *data, "--per-class", 3)
    assert "images" in vprompt("pseudo-label", *options)
    assert [file.name for file in tmp_path.iterdir()] == ["labels.safetensors"]
    shown = vprompt("pseudo-label", *options, "--model", clip_path, "--template", "a {}.", "--check")
    report = json.loads((tmp_path / "labels.json").read_text())
    assert f"Right: {100 * report['accuracy']:.1f} % of the chosen" in shown and (tmp_path / "labels.png").is_file()
    chosen = PseudoLabels.load(output)
    true = np.array(load_images(DataOptions(colours, label_column="colour"))["train"]["label"][:])
    assert chosen.class_names == tuple(sorted(COLOURS))
    assert report["accuracy"] == pytest.approx(np.mean(true[chosen.indices] == chosen.labels))
    vprompt("pseudo-label", *options, "--min-confidence", 0.0)
    assert len(PseudoLabels.load(output)) == 28
    train(tmp_path / "a", clip_path, colours, "--method", "coop", "--all-classes", "--pseudo-labels", output, *QUICK)
    assert "--selector" in vprompt("pseudo-label", *options, "--selector", "best", code=2)


def test_pseudo_labels_of_the_embedded_task(embedded, tmp_path):
    assert "28 of 28 images" in vprompt(
        "pseudo-label", "--output", tmp_path / "l.safetensors", "--per-class", 0, "--check"
    )


def test_diagnose(clip_path, colours, figures, tmp_path):
    train(tmp_path / "a", clip_path, colours, "--method", "coop", "--all-classes", *QUICK)
    accuracy = json.loads((tmp_path / "a" / "results.json").read_text())["accuracy"]["all"]
    vprompt("evaluate", "--adapter", tmp_path / "a", "--diagnose", tmp_path / "d")
    report = json.loads((tmp_path / "d" / "diagnosis.json").read_text())
    assert 100 * report["accuracy"] == pytest.approx(accuracy)
    assert np.trace(report["confusion"]) / np.sum(report["confusion"]) == pytest.approx(report["accuracy"])
    loaded = load_adapter(tmp_path / "a")
    test = load_images(DataOptions(colours, label_column="colour"))["test"]
    logits, labels = predict_logits(loaded.model, test.with_transform(EvalTransform(loaded.image_processor)))
    noise = estimate_noise(labels, softmax(logits, axis=-1))
    estimated = report["estimated_noise"]
    assert estimated["rate"] == pytest.approx(noise.rate) and estimated["suspects"] == noise.suspects.tolist()
    assert "assumes that the model was not trained on these images" in estimated["assumes"]
    assert (tmp_path / "d" / "reliability.png").is_file()
    heights = [bar.get_height() for bar in figures[-1].axes[0].patches]
    assert heights == pytest.approx([value or 0 for value in report["calibration"]["bins"]["accuracy"]])
    names = test.features["label"].names
    some = test.select(np.flatnonzero(np.array(test["label"][:]) > 0)).with_transform(
        EvalTransform(loaded.image_processor)
    )
    of_some = diagnose(loaded.model, EvalSet(some, names), tmp_path / "some")["accuracy_per_class"]
    assert of_some == report["accuracy_per_class"] | {names[0]: None}  # there is no image of it
