"""Smaller pictures that a denoiser looks at too, against torch's interpolation and on noise in blotches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from dsdmae_cli.pictures import coarser
from dsdmae_cli.pictures.coarser import add_coarser, sizes
from dsdmae_cli.pictures.halving import halved


def _means(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x, 2)


def _as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.astype(np.float64) / np.iinfo(pixels.dtype).max).permute(2, 0, 1)[None]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_smaller_sizes_say_counts_a_half(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """x + up((x' - down(x)) / 2), x' the same of the smaller picture; Pillow's bicubic is torch's with antialias."""
    peak, random = np.iinfo(dtype).max, np.random.default_rng(0)
    both: np.ndarray = random.integers(peak * 3 // 10, peak * 7 // 10, (2, 80, 120, 4)).astype(dtype)
    given, restored = both
    answers = {shape: random.integers(20000, 45000, (*shape, 4)).astype(np.uint16) for shape in [(40, 60), (20, 30)]}

    def wanted(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        if (height, width) not in answers:
            return x
        answer = wanted(_as_tensor(answers[height, width]), height // 2, width // 2)
        change = F.interpolate(answer - _means(x), scale_factor=2, mode="bicubic", antialias=True)
        return x + change / 2

    seen: list[np.ndarray] = []

    def restore(small: np.ndarray) -> np.ndarray:
        seen.append(small)
        return answers[small.shape[:2]].copy()

    expected = wanted(_as_tensor(restored), 40, 60)[0].permute(1, 2, 0).numpy() * peak
    for rows in (512, 24):
        monkeypatch.setattr(coarser, "_ROWS", rows)
        result = restored.copy()
        add_coarser(given, result, 3, restore, least=20)
        assert np.abs(result[..., :3] - expected[..., :3]).max() < (0.51 if dtype == np.uint8 else 3)
        assert np.array_equal(result[..., 3], restored[..., 3])
    assert np.array_equal(seen[0], halved(given))
    assert np.array_equal(seen[1], halved(halved(given)))


def test_small_pictures_have_no_smaller_ones() -> None:
    assert sizes(512, 768, 64) == [(256, 384), (128, 192)]
    assert sizes(129, 4000, 64) == [(65, 2000)]
    assert sizes(127, 127, 64) == [(64, 64)]
    assert sizes(126, 4000, 64) == []
    assert sizes(10**4, 10**4, 64)[-1] == (2500, 2500)


@pytest.mark.parametrize("shape", [(97, 151), (96, 150)])
def test_noise_in_blotches_goes_where_it_is_small(shape: tuple[int, int]) -> None:
    """A filter of three pixels leaves blotches; where it sees smaller pictures too, less of them is left."""
    clean = np.full((*shape, 3), 120.0)
    noise = gaussian_filter(np.random.default_rng(1).normal(0, 1, clean.shape), (3, 3, 0))
    noisy = np.rint(clean + 10 * noise / noise.std()).astype(np.uint8)

    def smooth(pixels: np.ndarray) -> np.ndarray:
        return np.rint(gaussian_filter(pixels.astype(float), (1.5, 1.5, 0))).astype(pixels.dtype)

    at_once, result = smooth(noisy), smooth(noisy)
    add_coarser(noisy, result, 3, smooth, least=16)
    assert np.std(result - clean) < 0.85 * np.std(at_once - clean)
    unchanged = noisy.copy()
    add_coarser(noisy, unchanged, 3, lambda small: small, least=16)
    assert np.array_equal(unchanged, noisy)
