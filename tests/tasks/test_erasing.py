"""Random erasing against timm's, which draws image by image."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from helpers import assert_never_waits
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from dsdmae_cli.tasks.erasing import erased


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rectangles(touched: Tensor) -> dict[str, Tensor]:
    """Of each image that has one: top, left, height and width, of a mask [b, h, w]."""
    touched = touched[touched.flatten(1).any(dim=1)]
    rows, columns = touched.any(dim=2).int(), touched.any(dim=1).int()
    assert torch.equal(touched.flatten(1).sum(dim=1), rows.sum(dim=1) * columns.sum(dim=1))
    return {
        "top": rows.argmax(dim=1),
        "left": columns.argmax(dim=1),
        "height": rows.sum(dim=1),
        "width": columns.sum(dim=1),
        "area": touched.flatten(1).sum(dim=1),
    }


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
def test_rectangles_are_distributed_as_timms(height: int, width: int) -> None:
    count, probability = 6000, 0.6
    images = torch.full((count, 1, height, width), 9.0)
    random.seed(0)
    torch.manual_seed(0)
    theirs = RandomErasing(probability, mode="pixel", device="cpu")(images.clone())[:, 0] != 9
    ours = erased(images, probability, generator(0))[:, 0] != 9
    for mask in (ours, theirs):  # a share of 0.6 within four standard errors
        assert abs(float(mask.flatten(1).any(dim=1).double().mean()) - probability) < 0.026
    mine, expected = rectangles(ours), rectangles(theirs)
    for name, values in expected.items():
        grid = np.arange(0, int(max(values.max(), mine[name].max())) + 1)
        cumulated = [np.searchsorted(np.sort(x.numpy()), grid, side="right") / len(x) for x in (mine[name], values)]
        # Kolmogorov and Smirnov's distance of two samples of 3,600 is beyond this once in 2,000 times.
        assert np.abs(cumulated[0] - cumulated[1]).max() < 0.049, name


def test_noise_is_standard_normal_and_the_rest_is_left() -> None:
    images = torch.rand(400, 3, 16, 16, generator=generator(1))
    found = erased(images, 1.0, generator(2))
    touched = (found != images).any(dim=1, keepdim=True).expand_as(images)
    noise = found[touched]
    assert noise.numel() > 40_000
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    assert torch.equal(erased(images, 0.0, generator(2)), images)


def test_no_operator_waits_and_none_runs_per_image() -> None:
    assert_never_waits(lambda batch: erased(torch.rand(batch, 3, 16, 16, generator=generator(0)), 0.5, generator(1)))
