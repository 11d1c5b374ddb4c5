"""JPEG at any quality, on tensors: what libjpeg would make of a picture, without a file.

Colour is halved in both directions (4:2:0), as cameras and most programs do. Numbers are rounded where libjpeg rounds
them, so that the result is libjpeg's but for its integer cosine transform: tests hold it against Pillow.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

# ITU-T T.81, annex K.1, in reading order: luminance, chrominance.
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# JFIF's YCbCr of RGB.
_TO_YCC = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))
# A unit of 4:2:0: two blocks of luminance each way.
UNIT = 16


def compressed(
    pixels: Float[Tensor, "b 3 h w"], quality: Float[Tensor, " b"], corner: tuple[int, int] = (0, 0)
) -> Float[Tensor, "b 3 h w"]:
    """Pixels as they come back from a JPEG of this quality.

    Args:
        pixels: in [0, 255]; they are rounded first.
        quality: 1..100 of each image, as libjpeg means it; fractions are allowed.
        corner: rows and columns by which the grid of blocks begins before the picture's corner, 0..15: a window
            of a larger picture does not begin where a block does.
    """
    h, w = pixels.shape[-2:]
    top, left = corner
    down, right = -(h + top) % UNIT, -(w + left) % UNIT
    x = F.pad(pixels.round().clamp(0, 255), (left, right, top, down), mode="replicate")
    ycc = _colors(x, _TO_YCC)
    ycc[:, 1:] += 128
    ycc = ycc.round().clamp_(0, 255)
    chroma = F.avg_pool2d(ycc[:, 1:], 2).round()
    luma = _quantized(ycc[:, :1], _table(_LUMINANCE, quality))
    chroma = _quantized(chroma, _table(_CHROMINANCE, quality))
    # libjpeg's "fancy upsampling": 3/4 of the nearer and 1/4 of the farther sample, each way.
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False).round() - 128
    rgb = _colors(torch.cat([luma, chroma], dim=1), _TO_RGB).round().clamp_(0, 255)
    return rgb[..., top : top + h, left : left + w]


def _colors(x: Float[Tensor, "b 3 h w"], matrix: tuple[tuple[float, ...], ...]) -> Float[Tensor, "b 3 h w"]:
    return torch.einsum("rc,bchw->brhw", torch.tensor(matrix, dtype=x.dtype, device=x.device), x)


def _table(base: tuple[tuple[int, ...], ...], quality: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1 8 8"]:
    """Steps of quantisation, as jpeg_set_quality scales them."""
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)[:, None, None]
    table = ((torch.tensor(base, dtype=quality.dtype, device=quality.device) * scale + 50) / 100).floor().clamp(1, 255)
    return table[:, None, None, None]


def _quantized(x: Float[Tensor, "b c h w"], table: Float[Tensor, "b 1 1 1 8 8"]) -> Float[Tensor, "b c h w"]:
    """Each block of 8x8 through the cosine transform, to whole multiples of the table's steps, and back."""
    b, c, h, w = x.shape
    blocks = x.reshape(b, c, h // 8, 8, w // 8, 8).transpose(3, 4) - 128
    cosines = _cosines(x)
    coefficients = cosines @ blocks @ cosines.T
    blocks = cosines.T @ ((coefficients / table).round() * table) @ cosines
    return (blocks.transpose(3, 4).reshape(b, c, h, w) + 128).round().clamp_(0, 255)


def _cosines(like: Tensor) -> Float[Tensor, "8 8"]:
    """The orthonormal cosine transform of eight values: frequencies by places."""
    k, n = torch.arange(8.0)[:, None], torch.arange(8.0)
    rows = torch.cos(math.pi * (2 * n + 1) * k / 16) / 2
    rows[0] /= math.sqrt(2)
    return rows.to(like)
