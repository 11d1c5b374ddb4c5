"""Spread and effective rank against numpy in float64, and what is said of collapsed features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dsdmae_cli.evaluation.collapse import Spread, collapse_warning, feature_spread


def gaussian(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def reference(features: Tensor) -> Spread:
    x = features.double().numpy()
    x = x / np.sqrt((x**2).sum(axis=1, keepdims=True))
    spread = np.mean([np.std(column) for column in x.T]) * np.sqrt(x.shape[1])
    singular = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    p = singular / singular.sum()
    return {"spread": float(spread), "rank": float(np.exp(-sum(q * np.log(q) for q in p if q > 0)))}


@pytest.mark.parametrize(("n", "d"), [(200, 16), (20, 64), (500, 192)])
def test_it_is_the_definitions(n: int, d: int) -> None:
    features = gaussian(n, d) * torch.linspace(0.1, 3, d) + 0.7
    for given in (features, features.bfloat16(), 1e4 * features):
        found, expected = feature_spread(given), reference(given)
        assert found["spread"] == pytest.approx(expected["spread"], rel=1e-9)
        assert found["rank"] == pytest.approx(expected["rank"], rel=1e-5)


def test_even_features_have_spread_one_and_full_rank() -> None:
    found = feature_spread(gaussian(20_000, 32))
    assert found["spread"] == pytest.approx(1, abs=0.01)
    assert found["rank"] == pytest.approx(32, abs=0.1)
    assert collapse_warning(found, found) is None


def test_a_point_a_line_and_a_plane() -> None:
    point = gaussian(1, 64).expand(300, -1)
    assert feature_spread(point) == {"spread": pytest.approx(0, abs=1e-12), "rank": 0.0}
    noisy = feature_spread(point + 1e-3 * gaussian(300, 64))
    assert noisy["rank"] > 50  # noise has every direction: the rank alone would not tell
    for found in (feature_spread(point), noisy):
        message = collapse_warning(found)
        assert message is not None
        assert "collapsed to a point" in message
    line = torch.sign(gaussian(300, 1)) @ gaussian(1, 64, seed=1)
    assert feature_spread(line)["rank"] == pytest.approx(1, abs=1e-4)
    plane = gaussian(300, 2) @ torch.linalg.qr(gaussian(64, 2, seed=2))[0].T
    assert feature_spread(plane)["rank"] == pytest.approx(2, abs=0.01)
    for found in (feature_spread(line), feature_spread(plane)):
        message = collapse_warning(found)
        assert message is not None
        assert "few directions" in message


def test_features_that_lose_directions_are_named_beside_the_untrained_ones() -> None:
    before: Spread = {"spread": 0.3, "rank": 30.0}
    assert collapse_warning({"spread": 0.3, "rank": 15.5}, before) is None
    message = collapse_warning({"spread": 0.3, "rank": 9.0}, before)
    assert message is not None
    assert "about 9.0 directions, and did in 30.0 before training" in message
    assert collapse_warning({"spread": 0.3, "rank": 9.0}) is None
    assert "\n" not in message


UNTRAINED: Spread = {"spread": 0.145, "rank": 28.5}


# Measured: collapse.py says in which runs.
@pytest.mark.parametrize(("spread", "rank"), [(0.064, 12.0), (0.084, 12.4), (0.104, 12.9), (0.154, 13.6)])
def test_runs_that_collapsed_are_named(spread: float, rank: float) -> None:
    message = collapse_warning({"spread": spread, "rank": rank}, UNTRAINED)
    assert message is not None
    assert "before training" in message


@pytest.mark.parametrize(
    ("spread", "rank"), [(0.010, 37.9), (0.016, 37.1), (0.240, 15.3), (0.054, 18.4), (0.123, 21.0), (0.165, 16.5)]
)
def test_runs_that_learned_are_left_alone(spread: float, rank: float) -> None:
    assert collapse_warning({"spread": spread, "rank": rank}, UNTRAINED) is None


def test_a_mean_that_all_images_share_is_no_collapse() -> None:
    """Cosines are then all near 1, and the features beside the mean as good as before."""
    features = gaussian(300, 64)
    narrow = feature_spread(features + 100 * gaussian(1, 64, seed=1))
    assert narrow["spread"] < 0.02
    assert narrow["rank"] > 0.95 * feature_spread(features)["rank"]
    assert collapse_warning(narrow, feature_spread(features)) is None


def test_a_handful_of_images_has_few_directions_and_has_not_collapsed() -> None:
    for n in (2, 5, 15):
        found = feature_spread(gaussian(n, 64))
        assert found["rank"] <= n - 1 + 1e-4
        assert collapse_warning({**found, "rank": min(found["rank"], 2.0)}, UNTRAINED, n) is None
    assert "few directions" in str(collapse_warning({"spread": 0.3, "rank": 2.0}, UNTRAINED, 16))
    point = feature_spread(gaussian(1, 64).expand(5, -1))
    assert "to a point" in str(collapse_warning(point, UNTRAINED, 5))
    assert collapse_warning(feature_spread(gaussian(1, 64)), None, 1) is None  # one image is always a point


def test_what_the_untrained_network_had_too_is_no_collapse() -> None:
    for before in ({"spread": 0.004, "rank": 30.0}, {"spread": 0.3, "rank": 2.0}):
        had: Spread = {"spread": before["spread"], "rank": before["rank"]}
        assert collapse_warning(had, had, 400) is None
        assert collapse_warning(had, UNTRAINED, 400) is not None
