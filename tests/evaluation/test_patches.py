"""Components, foreground and likeness of patches, against scikit-learn and float64."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from dsdmae_cli.evaluation import reducing
from dsdmae_cli.evaluation.patches import colours, following, foreground, foreground_colours, likeness
from dsdmae_cli.evaluation.reducing import pca


def tokens(seed: int = 0, shape: tuple[int, ...] = (4, 3, 5, 12)) -> np.ndarray:
    draw = np.random.default_rng(seed)
    spread = np.geomspace(5, 0.1, shape[-1])  # components that are told apart
    return (draw.standard_normal(shape) * spread + 3).astype(np.float32)


def test_colours_are_the_components_of_all_patches_together() -> None:
    x = tokens()
    found = colours(x)
    flat = x.reshape(-1, 12).astype(np.float64)
    reference = PCA(3).fit(flat)
    places = reference.transform(flat)
    rgb = found.rgb.reshape(-1, 3)
    for component in range(3):
        low, high = np.percentile(places[:, component], (2, 98))
        want = ((places[:, component] - low) / (high - low)).clip(0, 1)
        flipped = 1 - want
        best = min(np.abs(rgb[:, component] - way).max() for way in (want, flipped))
        assert best < 1e-4
    np.testing.assert_allclose(found.shares, reference.explained_variance_ratio_, rtol=1e-4)
    assert found.rgb.shape == (4, 3, 5, 3)


def test_components_are_the_same_however_many_rows_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.from_numpy(tokens().reshape(-1, 12))
    whole, shares = pca(features, 3)
    monkeypatch.setattr(reducing, "_ROWS", 7)
    parts, again = pca(features, 3)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    assert again == pytest.approx(shares)


def test_what_stands_in_front_is_the_side_that_fewer_borders_are_on() -> None:
    draw = np.random.default_rng(1)
    thing = np.zeros((3, 6, 6), dtype=bool)
    thing[:, 2:4, 2:5] = True
    kinds = draw.standard_normal((2, 8)) * 4
    x = (kinds[thing.astype(int)] + 0.1 * draw.standard_normal((3, 6, 6, 8))).astype(np.float32)
    np.testing.assert_array_equal(foreground(x), thing)
    found = foreground_colours(x)
    assert found is not None
    assert (found.rgb[~thing] == 0).all()
    assert found.rgb[thing].max() == pytest.approx(1)
    want = PCA(3).fit(x[thing].astype(np.float64)).explained_variance_ratio_
    np.testing.assert_allclose(found.shares, want, rtol=1e-3)


def test_features_that_are_all_alike_have_no_colours() -> None:
    x = np.ones((2, 2, 2, 4), dtype=np.float32)
    assert foreground_colours(x) is None
    assert np.isfinite(colours(x).rgb).all()


def test_likeness_is_the_cosine_of_centred_features() -> None:
    x = tokens(2)
    found = likeness(x, 1, 2, 3)
    centred = x.astype(np.float64) - x.astype(np.float64).mean(axis=(0, 1, 2))
    chosen = centred[1, 2, 3]
    for at in np.ndindex(x.shape[:3]):
        want = centred[at] @ chosen / (np.linalg.norm(centred[at]) * np.linalg.norm(chosen))
        assert found[at] == pytest.approx(want, abs=1e-5)
    assert found[1, 2, 3] == pytest.approx(1, abs=1e-6)


def test_a_later_moment_keeps_the_order_and_sign_of_the_components() -> None:
    before = np.random.default_rng(0).random((2, 4, 4, 3), dtype=np.float32)
    red, green, blue = np.moveaxis(before, -1, 0)
    shuffled = np.stack([1 - blue, red, green], axis=-1)
    np.testing.assert_allclose(following(shuffled, before), before, atol=1e-6)
    noise = 0.1 * np.random.default_rng(1).standard_normal(before.shape).astype(np.float32)
    np.testing.assert_allclose(following(shuffled + noise, before), before, atol=0.5)
    flat = np.full_like(before, 0.5)  # of constant features: nothing fits, and nothing breaks
    np.testing.assert_array_equal(following(flat, before), flat)


def test_likeness_takes_no_copy_of_all_tokens() -> None:
    """`embed` reckons with twice what they take (artifacts/embedding.py)."""
    tokens = np.random.default_rng(0).normal(size=(64, 8, 8, 48)).astype(np.float32)
    tracemalloc.start()
    found = likeness(tokens, 5, 2, 3)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < tokens.nbytes / 4
    centred = tokens.astype(np.float64) - tokens.mean(axis=(0, 1, 2), dtype=np.float64)
    unit = centred / np.linalg.norm(centred, axis=-1, keepdims=True)
    np.testing.assert_allclose(found, unit @ unit[5, 2, 3], atol=1e-5)
