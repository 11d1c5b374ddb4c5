"""Noise that is coarser than a network sees. No torch here.

Cameras blur noise, and what their own noise reduction leaves of it lies in blotches wider than what a small network
looks at: three quarters of the squared error of the denoiser that ships lay in what half the size shows (docs/log.md).
So the network looks at the picture at a half and a quarter of its size too, where blotches are small, and what is
visible there becomes the mean of what both sizes say.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Shaped, UInt16
from PIL import Image

from dsdmae_cli.pictures.halving import halved

# Where both sizes have an answer, that of the smaller one counts this much.
_SHARE = 0.5
_SIZES = 2
_ROWS = 512
_FULL = 65535
# Rows of the smaller picture that bicubic interpolation sees beside those that it is asked for.
_BESIDE = 2

Restore = Callable[[UInt16[np.ndarray, "h w c"]], UInt16[np.ndarray, "h w c"]]


def sizes(height: int, width: int, least: int) -> list[tuple[int, int]]:
    """(height, width) of the smaller pictures that are looked at: none with a side below `least` pixels."""
    found: list[tuple[int, int]] = []
    while len(found) < _SIZES and min(height, width) > 2 * (least - 1):
        height, width = (height + 1) // 2, (width + 1) // 2
        found.append((height, width))
    return found


def add_coarser(
    given: Shaped[np.ndarray, "h w c"], restored: Shaped[np.ndarray, "h w c"], colors: int, restore: Restore, least: int
) -> None:
    """Mix into a restored picture, in place, what the smaller pictures say; rounded and cut to the range of the pixels.

    Args:
        given: of 8 or 16 bits, as `restored`.
        colors: channels that are changed, the first ones.
        restore: a picture without its noise, by the same network.
        least: no smaller picture with a side below it is looked at.
    """
    _add(given, restored, colors, restore, len(sizes(given.shape[0], given.shape[1], least)))


def _add(given: np.ndarray, restored: np.ndarray, colors: int, restore: Restore, more: int) -> None:
    if not more:
        return
    small = halved(given)
    answer = restore(small)
    _add(small, answer, colors, restore, more - 1)
    del small
    _mix(restored[..., :colors], answer[..., :colors])


def _mix(restored: Shaped[np.ndarray, "h w c"], answer: UInt16[np.ndarray, "h2 w2 c"]) -> None:
    height, width, channels = restored.shape
    peak = np.iinfo(restored.dtype).max
    scale = np.float32(_SHARE * peak / _FULL)
    before = halved(restored)
    for top in range(0, height, _ROWS):
        rows = slice(top, min(top + _ROWS, height))
        first = max(0, top // 2 - _BESIDE)
        near = slice(first, (rows.stop + 1) // 2 + _BESIDE)
        change = (answer[near].astype(np.float32) - before[near]) * scale
        box = (0.0, top / 2 - first, width / 2, rows.stop / 2 - first)
        for channel in range(channels):
            values = restored[rows, :, channel] + _enlarged(change[..., channel], width, rows.stop - top, box)
            restored[rows, :, channel] = np.rint(values).clip(0, peak)


def _enlarged(
    change: Float32[np.ndarray, "h2 w2"], width: int, height: int, box: tuple[float, float, float, float]
) -> Float32[np.ndarray, "h w"]:
    small = Image.fromarray(np.ascontiguousarray(change))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC, box))
