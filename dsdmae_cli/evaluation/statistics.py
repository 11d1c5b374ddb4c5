"""Means and intervals over seeds, and whether the best setting differs from the next by more than the seeds do."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_SAME = 1e-9  # differences that are closer are one, but for how floats are rounded


@dataclass(frozen=True)
class Summary:
    """Values over seeds.

    Attributes:
        count: number of runs.
        mean: their mean.
        half: half the width of the 95% interval of the mean, by Student's t; None for a single run.
    """

    count: int
    mean: float
    half: float | None


@dataclass(frozen=True)
class Contrast:
    """The best setting against another.

    Attributes:
        difference: of the means, as a gain: above 0 where the best is better.
        p: two-sided probability of so large a difference if there were none (paired t-test); None if it cannot be
            said, for want of two seeds that both were run with, or because all seeds have the very same difference.
        larger_than_noise: p < 0.05; None where p is None.
        seeds: that both were run with.
    """

    difference: float
    p: float | None
    larger_than_noise: bool | None
    seeds: int = 0


def summarise(values: list[float]) -> Summary:
    """Mean and 95% interval of at least one value."""
    from scipy import stats

    count = len(values)
    if count == 1:
        return Summary(1, values[0], None)
    error = float(np.std(values, ddof=1)) / math.sqrt(count)
    return Summary(count, float(np.mean(values)), float(stats.t.ppf(0.975, count - 1)) * error)


def contrast(best: dict[int, float], other: dict[int, float], higher_is_better: bool) -> Contrast:
    """Student's t-test of {seed: value} of two settings, paired by seed.

    A seed gives both settings the same first weights, order of images and noise, so what differs within a seed is due
    to the setting; in short runs that takes away most of the spread. Runs without a partner are left out.
    """
    seeds = sorted(best.keys() & other.keys())
    sign = 1 if higher_is_better else -1
    if not seeds:
        return Contrast(sign * float(np.mean([*best.values()]) - np.mean([*other.values()])), None, None)
    gains = [sign * (best[seed] - other[seed]) for seed in seeds]
    gain = float(np.mean(gains))
    if len(seeds) < 2:
        return Contrast(gain, None, None, len(seeds))
    if max(gains) - min(gains) < _SAME:  # the test divides by the spread, and accuracies are counts: it happens
        same = abs(gain) < _SAME
        return Contrast(gain, 1.0 if same else None, False if same else None, len(seeds))
    from scipy import stats

    p = float(stats.ttest_1samp(gains, 0.0).pvalue)
    return Contrast(gain, p, p < 0.05, len(seeds))
