"""Intervals over seeds and the paired test of two settings, against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dsdmae_cli.evaluation.statistics import contrast, summarise

VALUES = st.lists(st.floats(0, 1), min_size=2, max_size=8)


@given(VALUES)
def test_interval_is_scipys(values: list[float]) -> None:
    found = summarise(values)
    assert found.half is not None
    with np.errstate(all="ignore"):
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    if not math.isnan(low):
        assert (found.mean - found.half, found.mean + found.half) == (pytest.approx(low), pytest.approx(high))


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=8))
def test_contrast_is_scipys_paired_test(pairs: list[tuple[float, float]]) -> None:
    one, two = ([pair[i] for pair in pairs] for i in range(2))
    if np.ptp(np.subtract(one, two)) < 1e-9:
        return
    found = contrast(dict(enumerate(one)), dict(reversed(list(enumerate(two)))), higher_is_better=True)
    reference = stats.ttest_rel(one, two)
    assert found.p == pytest.approx(reference.pvalue, abs=1e-9)
    assert found.difference == pytest.approx(np.mean(one) - np.mean(two), abs=1e-12)
    assert found.larger_than_noise == (reference.pvalue < 0.05)


def test_contrast_pairs_by_seed_and_knows_when_nothing_can_be_said() -> None:
    assert contrast({0: 0.5}, {0: 0.4}, True).p is None
    assert contrast({0: 0.5, 1: 0.6}, {2: 0.4, 3: 0.3}, True).larger_than_noise is None
    assert contrast({0: 1.0, 1: 2.0}, {0: 1.5, 1: 2.5}, higher_is_better=False).difference == 0.5
    assert contrast({0: 0.5, 1: 0.6}, {0: 0.4, 1: 0.5, 7: 9.0}, True).difference == pytest.approx(0.1)
    assert contrast({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6}, True).larger_than_noise is False
    # One more of 397 test images right in each seed: accuracies are counts, and equal gains no proof.
    equal = contrast({0: 301 / 397, 1: 310 / 397}, {0: 300 / 397, 1: 309 / 397}, True)
    assert (equal.p, equal.larger_than_noise, equal.seeds) == (None, None, 2)
    assert contrast({0: 0.5, 7: 0.9}, {0: 0.6, 1: 0.1}, True).difference == pytest.approx(-0.1)  # by the shared seed
