"""The mixture: its shares, its range, and that noise is shrunk and smoothed as it says."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage import data
from torch import Tensor
from torch.nn import functional as F

from dsdmae_cli.degradation import photographs as P

WHITE, CAMERA, JPEG = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def _how(shares: tuple[float, float, float], shot: float = 1e-3) -> P.Photographs:
    return P.Photographs(shares, (0.1, 0.4), (shot, shot * 1.001), (30, 95), (10, 95))


def _images(count: int = 8, side: int = 48) -> Tensor:
    picture = torch.from_numpy(data.astronaut()[:256, :384].copy()).permute(2, 0, 1).float() / 127.5 - 1
    corners = [(24 * (i % 8), 37 * (i // 8)) for i in range(count)]
    return torch.stack([picture[:, y : y + side, x : x + side] for y, x in corners])


def _degraded(images: Tensor, how: P.Photographs, seed: int = 0) -> Tensor:
    return P.degrade(images, how, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shares", [WHITE, CAMERA, JPEG, (0.4, 0.45, 0.15)])
def test_what_comes_out_fits_an_8_bit_file_and_the_seed(shares: tuple[float, float, float]) -> None:
    images = _images()
    given = images.clone()
    degraded = _degraded(images, _how(shares))
    values = (degraded + 1) * 127.5
    assert torch.allclose(values, values.round(), atol=1e-3)
    assert values.min() >= -1e-3
    assert values.max() <= 255.001
    assert torch.equal(images, given)
    assert torch.equal(degraded, _degraded(images, _how(shares)))
    assert not torch.equal(degraded, _degraded(images, _how(shares), seed=1))
    assert ((degraded - images).abs().amax(dim=(1, 2, 3)) > 0).all()


def test_a_batch_has_its_shares() -> None:
    counts = np.zeros(3)
    for seed in range(200):
        kinds = P._strata(8, (0.4, 0.45, 0.15), random.Random(seed))
        mine = np.bincount(kinds, minlength=3)
        assert (np.abs(mine - 8 * np.array([0.4, 0.45, 0.15])) < 1).all()
        counts += mine
    assert np.allclose(counts / counts.sum(), (0.4, 0.45, 0.15), atol=0.02)
    assert set(P._strata(5, WHITE, random.Random(0))) == {0}
    assert set(P._strata(5, JPEG, random.Random(0))) == {2}


def test_white_noise_has_its_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(P, "_WHITE_JPEG", 0.0)
    grey = torch.zeros(64, 3, 32, 32)
    how = P.Photographs(WHITE, (0.1, 0.4), (1e-3, 1e-3), (30, 95), (10, 95))
    levels = _degraded(grey, how).std(dim=(1, 2, 3))
    assert levels.min() > 0.09
    assert levels.max() < 0.41
    assert levels.mean().item() == pytest.approx(0.25, abs=0.03)


def test_camera_noise_is_smooth_and_more_so_in_colour() -> None:
    grey = torch.zeros(64, 3, 48, 48)
    noise = _degraded(grey, P.Photographs(CAMERA, (0, 0), (3e-3, 3e-3), (95, 95), (95, 95)))
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    brightness = (weights * noise).sum(dim=1)
    color = noise[:, 0] - brightness

    def neighbours(x: Tensor) -> float:
        x = x - x.mean(dim=(1, 2), keepdim=True)
        return ((x[:, :, 1:] * x[:, :, :-1]).mean() / x.square().mean()).item()

    assert neighbours(brightness) > 0.2
    assert neighbours(color) > neighbours(brightness) + 0.1
    assert noise.mean().abs() < 0.01


def test_enlarging_and_shrinking_are_bilinear_and_area() -> None:
    images = _images(2, 20) * 100
    size = torch.tensor([[30.0, 27.0], [20.0, 40.0]])
    canvas = P._resized(images, size, (40, 40))
    for place, (height, width) in enumerate(size.int().tolist()):
        theirs = F.interpolate(images[place : place + 1], (height, width), mode="bilinear", align_corners=False)
        assert torch.allclose(canvas[place : place + 1, :, :height, :width], theirs, atol=1e-3)
    whole = torch.randn(1, 3, 40, 40)
    theirs = F.avg_pool2d(whole, 2)
    assert torch.allclose(P._shrunk(whole, torch.tensor([[40.0, 40.0]]), torch.Size((20, 20))), theirs, atol=1e-5)
    # A part of a pixel counts for its part.
    third = P._averaging(torch.tensor([3.0]), 3, 2)[0]
    assert torch.allclose(third, torch.tensor([[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]]), atol=1e-6)


def test_smoothing_is_gaussian_and_none_at_zero() -> None:
    x = torch.randn(2, 3, 40, 40)
    blurred = P._blurred(x, torch.tensor([0.0, 1.5]))
    assert torch.allclose(blurred[0], x[0], atol=1e-6)
    theirs = gaussian_filter(x[1].numpy().astype(np.float64), (0, 1.5, 1.5), mode="nearest", radius=(0, 8, 8))
    assert np.allclose(blurred[1], theirs, atol=1e-5)
