"""Label noise: exact rates, own random numbers, never in the test split."""

import json
import random

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Split
from safetensors.numpy import load_file

from peft_vprompt.data.label_noise import (
    KINDS,
    NoisyLabels,
    add_noise,
    confused_labels,
    confusion_noise,
    inject_false_positives,
    pair_noise,
    symmetric_noise,
    transition_noise,
)


CLASSES, PER_CLASS = 5, 16
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(CLASSES), PER_CLASS))
TABLE = np.random.default_rng(1).dirichlet(np.ones(CLASSES), len(LABELS))


def make(kind, rate, seed=1):
    if kind == "confusion":
        return confusion_noise(LABELS, rate, TABLE, seed)
    return KINDS[kind](LABELS, rate, CLASSES, seed)


@pytest.mark.parametrize("rate", [0, 0.125, 0.25, 0.5, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_the_rate_is_met_in_every_class(kind, rate):
    noise = make(kind, rate)
    assert noise.rate == rate == noise.mask.mean()
    assert np.array_equal(noise.mask, noise.labels != LABELS)
    np.testing.assert_allclose(np.diag(noise.matrix), 1 - rate)
    np.testing.assert_allclose(noise.matrix.sum(1), 1)
    for y in range(CLASSES):
        shares = np.bincount(noise.labels[y == LABELS], minlength=CLASSES) / PER_CLASS
        np.testing.assert_allclose(noise.matrix[y], shares)


def test_symmetric_noise_is_uniform_over_the_others():
    labels = np.repeat(np.arange(4), 3000)
    noise = symmetric_noise(labels, 0.6, 4, seed=0)
    np.testing.assert_allclose(noise.matrix, np.full((4, 4), 0.2) + 0.2 * np.eye(4), atol=0.03)


def test_pair_noise_goes_to_the_next_class():
    noise = pair_noise(LABELS, 0.25, CLASSES, seed=0)
    np.testing.assert_allclose(noise.matrix, 0.75 * np.eye(CLASSES) + 0.25 * np.roll(np.eye(CLASSES), 1, axis=1))


def test_confusion_matches_the_reference(shared):
    reference = json.loads((shared / "golden/ptnl/reference_noise.json").read_text())
    table = load_file(shared / "golden/ptnl/pseudo_label.safetensors")["probs.0"]
    assert confused_labels(reference["true"], table).tolist() == reference["confused"]
    noise = confusion_noise(reference["true"], 1, table, seed=0)
    assert noise.labels.tolist() == reference["confused"] and noise.rate == 1


def test_transition_matrix():
    matrix = np.array([[0.5, 0.5, 0], [0, 1, 0], [0.2, 0.2, 0.6]])
    labels = np.repeat(np.arange(3), 5000)
    noise = transition_noise(labels, matrix, seed=0)
    np.testing.assert_allclose(noise.matrix, matrix, atol=0.03)
    assert (noise.matrix[matrix == 0] == 0).all()
    assert not transition_noise(labels, np.eye(3), seed=0).mask.any()


@pytest.mark.parametrize("num_false", [0, 2, 8, 16])
@pytest.mark.parametrize("per_class", [16, 40])
def test_false_positives(num_false, per_class):
    labels = np.random.default_rng(2).permutation(np.repeat(np.arange(CLASSES), per_class))
    chosen, noise = inject_false_positives(labels, 16, num_false, CLASSES, seed=3)
    assert len(chosen) == len(set(chosen)) == 16 * CLASSES
    assert noise.rate == num_false / 16
    given = noise.labels.reshape(CLASSES, 16)
    assert (given == np.arange(CLASSES)[:, None]).all()
    wrong = (labels[chosen] != noise.labels).reshape(CLASSES, 16)
    assert wrong[:, :num_false].all() and not wrong[:, num_false:].any()


def test_false_positives_come_from_the_tail_of_other_classes():
    labels = np.repeat(np.arange(4), 8)
    chosen, noise = inject_false_positives(labels, 4, 1, 4, seed=0)
    position = chosen % 8
    assert (position[noise.mask] >= 6).all() and (position[~noise.mask] < 6).all()  # ceil(8 * 3 / 4) = 6


@pytest.mark.parametrize("kind", KINDS)
def test_own_generator(kind):
    def global_states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = global_states()
    first, again, other = make(kind, 0.5), make(kind, 0.5), make(kind, 0.5, seed=2)
    assert global_states() == before
    assert np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.labels, other.labels)


def rows(labels=LABELS):
    table = Dataset.from_dict({"image": list(range(len(labels))), "label": labels.tolist()})
    return table.cast_column("label", ClassLabel(names=[f"class {i}" for i in range(CLASSES)]))


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_data_set(kind):
    clean = rows()
    noisy, noise = add_noise(clean, kind, 0.25, seed=1, probabilities=TABLE)
    assert np.array_equal(noise.labels, make(kind, 0.25).labels)
    assert noisy["label"][:] == noise.labels.tolist() and noisy["image"][:] == clean["image"][:]
    assert noisy.features["label"] == clean.features["label"]
    assert clean["label"][:] == LABELS.tolist()


def test_the_test_split_is_never_touched():
    data = DatasetDict({"train": rows(), "test": rows()})
    noisy, noise = add_noise(data, "symmetric", 0.5, seed=1)
    assert noisy["train"]["label"][:] == noise.labels.tolist() != LABELS.tolist()
    assert noisy["test"] is data["test"] and data["train"]["label"][:] == LABELS.tolist()
    test = rows()
    test._split = Split.TEST
    with pytest.raises(ValueError, match="training split. Received: the split 'test'"):
        add_noise(test, "symmetric", 0.5, seed=1)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: symmetric_noise(LABELS, 1.5, CLASSES, 0), "from 0 to 1. Received: rate=1.5"),
        (lambda: symmetric_noise([0, 0, 0, 0, 1], 0.25, 2, 0), r"too small for a noise rate of 0.25.*: 1 \(1\)"),
        (lambda: symmetric_noise([0, 7], 0.5, 5, 0), "labels from 0 to 4. Received labels from 0 to 7"),
        (lambda: pair_noise([0.5], 0.5, 5, 0), "whole-number labels"),
        (lambda: pair_noise([0, 1], "0.5", 2, 0), "noise rate from 0 to 1. Received: rate='0.5'"),
        (lambda: pair_noise([0, 1], 0.5, 2, -1), "seed to be an integer >= 0. Received: seed=-1"),
        (lambda: pair_noise([0, 0], 0.5, 1, 0), "num_classes to be an integer >= 2"),
        (lambda: confusion_noise(LABELS, 0.5, TABLE[:3], 0), r"probabilities \[80, classes\].*\[3, 5\]"),
        (lambda: transition_noise(LABELS, np.ones((2, 3)), 0), r"square.*\[2, 3\]"),
        (lambda: transition_noise(LABELS, np.ones((5, 5)), 0), "sum to 1. Received sums"),
        (lambda: inject_false_positives(LABELS, 4, 5, CLASSES, 0), "num_false=5, shots=4"),
        (lambda: inject_false_positives(LABELS, 32, 2, CLASSES, 0), "too small to give 30 true images"),
        (lambda: inject_false_positives([0] * 8 + [1] * 4, 8, 4, 2, 0), r"too small to give 4 true images of 8: 1 \(2 of 4\)"),
        (lambda: add_noise(rows(), "random", 0.5, 0), "symmetric.*Received: kind='random'"),
        (lambda: add_noise(rows(), "confusion", 0.5, 0), "probabilities=None"),
        (lambda: add_noise(Dataset.from_dict({"label": [0]}), "pair", 0.5, 0), "to be a ClassLabel"),
    ],
)  # fmt: skip
def test_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_a_class_without_samples_has_an_empty_row():
    noise = NoisyLabels.compare([0, 0], [0, 1], 3)
    assert noise.matrix.tolist() == [[0.5, 0.5, 0], [0, 0, 0], [0, 0, 0]]
