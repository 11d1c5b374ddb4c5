"""JPEG on tensors against Pillow's libjpeg."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from dsdmae_cli.degradation.jpeg import UNIT, compressed


def _by_pillow(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def _ours(pixels: np.ndarray, quality: float, corner: tuple[int, int] = (0, 0)) -> np.ndarray:
    x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()
    return compressed(x, torch.tensor([quality]), corner)[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("quality", [5, 10, 30, 50, 75, 95])
def test_a_photograph_comes_back_as_from_libjpeg(quality: int) -> None:
    pixels = data.astronaut()[100:196, 150:262]
    theirs, ours = _by_pillow(pixels, quality).astype(float), _ours(pixels, quality)
    # The transform of libjpeg works in integers; what differs is rounding, and now and then a step of quantisation.
    assert np.abs(theirs - ours).mean() < 0.8
    lost = np.sqrt(np.square(theirs - pixels).mean())
    assert np.sqrt(np.square(ours - pixels).mean()) == pytest.approx(lost, rel=0.02)


def test_the_grid_begins_where_it_is_told() -> None:
    pixels = data.astronaut()[100:164, 150:214]
    top, left = 5, 11
    padded = np.pad(pixels, ((top, UNIT - top), (left, UNIT - left), (0, 0)), mode="edge")
    theirs = _by_pillow(padded, 20)[top : top + 64, left : left + 64].astype(float)
    assert np.abs(theirs - _ours(pixels, 20, (top, left))).mean() < 0.8
    assert np.abs(theirs - _ours(pixels, 20)).mean() > 2


def test_each_image_has_its_own_quality_and_any_size() -> None:
    pixels = torch.from_numpy(data.astronaut()[:50, :37].copy()).permute(2, 0, 1)[None].float().repeat(2, 1, 1, 1)
    both = compressed(pixels, torch.tensor([10.0, 90.0]))
    assert both.shape == pixels.shape
    for place, quality in enumerate((10.0, 90.0)):
        assert torch.equal(both[place : place + 1], compressed(pixels[:1], torch.tensor([quality])))
    coarse, fine = (both - pixels).square().mean(dim=(1, 2, 3))
    assert coarse > 4 * fine
