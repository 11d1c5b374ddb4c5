"""Histograms of oriented gradients as MaskFeat (Wei et al. 2022, arXiv:2112.09133) predicts them, for any patch size.

Per channel: Sobel gradients with reflected borders; nine bins of unsigned direction, each pixel in one bin with the
length of its gradient, weighted by a Gaussian around the middle of its patch; sums over cells; each cell's histogram
has unit length. docs/methods/maskfeat.md compares it with the public code and with other HOGs.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

BINS = 9


def cells_per_patch(patch: tuple[int, int]) -> tuple[int, int]:
    """2x2 cells where they have at least 2 pixels (8x8 of a 16x16 patch, as in the paper), else the patch itself."""
    rows, columns = (2 if side >= 4 and side % 2 == 0 else 1 for side in patch)
    return rows, columns


def hog_features(patch: tuple[int, int], channels: int = 3) -> int:
    """Features per patch: channels x bins x cells."""
    rows, columns = cells_per_patch(patch)
    return channels * BINS * rows * columns


@torch.no_grad()
def hog(images: Float[Tensor, "b c h w"], patch: tuple[int, int], gaussian: bool = True) -> Float[Tensor, "b t f"]:
    """The histograms of each patch, flattened as (channel, bin, cell row, cell column).

    Args:
        images: of any scale and offset, which do not change the result; sides are multiples of the patch's.
        patch: (height, width) of a patch in pixels.
        gaussian: weight each pixel by a Gaussian centred on its patch, with half the patch as standard deviation.
    """
    b, c, h, w = images.shape
    x = images if images.dtype == torch.float64 else images.float()
    down, across = _sobel(x)
    magnitude = (down.square() + across.square()).sqrt()
    if gaussian:
        magnitude = magnitude * _window(patch, x).repeat(h // patch[0], w // patch[1])
    bins = (torch.atan2(across, down) / math.pi * BINS).floor().remainder(BINS)
    cells = cells_per_patch(patch)
    cell = (patch[0] // cells[0], patch[1] // cells[1])
    # One pass a bin, and no scatter: sums by atomic additions on a GPU are not the same twice.
    sums = [
        torch.where(bins == k, magnitude, 0).reshape(b, c, h // cell[0], cell[0], w // cell[1], cell[1]).sum((3, 5))
        for k in range(BINS)
    ]
    histograms = F.normalize(torch.stack(sums, dim=2), dim=2)
    split = histograms.reshape(b, c, BINS, h // patch[0], cells[0], w // patch[1], cells[1])
    return split.permute(0, 3, 5, 1, 2, 4, 6).reshape(b, (h // patch[0]) * (w // patch[1]), -1)


def _sobel(x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients along rows and columns.

    Differences come first, so that the gradient of equal pixels is zero to the last bit: a convolution leaves a
    rounding error there, whose sign would decide between the first and the last bin.
    """
    x = F.pad(x, (1, 1, 1, 1), mode="reflect")
    vertical = x[..., 2:, :] - x[..., :-2, :]
    horizontal = x[..., :, 2:] - x[..., :, :-2]
    down = vertical[..., :-2] + 2 * vertical[..., 1:-1] + vertical[..., 2:]
    across = horizontal[..., :-2, :] + 2 * horizontal[..., 1:-1, :] + horizontal[..., 2:, :]
    return down, across


def _window(patch: tuple[int, int], like: Tensor) -> Tensor:
    sides = []
    for side in patch:
        offset = torch.arange(side, dtype=like.dtype, device=like.device) - (side - 1) / 2
        sides.append((-0.5 * (offset / (side / 2)).square()).exp())
    return torch.outer(*sides)


def hog_picture(
    features: Float[Tensor, "b t f"], grid: tuple[int, int], patch: tuple[int, int], cell: int = 8
) -> Float[Tensor, "b 3 h w"]:
    """Histograms as a person reads them: in each cell a grey line along the edge for each bin, as bright as the bin.

    Args:
        features: as `hog` gives them; channels are averaged.
        cell: side of a cell in the picture, in pixels.

    Returns:
        Pictures in [-1, 1].
    """
    b, cells = len(features), cells_per_patch(patch)
    values = features.float().reshape(b, *grid, -1, BINS, *cells).mean(dim=3).clamp(0, 1)
    values = values.permute(0, 3, 1, 4, 2, 5).reshape(b, BINS, grid[0] * cells[0], grid[1] * cells[1])
    lines = _lines(cell, features.device)
    drawn = torch.einsum("bkyx,kij->byixj", values, lines).clamp(max=1)
    page = drawn.reshape(b, 1, values.shape[2] * cell, values.shape[3] * cell)
    return (2 * page - 1).expand(-1, 3, -1, -1)


def _lines(cell: int, device: torch.device) -> Tensor:
    """[bins, cell, cell]: a line through the middle, across the mean gradient direction of each bin."""
    offset = torch.arange(cell, device=device) - (cell - 1) / 2
    angle = (torch.arange(BINS, device=device) + 0.5) * math.pi / BINS  # of atan2(across, down)
    # Distance of a pixel from the line: its offset along the gradient.
    distance = angle.cos()[:, None, None] * offset[:, None] + angle.sin()[:, None, None] * offset
    return (1.1 - distance.abs()).clamp(0, 1)
