"""Halving and enlarging against torch's, and when a restorer looks at half the size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage import data
from torch.nn import functional as F

from dsdmae_cli.pictures.halving import add_enlarged, halved
from dsdmae_cli.pictures.picture import Picture
from dsdmae_cli.pictures.restore import Restorer

SIZES = [(64, 96), (65, 97), (1100, 67), (2, 1)]


def _channels_first(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.astype(np.float64)).permute(2, 0, 1)[None]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_halved_is_the_mean_of_four(size: tuple[int, int], dtype: type) -> None:
    peak = np.iinfo(dtype).max
    pixels: np.ndarray = np.random.default_rng(0).integers(0, peak, (*size, 3), endpoint=True).astype(dtype)
    padded = F.pad(_channels_first(pixels), (0, size[1] % 2, 0, size[0] % 2), mode="replicate")
    means = F.avg_pool2d(padded, 2)[0].permute(1, 2, 0).numpy() * (65535 / peak)
    assert np.abs(halved(pixels) - means).max() <= 0.51


@pytest.mark.parametrize("size", SIZES)
def test_added_is_a_bilinear_enlargement(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    half = ((size[0] + 1) // 2, (size[1] + 1) // 2, 3)
    before, after = (rng.integers(20000, 40000, half).astype(np.uint16) for _ in range(2))
    pixels: np.ndarray = np.full((*size, 3), 30000, np.uint16)
    changed = _channels_first(after) - _channels_first(before)
    enlarged = F.interpolate(changed, scale_factor=2, mode="bilinear", align_corners=False)
    wanted = 30000 + 0.3 * enlarged[0].permute(1, 2, 0).numpy()[: size[0], : size[1]]
    add_enlarged(pixels, before, after, 0.3)
    assert np.abs(pixels - wanted).max() <= 0.51


class _Smoothing:
    """A network that takes noise by a narrow Gaussian, whatever its tiles; it counts what it was given."""

    image_size, batch_size = 128, 1

    def __init__(self) -> None:
        self.tiles = 0

    def begin(self, tiles: np.ndarray) -> Callable[[], np.ndarray]:
        self.tiles += len(tiles)
        return lambda: gaussian_filter(tiles, (0, 0, 1, 1))


def _noisy(width: float) -> tuple[np.ndarray, np.ndarray]:
    clean = gaussian_filter(data.astronaut()[:256, :256].astype(float), (3, 3, 0))
    noise = gaussian_filter(np.random.default_rng(2).normal(0, 1, clean.shape), (width, width, 0))
    noisy = clean + 8 * noise / noise.std()
    return clean, np.rint(noisy).clip(0, 255).astype(np.uint8)


def test_coarse_noise_is_looked_for_at_half_the_size_too() -> None:
    clean, noisy = _noisy(width=1.2)
    network = _Smoothing()
    result = Restorer(network)(Picture.of(noisy), strength=1).picture.pixels
    at_once = Restorer(once := _Smoothing())._restored(Picture.of(noisy), lambda done, total: None)
    assert network.tiles > once.tiles
    errors = [np.square(pixels - clean).mean() for pixels in (noisy, at_once, result)]
    assert errors[2] < 0.9 * errors[1] < 0.9 * errors[0]


def test_white_noise_and_small_pictures_are_done_once() -> None:
    for noisy in (_noisy(width=0)[1], _noisy(width=1.2)[1][:60]):
        network = _Smoothing()
        result = Restorer(network)(Picture.of(noisy), strength=1).picture.pixels
        once = Restorer(_Smoothing())._restored(Picture.of(noisy), lambda done, total: None)
        assert np.array_equal(result, once)


def test_alpha_and_depth_stay() -> None:
    _, noisy = _noisy(width=1.2)
    deep = np.dstack([noisy.astype(np.uint16) * 257, np.arange(256 * 256, dtype=np.uint16).reshape(256, 256)])
    result = Restorer(_Smoothing())(Picture.of(deep), strength=1).picture.pixels
    assert np.array_equal(result[..., 3], deep[..., 3])
    shallow = Restorer(_Smoothing())(Picture.of(noisy), strength=1).picture.pixels
    assert np.abs(result[..., :3] / 257 - shallow).max() <= 1.5
