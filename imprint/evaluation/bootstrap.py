"""Bootstrap intervals: how far a mean would move with other test cases."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


def compute_interval(
    values: np.ndarray, groups: Sequence[Hashable] | None = None, *, samples: int, seed: int
) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values` [n], resampled by case, or by group where values of one group
    (the pairs of one clip) are not independent. One group gives an interval of no width."""
    low, high = np.percentile(sample_means(values, groups, samples=samples, seed=seed), [2.5, 97.5])
    return float(low), float(high)


def sample_means(
    values: np.ndarray, groups: Sequence[Hashable] | None = None, *, samples: int, seed: int
) -> np.ndarray:
    """[samples] means of `values` [n], each over cases (or whole groups) drawn with replacement."""
    labels = list(range(len(values))) if groups is None else list(groups)
    index = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    members = np.array([index[label] for label in labels])
    sums = np.bincount(members, weights=values)
    counts = np.bincount(members)
    drawn = np.random.default_rng(seed).integers(len(index), size=(samples, len(index)))
    return sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
