"""Means, harmonic means and bootstrap intervals, against values worked out by hand and closed cases."""

import numpy as np
import pytest

from peft_vprompt.experiments.bench.outcomes import outcome, pack, unpack
from peft_vprompt.experiments.bench.statistics import (
    harmonic,
    harmonic_means,
    harmonic_of,
    paired_bootstrap,
    spread,
)
from peft_vprompt.training.evaluation import harmonic_mean


def test_spread_is_that_of_a_sample():
    assert spread([50.0, 60.0, 70.0]) == (60.0, 10.0, 3)
    assert spread([50.0]) == (50.0, None, 1)
    with pytest.raises(ValueError, match="at least one value"):
        spread([])


def test_both_conventions_of_the_harmonic_mean():
    base, novel = [[80.0, 60.0], [100.0, 60.0]], [[40.0, 60.0], [100.0, 20.0]]
    found = harmonic_means(base, novel)
    assert found.of_averages == pytest.approx(2 * 75 * 55 / 130)
    assert found.mean_of_each == pytest.approx((2 * 80 * 40 / 120 + 60 + 100 + 30) / 4)
    with pytest.raises(ValueError, match="as many base as novel"):
        harmonic_means([1.0], [1.0, 2.0])


def test_harmonic_is_the_one_of_a_run():
    for base, novel in ((80.0, 40.0), (0.0, 50.0), (0.0, 0.0), (33.3, 33.3)):
        assert harmonic(base, novel) == pytest.approx(harmonic_mean(base, novel))


class TestBootstrap:
    def test_the_same_outcomes_differ_by_nothing(self):
        right = np.random.default_rng(0).random((3, 200)) < 0.6
        assert paired_bootstrap({"all": right}, {"all": right})[:3] == (0.0, 0.0, 0.0)

    def test_a_difference_of_every_image_is_certain(self):
        right = np.ones((2, 50), bool)
        assert paired_bootstrap({"all": right}, {"all": ~right})[:3] == (100.0, 100.0, 100.0)

    def test_of_one_seed_the_interval_is_that_of_a_binomial(self):
        """With k of n images right and none for the other, the mean of resamples is Binomial(n, k / n) / n."""
        images, hits = 400, 100
        right = np.arange(images) < hits
        found = paired_bootstrap({"all": right}, {"all": np.zeros(images, bool)}, resamples=20_000)
        half = 100 * 1.96 * np.sqrt(hits / images * (1 - hits / images) / images)
        assert found.difference == 25.0
        assert (found.low, found.high) == (pytest.approx(25 - half, abs=0.35), pytest.approx(25 + half, abs=0.35))

    def test_pairing_takes_out_what_is_hard_for_both(self):
        rng = np.random.default_rng(1)
        hard = rng.random(300) < 0.5
        first = hard | (np.arange(300) < 6)
        second = rng.permutation(hard)  # as accurate, on other images
        paired = paired_bootstrap({"all": first}, {"all": hard})
        unpaired = paired_bootstrap({"all": first}, {"all": second})
        assert paired.high - paired.low < (unpaired.high - unpaired.low) / 3

    def test_seeds_are_resampled_too(self):
        """No image differs within a seed, so all that varies is which of two seeds are drawn: -10, 0 or 10 points."""
        first, second = np.zeros((2, 100), bool), np.zeros((2, 100), bool)
        first[0, :20] = True
        second[1, :20] = True
        found = paired_bootstrap({"all": first}, {"all": second})
        assert found.difference == 0.0 and found.low < -15 and found.high > 15
        alone = paired_bootstrap({"all": first[:1]}, {"all": second[:1]})
        assert alone.low > 10  # of one seed nothing is known about others

    def test_a_method_that_no_seed_changes_has_one_row(self):
        right = np.random.default_rng(2).random((3, 80)) < 0.7
        plain = np.random.default_rng(3).random(80) < 0.5
        repeated = np.stack([plain] * 3)
        assert paired_bootstrap({"all": right}, {"all": plain}) == paired_bootstrap({"all": right}, {"all": repeated})

    def test_the_harmonic_mean_of_averages_is_compared(self):
        first = {"a/base": [1, 1, 1, 0], "a/novel": [1, 0, 0, 0], "b/base": [1, 0], "b/novel": [1, 1]}
        second = {"a/base": [1, 0, 0, 0], "a/novel": [1, 0, 0, 0], "b/base": [1, 0], "b/novel": [1, 1]}
        measure = harmonic_of([("a/base", "a/novel"), ("b/base", "b/novel")])
        expected = harmonic_mean(62.5, 62.5) - harmonic_mean(37.5, 62.5)
        assert paired_bootstrap(first, second, measure).difference == pytest.approx(expected)

    def test_resamples_by_pattern_are_resamples_by_image(self):
        """The interval of drawing counts of patterns is that of drawing image by image."""
        rng = np.random.default_rng(4)
        first, second = rng.random((2, 60)) < 0.7, rng.random((2, 60)) < 0.5
        means = []
        for _ in range(4000):
            images, seeds = rng.integers(60, size=60), rng.integers(2, size=2)
            means.append(100 * (first[seeds][:, images].mean() - second[seeds][:, images].mean()))
        found = paired_bootstrap({"all": first}, {"all": second}, resamples=4000)
        assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=2.0)

    def test_the_same_seed_gives_the_same_interval(self):
        first, second = np.eye(2, 40, dtype=bool), np.eye(2, 40, 5, dtype=bool)
        assert paired_bootstrap({"x": first}, {"x": second}) == paired_bootstrap({"x": first}, {"x": second})

    @pytest.mark.parametrize(
        ("first", "second", "match"),
        [
            ({"a": [1]}, {"b": [1]}, "same test sets"),
            ({}, {}, "same test sets"),
            ({"a": [1, 0]}, {"a": [1]}, "same images of 'a'. Received: 2 and 1"),
            ({"a": [[1], [0], [1]]}, {"a": [[1], [0]]}, "same seeds on 'a'"),
            ({"a": [[1], [0]], "b": [[1]]}, {"a": [[1], [0]], "b": [[1]]}, "same seeds on every test set"),
        ],
    )
    def test_what_cannot_be_paired_is_refused(self, first, second, match):
        with pytest.raises(ValueError, match=match):
            paired_bootstrap(first, second)


