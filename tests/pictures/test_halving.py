"""Halving against torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dsdmae_cli.pictures.halving import halved

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
