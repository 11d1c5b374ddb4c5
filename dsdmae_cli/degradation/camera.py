"""A picture taken back to the sensor, made noisy there, and developed again.

Brooks et al. 2019 ("Unprocessing images for learned raw denoising", arXiv:1811.11127) gave the way and the law of the
noise: light in a sensel is counted, so that its variance grows with it. One colour of three is measured in a sensel;
the others are made of its neighbours' by Malvar, He & Cutler's linear filters (ICASSP 2004), which spreads the noise
over places and colours. White balance and the matrix from the camera's colours to ours make it louder, each colour
in its own way. So a camera's noise is neither equal everywhere, nor independent from pixel to pixel and from colour to
colour, which is what white noise is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Generator, Tensor
from torch.nn import functional as F

# Of Brooks et al.: ln read variance = slope ln shot + offset, give or take.
_READ_SLOPE, _READ_OFFSET, _READ_SPREAD = 2.18, 1.2, 0.26
_RED_GAIN, _BLUE_GAIN = (1.2, 2.4), (1.2, 2.4)
# Largest share that a colour takes from one of the two others; rows of the matrix sum to one, so that grey stays grey.
_CROSSTALK = 0.45

# Malvar, He & Cutler 2004, figure 2, in eighths.
_GREEN = ((0, 0, -1, 0, 0), (0, 0, 2, 0, 0), (-1, 2, 4, 2, -1), (0, 0, 2, 0, 0), (0, 0, -1, 0, 0))
_BESIDE = ((0, 0, 0.5, 0, 0), (0, -1, 0, -1, 0), (-1, 4, 5, 4, -1), (0, -1, 0, -1, 0), (0, 0, 0.5, 0, 0))
_ACROSS = ((0, 0, -1.5, 0, 0), (0, 2, 0, 2, 0), (-1.5, 0, 6, 0, -1.5), (0, 2, 0, 2, 0), (0, 0, -1.5, 0, 0))


@dataclass(frozen=True)
class Camera:
    """What a picture of each image was taken with.

    Attributes:
        gains: white balance, of red, green and blue.
        matrix: from the camera's colours to linear sRGB.
        shot, read: variance of a sensel is shot x light + read, for light from 0 to 1.
        phase: row and column of the pattern's first red sensel.
    """

    gains: Float[Tensor, "b 3"]
    matrix: Float[Tensor, "b 3 3"]
    shot: Float[Tensor, " b"]
    read: Float[Tensor, " b"]
    phase: Int64[Tensor, "b 2"]


def draw_camera(batch: int, shot: tuple[float, float], generator: Generator) -> Camera:
    """A camera for each image.

    Args:
        shot: smallest and largest variance of full light, uniform in its logarithm.
    """
    device = generator.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, device=device)

    green = torch.ones(batch, device=device)
    gains = torch.stack([uniform(*_RED_GAIN, batch), green, uniform(*_BLUE_GAIN, batch)], dim=1)
    off = uniform(0, _CROSSTALK, batch, 3, 3) * (1 - torch.eye(3, device=device))
    matrix = torch.diag_embed(1 + off.sum(dim=2)) - off
    log_shot = uniform(math.log(shot[0]), math.log(shot[1]), batch)
    spread = torch.randn(batch, generator=generator, device=device)
    read = (_READ_SLOPE * log_shot + _READ_OFFSET + _READ_SPREAD * spread).exp()
    phase = torch.randint(0, 2, (batch, 2), generator=generator, device=device)
    return Camera(gains, matrix, log_shot.exp(), read, phase)


def sensor_noise(pixels: Float[Tensor, "b 3 h w"], camera: Camera, generator: Generator) -> Float[Tensor, "b 3 h w"]:
    """What the sensor's noise adds to the developed picture: the difference between it with noise and without.

    The errors that the filters make without any noise are left out: they are those of one plain method, larger than
    what cameras make, and on sharp small pictures larger than the noise.

    Args:
        pixels: of sRGB in [0, 1]; at least 3x3.
    """
    gains = camera.gains[:, :, None, None]
    # Such matrices have an inverse without negative entries; inv_ex does not wait for the device to say so.
    inverse = torch.linalg.inv_ex(camera.matrix).inverse
    light = torch.einsum("brc,bchw->brhw", inverse, to_linear(pixels))
    mosaic, gain, red, blue = _mosaic(light, gains, camera.phase)
    variance = camera.shot[:, None, None, None] * mosaic / gain + camera.read[:, None, None, None]
    noise = gain * variance.clamp(min=0).sqrt() * torch.randn(mosaic.shape, generator=generator, device=mosaic.device)

    # White balance comes before demosaicing, as in cameras: the filters count on colours that vary alike.
    def developed(mosaic: Tensor) -> Tensor:
        return developed_from(demosaiced(mosaic, red, blue), camera.matrix)

    return developed(mosaic + noise) - developed(mosaic)


def developed_from(light: Float[Tensor, "b 3 h w"], matrix: Float[Tensor, "b 3 3"]) -> Float[Tensor, "b 3 h w"]:
    """sRGB in [0, 1] of a camera's own light, what is out of range cut off before and after the matrix."""
    return to_srgb(torch.einsum("brc,bchw->brhw", matrix, light.clamp(0, 1)).clamp(0, 1))