class TestOutcomes:
    def test_accuracy_over_images_and_over_classes(self):
        labels = np.array([0, 0, 0, 0, 1, 1, 2])  # three of four, one of two, none of one; no image of class 3
        found = outcome(np.array([0, 0, 0, 1, 1, 0, 0]), labels, ["a", "b", "c", "d"], {"images": "x"})
        assert found["accuracy"] == pytest.approx(100 * 4 / 7)
        assert found["per_class"] == pytest.approx(100 * (0.75 + 0.5 + 0) / 3)
        assert (found["images"], found["classes"], found["chance"]) == (7, 4, 25.0)
        assert unpack(found["correct"], 7).tolist() == [True, True, True, False, True, False, False]

    def test_other_images_or_names_are_another_test_set(self):
        right = np.array([0]), np.array([0])
        contents = {
            outcome(*right, names, images)["content"]
            for names, images in ((["a", "b"], {"i": 1}), (["a", "c"], {"i": 1}), (["a", "b"], {"i": 2}))
        }
        assert len(contents) == 3

    @pytest.mark.parametrize("images", [1, 7, 8, 9, 1000])
    def test_packed_bits_come_back(self, images):
        right = np.random.default_rng(images).random(images) < 0.5
        assert np.array_equal(unpack(pack(right), images), right)
        assert len(pack(right)) <= 4 * np.ceil(images / 24)

    def test_bits_of_other_images_are_refused(self):
        with pytest.raises(ValueError, match="Expected 20 images. Received: 8 bits"):
            unpack(pack(np.ones(5, bool)), 20)
