"""Means, spreads and harmonic means over seeds and tasks, and paired bootstrap intervals. NumPy alone.

Legend: s = seeds, i = images, t = tasks, r = resamples. Accuracies are in percent unless a share is said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


#: Resamples of a bootstrap, and the share of them that an interval holds.
RESAMPLES, LEVEL = 2000, 0.95

#: Accuracies by test set, float [r] -> what is compared, float [r].
Measure = Callable[[Mapping[str, NDArray]], NDArray]


class Spread(NamedTuple):
    """Mean of some values and their standard deviation as a sample; None of a single value."""

    mean: float
    std: float | None
    count: int


def spread(values: ArrayLike) -> Spread:
    """Return mean and spread of values over seeds.

    Raises:
        ValueError: there are none.
    """
    table = np.asarray(values, dtype=float)
    if not table.size:
        raise ValueError("Expected at least one value. Received none.")
    return Spread(float(table.mean()), float(table.std(ddof=1)) if table.size > 1 else None, table.size)


def harmonic(base: ArrayLike, novel: ArrayLike) -> NDArray:
    """Return the harmonic means of accuracies, element by element; 0 where both are 0."""
    base, novel = np.asarray(base, dtype=float), np.asarray(novel, dtype=float)
    total = base + novel
    return np.divide(2 * base * novel, total, out=np.zeros_like(total), where=total > 0)


class HarmonicMeans(NamedTuple):
    """The two conventions, which give two numbers.

    Attributes:
        of_averages: harmonic mean of the average base and the average novel accuracy, as the papers' tables have it.
        mean_of_each: average of the harmonic means of every seed and task.
    """

    of_averages: float
    mean_of_each: float


def harmonic_means(base: ArrayLike, novel: ArrayLike) -> HarmonicMeans:
    """Return the harmonic mean of base and novel accuracies, float [s] or [t, s], in both conventions.

    Raises:
        ValueError: not as many of the one as of the other.
    """
    base, novel = np.asarray(base, dtype=float), np.asarray(novel, dtype=float)
    if base.shape != novel.shape:
        raise ValueError(f"Expected as many base as novel accuracies. Received: {base.shape} and {novel.shape}.")
    return HarmonicMeans(float(harmonic(base.mean(), novel.mean())), float(harmonic(base, novel).mean()))


class Interval(NamedTuple):
    """A difference of two methods, in points, and the interval in which `level` of the resamples lie."""

    difference: float
    low: float
    high: float
    level: float = LEVEL


def paired_bootstrap(
    first: Mapping[str, ArrayLike],
    second: Mapping[str, ArrayLike],
    measure: Measure | None = None,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Return the difference of two methods on the same images, with an interval over images and seeds.

    Images and seeds are drawn anew with replacement, the same for both methods: an image that is hard for both, and a
    draw of few shots that is poor for both, says nothing about their difference. Test sets are resampled apart from each
    other, seeds together for all of them.

    Args:
        first: whether each image is right, bool [s, i], by test set.
        second: likewise of the method to subtract. A method that no seed changes has one row.
        measure: what is compared, from the accuracies of each test set; default: their mean.
        resamples: number of resamples.
        level: share of the resamples that the interval holds.
        seed: of the random numbers.

    Raises:
        ValueError: other test sets, images or seeds in the one than in the other.
    """
    measure = measure or mean_of_all
    tables = _paired(first, second)
    generator = np.random.default_rng(seed)
    seeds = next(iter(tables.values())).shape[1]
    drawn = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds  # [r, s]
    plain, resampled = ({}, {}), ({}, {})
    for name, table in tables.items():
        # Images of one pattern of right and wrong are one: drawing their counts is drawing images.
        patterns, counts = np.unique(table.reshape(2 * seeds, -1), axis=1, return_counts=True)
        images = counts.sum()
        weights = generator.multinomial(images, counts / images, size=resamples) / images  # [r, patterns]
        by_seed = (weights @ patterns.T).reshape(resamples, 2, seeds)
        for side in (0, 1):
            plain[side][name] = np.array([100 * table[side].mean()])
            resampled[side][name] = 100 * (by_seed[:, side] * drawn).sum(1)
    differences = measure(resampled[0]) - measure(resampled[1])
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float((measure(plain[0]) - measure(plain[1]))[0]), float(low), float(high), level)


def mean_of_all(accuracies: Mapping[str, NDArray]) -> NDArray:
    """Return the mean of the accuracies of all test sets."""
    return np.mean(list(accuracies.values()), axis=0)


def harmonic_of(pairs: Sequence[tuple[str, str]]) -> Measure:
    """Return the measure of base-to-novel: the harmonic mean of the average base and the average novel accuracy.

    Args:
        pairs: names of the base and of the novel test set of every task.
    """

    def measure(accuracies: Mapping[str, NDArray]) -> NDArray:
        base, novel = (np.mean([accuracies[pair[side]] for pair in pairs], axis=0) for side in (0, 1))
        return harmonic(base, novel)

    return measure


def _paired(first: Mapping[str, ArrayLike], second: Mapping[str, ArrayLike]) -> dict[str, NDArray]:
    """Return whether each image is right, float [2, s, i], by test set.

    Raises:
        ValueError: as `paired_bootstrap`.
    """
    if first.keys() != second.keys() or not first:
        raise ValueError(f"Expected the same test sets. Received: {list(first)} and {list(second)}.")
    tables = {}
    for name in first:
        one, other = (np.atleast_2d(np.asarray(side[name], dtype=float)) for side in (first, second))
        if one.shape[1] != other.shape[1] or not one.shape[1]:
            raise ValueError(f"Expected the same images of {name!r}. Received: {one.shape[1]} and {other.shape[1]}.")
        seeds = max(len(one), len(other))
        if {len(one), len(other)} - {1, seeds}:
            raise ValueError(f"Expected the same seeds on {name!r}. Received: {len(one)} and {len(other)} of them.")
        tables[name] = np.stack([np.broadcast_to(side, (seeds, side.shape[1])) for side in (one, other)])
    counts = {table.shape[1] for table in tables.values()}
    if len(counts) > 1:
        raise ValueError(f"Expected the same seeds on every test set. Received: {sorted(counts)} of them.")
    return tables