def to_linear(pixels: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """Light of sRGB values in [0, 1] (IEC 61966-2-1)."""
    return torch.where(pixels <= 0.04045, pixels / 12.92, ((pixels.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)


def to_srgb(light: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """The inverse of `to_linear`."""
    low = 0.0031308
    return torch.where(light <= low, 12.92 * light, 1.055 * light.clamp(min=low) ** (1 / 2.4) - 0.055)


def _mosaic(
    light: Float[Tensor, "b 3 h w"], gains: Float[Tensor, "b 3 1 1"], phase: Int64[Tensor, "b 2"]
) -> tuple[Float[Tensor, "b 1 h w"], Float[Tensor, "b 1 h w"], Bool[Tensor, "b 1 h w"], Bool[Tensor, "b 1 h w"]]:
    """The colour of each sensel behind a Bayer pattern, its gain, and where red and blue ones are."""
    h, w = light.shape[-2:]
    rows = (torch.arange(h, device=light.device) + phase[:, :1]) % 2 == 0
    columns = (torch.arange(w, device=light.device) + phase[:, 1:]) % 2 == 0
    red = (rows[:, :, None] & columns[:, None, :])[:, None]
    blue = (~rows[:, :, None] & ~columns[:, None, :])[:, None]

    def picked(colors: Tensor) -> Tensor:
        return torch.where(red, colors[:, :1], torch.where(blue, colors[:, 2:], colors[:, 1:2]))

    return picked(light), picked(gains), red, blue


def demosaiced(
    mosaic: Float[Tensor, "b 1 h w"], red: Bool[Tensor, "b 1 h w"], blue: Bool[Tensor, "b 1 h w"]
) -> Float[Tensor, "b 3 h w"]:
    """All three colours everywhere, by Malvar, He & Cutler's filters; edges are mirrored.

    Args:
        red, blue: True where the sensel measures that colour; the others measure green.
    """
    beside = torch.tensor(_BESIDE)
    filters = torch.stack([torch.tensor(_GREEN), beside, beside.T, torch.tensor(_ACROSS)]).to(mosaic)[:, None] / 8
    with torch.autocast(mosaic.device.type, enabled=False):
        guesses = F.conv2d(F.pad(mosaic, (2, 2, 2, 2), mode="reflect"), filters)
    green, in_row, in_column, across = guesses.split(1, dim=1)
    # Green sensels of a red row have red neighbours beside them, those of a blue row above and below.
    red_row = red.any(dim=3, keepdim=True)

    def color(here: Tensor, other: Tensor, own_row: Tensor) -> Tensor:
        return torch.where(here, mosaic, torch.where(other, across, torch.where(own_row, in_row, in_column)))

    return torch.cat(
        [color(red, blue, red_row), torch.where(red | blue, green, mosaic), color(blue, red, ~red_row)], dim=1
    )
