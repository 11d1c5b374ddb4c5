"""The way to the sensor and back, each part against its formula or another implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import data
from skimage.color import rgb2xyz
from torch import Tensor

from dsdmae_cli.degradation.camera import Camera, demosaiced, draw_camera, sensor_noise, to_linear, to_srgb


def test_srgb_is_that_of_the_standard() -> None:
    values = torch.linspace(0, 1, 256, dtype=torch.float64)
    assert torch.allclose(to_srgb(to_linear(values)), values, atol=1e-6)
    # Luminance of a grey pixel is its light; skimage has the same curve inside its way to XYZ.
    grey = values.numpy()[:, None].repeat(3, axis=1)
    assert np.allclose(to_linear(values), rgb2xyz(grey[None])[0, :, 1], atol=1e-4)


def _malvar(raw: np.ndarray, red: np.ndarray, blue: np.ndarray) -> np.ndarray:
    """The paper's words, sensel by sensel: bilinear, and a part of the gradient of the colour that is known there."""
    height, width = raw.shape
    x = np.pad(raw, 2, mode="reflect")
    result = np.zeros((3, height, width))

    def mean(y: int, z: int, *steps: tuple[int, int]) -> float:
        return float(np.mean([x[y + dy, z + dz] for dy, dz in steps]))

    cross, diagonal = ((-1, 0), (1, 0), (0, -1), (0, 1)), ((-1, -1), (-1, 1), (1, -1), (1, 1))
    far_rows, far_columns = ((-2, 0), (2, 0)), ((0, -2), (0, 2))
    for i in range(height):
        for j in range(width):
            y, z, here = i + 2, j + 2, raw[i, j]
            gradient = here - mean(y, z, *far_rows, *far_columns)
            if red[i, j] or blue[i, j]:
                own, other = (0, 2) if red[i, j] else (2, 0)
                result[own, i, j] = here
                result[1, i, j] = mean(y, z, *cross) + gradient / 2
                result[other, i, j] = mean(y, z, *diagonal) + 3 / 4 * gradient
                continue
            result[1, i, j] = here
            in_red_row = red[i].any()
            for color, beside in ((0, in_red_row), (2, not in_red_row)):
                near = ((0, -1), (0, 1)) if beside else ((-1, 0), (1, 0))
                along, across = (far_columns, far_rows) if beside else (far_rows, far_columns)
                # 5/8 of: here - [4 diagonal + 2 along - 1/2 of 2 across] / 5
                around = 4 * mean(y, z, *diagonal) + 2 * mean(y, z, *along) - mean(y, z, *across)
                result[color, i, j] = mean(y, z, *near) + 5 / 8 * (here - around / 5)
    return result


@pytest.mark.parametrize("phase", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_demosaicing_is_malvars(phase: tuple[int, int]) -> None:
    raw = np.random.default_rng(0).random((9, 12))
    rows, columns = np.indices(raw.shape)
    red = ((rows + phase[0]) % 2 == 0) & ((columns + phase[1]) % 2 == 0)
    blue = ((rows + phase[0]) % 2 == 1) & ((columns + phase[1]) % 2 == 1)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array)[None, None]

    ours = demosaiced(tensor(raw), tensor(red), tensor(blue))[0].numpy()
    assert np.allclose(ours, _malvar(raw, red, blue), atol=1e-6)


def _plain(count: int, shot: float, read: float) -> Camera:
    one = torch.ones(count)
    return Camera(
        torch.ones(count, 3), torch.eye(3).repeat(count, 1, 1), shot * one, read * one, torch.zeros(count, 2).long()
    )


@pytest.mark.parametrize("light", [0.05, 0.2, 0.7])
def test_variance_grows_with_light(light: float) -> None:
    shot, read = 1e-4, 1e-6
    pixels = to_srgb(torch.full((4, 3, 64, 64), light))
    noise = sensor_noise(pixels, _plain(4, shot, read), torch.Generator().manual_seed(0))
    # Where green is measured nothing is interpolated; what the curve makes of a small step is its slope.
    measured = noise[:, 1, 0::2, 1::2]
    slope = 1.055 / 2.4 * light ** (1 / 2.4 - 1)
    assert measured.std().item() == pytest.approx(slope * (shot * light + read) ** 0.5, rel=0.03)
    assert abs(noise.mean().item()) < 0.1 * measured.std().item()


def test_no_noise_adds_nothing_and_a_camera_keeps_grey_grey() -> None:
    pixels = torch.from_numpy(data.astronaut()[:32, :32].copy()).permute(2, 0, 1)[None].float() / 255
    camera = draw_camera(1, (1e-4, 1e-2), torch.Generator().manual_seed(0))
    assert torch.allclose(camera.matrix.sum(dim=2), torch.ones(1, 3), atol=1e-6)
    silent = Camera(camera.gains, camera.matrix, torch.zeros(1), torch.zeros(1), camera.phase)
    assert not sensor_noise(pixels, silent, torch.Generator().manual_seed(0)).any()


def test_shot_noise_is_drawn_uniformly_in_its_logarithm() -> None:
    camera = draw_camera(20_000, (1e-4, 1e-2), torch.Generator().manual_seed(0))
    logs = camera.shot.log10()
    assert logs.min() >= -4.001
    assert logs.max() <= -1.999
    assert logs.mean().item() == pytest.approx(-3, abs=0.02)
    # Brooks et al. 2019: ln read = 2.18 ln shot + 1.20, standard deviation 0.26.
    rest = camera.read.log() - 2.18 * camera.shot.log() - 1.2
    assert rest.mean().abs() < 0.01
    assert rest.std().item() == pytest.approx(0.26, rel=0.03)
