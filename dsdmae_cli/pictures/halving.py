"""Pictures at half their size, and what was changed there brought back. No torch here."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int64, Shaped, UInt16

_ROWS = 512
_FULL = 65535


def halved(pixels: Shaped[np.ndarray, "h w c"]) -> UInt16[np.ndarray, "h2 w2 c"]:
    """Means of 2x2 pixels of 8 or 16 bits, in 16 bits whatever they were, so that nothing is rounded away.

    An odd last row or column is taken twice.
    """
    height, width, channels = pixels.shape
    result = np.empty(((height + 1) // 2, (width + 1) // 2, channels), np.uint16)
    scale = np.float32(_FULL / np.iinfo(pixels.dtype).max / 4)
    for top in range(0, height, _ROWS):
        band = pixels[top : top + _ROWS].astype(np.float32)
        band = np.pad(band, ((0, band.shape[0] % 2), (0, width % 2), (0, 0)), mode="edge")
        sums = band[0::2, 0::2] + band[0::2, 1::2] + band[1::2, 0::2] + band[1::2, 1::2]
        result[top // 2 : top // 2 + len(sums)] = np.rint(sums * scale)
    return result


def add_enlarged(
    pixels: Shaped[np.ndarray, "h w c"],
    before: UInt16[np.ndarray, "h2 w2 c"],
    after: UInt16[np.ndarray, "h2 w2 c"],
    scale: float,
) -> None:
    """Add scale x (after - before), enlarged to twice its size (bilinear, half-pixel centres), in place.

    Args:
        pixels: of 8 or 16 bits; the results are rounded and cut to their range.
        before, after: of `halved`'s size for these pixels.
    """
    height, width, _ = pixels.shape
    peak = np.iinfo(pixels.dtype).max
    lefts, rights, right_share = _between(np.arange(width), before.shape[1])
    for top in range(0, height, _ROWS):
        rows = slice(top, min(height, top + _ROWS))
        uppers, lowers, lower_share = _between(np.arange(rows.start, rows.stop), before.shape[0])
        first = uppers[0]
        seen = slice(first, lowers[-1] + 1)
        changed = (after[seen].astype(np.float32) - before[seen]) * np.float32(scale)
        changed = _mixed(changed[uppers - first], changed[lowers - first], lower_share[:, None, None])
        changed = _mixed(changed[:, lefts], changed[:, rights], right_share[None, :, None])
        pixels[rows] = np.rint(pixels[rows] + changed).clip(0, peak).astype(pixels.dtype)


def _between(
    places: Int64[np.ndarray, " n"], length: int
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """The two of `length` half-size pixels that each of these pixels lies between, and the share of the second."""
    centers = (places + 0.5) / 2 - 0.5
    first = np.floor(centers)
    share = (centers - first).astype(np.float32)
    return first.astype(int).clip(0, length - 1), (first.astype(int) + 1).clip(0, length - 1), share


def _mixed(one: np.ndarray, other: np.ndarray, share: np.ndarray) -> np.ndarray:
    mixed: np.ndarray = one + share * (other - one)
    return mixed
