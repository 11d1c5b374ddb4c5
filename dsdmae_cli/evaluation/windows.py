"""Pictures of any size under a network's window: scaled, cut into windows that overlap, and their answers put together.

A picture is scaled until it covers the window (`fit`), or by a given factor; windows of the network's size then lie
over it at even steps, and where they overlap their scores are averaged (DINOv2's segmentation slides so).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dsdmae_cli.data.square import resized
from dsdmae_cli.settings.size import as_size

# A picture that is hardly larger than the window in one direction is squeezed into it: nobody sees a fiftieth.
_SQUEEZED = 1.02
# Scores of pixels that are in memory at a time, 64 MiB.
_MOST_SCORES = 2**24


@dataclass(frozen=True)
class Frame:
    """How a picture lies under windows.

    Attributes:
        size: (height, width) of the scaled picture.
        window: (height, width) of each window.
        corners: (top, left) of the windows.
    """

    size: tuple[int, int]
    window: tuple[int, int]
    corners: tuple[tuple[int, int], ...]


def frame(size: tuple[int, int], window: tuple[int, int], scale: float | None, stride: float) -> Frame:
    """The windows over a picture of (height, width) pixels.

    Args:
        scale: of the picture; None = until it just covers the window. A picture is never scaled to less than that.
        stride: largest step between windows, as a share of the window's side.
    """
    fit = max(own / side for own, side in zip(window, size, strict=True))
    factor = fit if scale is None else max(scale, fit)
    scaled = [_side(side * factor, own) for side, own in zip(size, window, strict=True)]
    tops, lefts = (_starts(side, own, stride) for side, own in zip(scaled, window, strict=True))
    return Frame((scaled[0], scaled[1]), window, tuple((top, left) for top in tops for left in lefts))


def _side(wanted: float, window: int) -> int:
    return window if wanted <= _SQUEEZED * window else round(wanted)


def _starts(side: int, window: int, stride: float) -> list[int]:
    """Even steps, none larger than the stride, that end at the far edge."""
    number = 1 + math.ceil((side - window) / max(1, int(window * stride)))
    return [round(start) for start in np.linspace(0, side - window, number).tolist()]


def cut_image(pixels: UInt8[np.ndarray, "h w c"], frame: Frame) -> list[UInt8[np.ndarray, "_ _ c"]]:
    """The picture's windows; it is scaled bicubically, antialiased."""
    if pixels.shape[:2] != frame.size:
        pixels = resized(pixels, as_size(*frame.size), Image.Resampling.BICUBIC)
    return [pixels[top : top + frame.window[0], left : left + frame.window[1]] for top, left in frame.corners]


def cut_mask(mask: UInt8[np.ndarray, "h w"], frame: Frame) -> list[UInt8[np.ndarray, "_ _"]]:
    """The mask's windows; it is scaled by its nearest pixels."""
    scaled = nearest(mask, frame.size)
    return [scaled[top : top + frame.window[0], left : left + frame.window[1]] for top, left in frame.corners]


def nearest(mask: UInt8[np.ndarray, "h w"], size: tuple[int, int]) -> UInt8[np.ndarray, "_ _"]:
    """A mask of another (height, width): the pixel under the middle of each new one."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64) for new, old in zip(size, mask.shape, strict=True)
    )
    return mask[rows[:, None], columns]


def labels_of(
    scores: Float[Tensor, "n rows columns c"], frame: Frame, size: tuple[int, int], most: int = _MOST_SCORES
) -> UInt8[Tensor, "{size[0]} {size[1]}"]:
    """The class of every pixel of a picture: the largest of its scores, brought there bilinearly from those of its
    windows' patches.

    As many rows at a time as have at most `most` scores: those of a photograph of 24 megapixels and a hundred classes
    would be 10 GB.

    Args:
        size: (height, width) of the mask.
    """
    near = put_together(scores, frame)
    (classes, have, _), (height, width) = near.shape, size
    labels = torch.empty(size, dtype=torch.uint8, device=near.device)
    band = max(1, most // (classes * width))
    for first in range(0, height, band):
        rows = torch.arange(first, min(first + band, height), device=near.device)
        at = ((rows + 0.5) * (have / height) - 0.5).clamp(0, have - 1)
        above = at.long()
        below = (above + 1).clamp(max=have - 1)
        low, high = int(above[0]), int(below[-1]) + 1
        wide = F.interpolate(near[None, :, low:high], (high - low, width), mode="bilinear", align_corners=False)[0]
        mixed = torch.lerp(wide[:, above - low], wide[:, below - low], (at - above)[None, :, None])
        labels[first : first + band] = mixed.argmax(dim=0)
    return labels


def put_together(scores: Float[Tensor, "n rows columns c"], frame: Frame) -> Float[Tensor, "c _ _"]:
    """Scores over a whole picture, as finely as its windows say: those of one window are its patches'; of several, each
    window's are brought to the pixels of the scaled picture and averaged where they overlap.
    """
    grids = scores.movedim(3, 1).float()
    if len(frame.corners) == 1:
        return grids[0]
    total = grids.new_zeros(grids.shape[1], *frame.size)
    times = grids.new_zeros(frame.size)
    for grid, (top, left) in zip(grids, frame.corners, strict=True):
        here = np.s_[top : top + frame.window[0], left : left + frame.window[1]]
        pixels = F.interpolate(grid[None], frame.window, mode="bilinear", align_corners=False)[0]
        total[:, here[0], here[1]] += pixels
        times[here] += 1
    return total / times
