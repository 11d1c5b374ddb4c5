"""PSNR and SSIM against scikit-image; the estimated noise level against noise that was added."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dsdmae_cli.data.decode import decode
from dsdmae_cli.pictures.noise import noise_level
from dsdmae_cli.pictures.quality import compare, psnr, ssim


def reference_ssim(a: Any, b: Any, peak: float) -> float:
    options: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(a, b, data_range=peak, channel_axis=-1, **options))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(11, 11, 1), (40, 67, 3), (600, 30, 4), (256, 12, 1), (266, 20, 2), (267, 20, 1)])
def test_compare_equals_scikit_image(shape: tuple[int, int, int], dtype: Any) -> None:
    random = np.random.default_rng(0)
    peak = np.iinfo(dtype).max
    a = random.integers(0, peak, shape, dtype, endpoint=True)
    b = np.clip(a + random.normal(0, peak / 10, shape), 0, peak).astype(dtype)
    found = compare(a, b)
    assert found.psnr == pytest.approx(peak_signal_noise_ratio(a, b, data_range=peak), abs=1e-9)
    wanted = reference_ssim(a.astype(np.float64), b.astype(np.float64), peak)
    assert found.ssim == pytest.approx(wanted, abs=1e-9)


def test_photographs_equal_scikit_image(photos_folder: Path) -> None:
    random = np.random.default_rng(0)
    for path in sorted((photos_folder / "val").iterdir())[:3]:
        clean = decode(path, path.name)
        noisy = np.clip(clean + random.normal(0, 25, clean.shape), 0, 255).round().astype(np.uint8)
        found = compare(noisy, clean)
        assert found.psnr == pytest.approx(peak_signal_noise_ratio(clean, noisy), abs=1e-9)
        assert found.ssim == pytest.approx(reference_ssim(clean.astype(float), noisy.astype(float), 255), abs=1e-9)


def test_of_a_batch() -> None:
    x, y = np.random.default_rng(0).random((2, 2, 3, 20, 31))
    for k in range(2):
        a, b = (t[k].transpose(1, 2, 0) for t in (x, y))
        assert float(ssim(x, y, 1.0)[k]) == pytest.approx(reference_ssim(a, b, 1.0), abs=1e-9)
        assert float(psnr(x, y, 1.0)[k]) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1.0), abs=1e-9)


def test_equal_and_tiny_pictures() -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    assert compare(image, image) == (math.inf, pytest.approx(1))
    assert compare(image[:10], image[:10] ^ 1).ssim is None
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(np.zeros((1, 1, 10, 40)), np.zeros((1, 1, 10, 40)), 1.0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("sigma", [2, 10, 30])
def test_noise_alone_is_judged_rightly(sigma: float, dtype: Any) -> None:
    peak = np.iinfo(dtype).max
    noise = np.random.default_rng(0).normal(0.5 * peak, sigma / 255 * peak, (300, 400, 3))
    pixels = np.clip(np.rint(noise), 0, peak).astype(dtype)
    assert noise_level(pixels) == pytest.approx(sigma, rel=0.04)


@pytest.mark.parametrize("sigma", [5, 15, 25, 50])
def test_noise_on_photographs(sigma: float, photos_folder: Path) -> None:
    random = np.random.default_rng(0)
    found = []
    for path in sorted((photos_folder / "val").iterdir()):
        clean = decode(path, path.name)
        noisy = np.clip(np.rint(clean + random.normal(0, sigma, clean.shape)), 0, 255).astype(np.uint8)
        found.append(noise_level(noisy))
    assert np.median(found) == pytest.approx(sigma, rel=0.15)
    assert min(found) > 0.75 * sigma


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 50, 3), (2, 2, 1), (15, 40, 1), (17, 1025, 3), (1100, 3, 1)])
@pytest.mark.parametrize("value", [0, 7, 255])
def test_flat_pictures_have_none(shape: tuple[int, int, int], value: int) -> None:
    assert noise_level(np.full(shape, value, np.uint8)) == 0
