"""Noise in the brightness of colour pictures alone. No torch here.

JPEG stores colour coarsely and cameras smooth it, so that what noise is left is the same in red, green and blue. A
network for colour, which has learned from noise that differs between them, takes it for something depicted. Brightness
alone goes through it as a grey picture does (pictures/restore.py), and the difference goes back into all three.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Shaped, UInt16

_ROWS = 512
_FULL = 65535


def brightness(pixels: Shaped[np.ndarray, "h w 3"]) -> UInt16[np.ndarray, "h w 1"]:
    """The mean of three colours of 8 or 16 bits, in 16 bits whatever they were, so that nothing is rounded away."""
    result = np.empty((*pixels.shape[:2], 1), np.uint16)
    scale = np.float32(_FULL / np.iinfo(pixels.dtype).max / 3)
    for top in range(0, len(pixels), _ROWS):
        rows = slice(top, top + _ROWS)
        total = pixels[rows, :, 0].astype(np.float32)  # a sum over an axis of three takes four times as long
        for channel in (1, 2):
            total += pixels[rows, :, channel]
        result[rows, :, 0] = np.rint(total * scale)
    return result


def add_brightness(
    pixels: Shaped[np.ndarray, "h w 3"], before: UInt16[np.ndarray, "h w 1"], after: UInt16[np.ndarray, "h w 1"]
) -> None:
    """Add after - before to each colour, in place; results are rounded and cut to the range of the pixels."""
    peak = np.iinfo(pixels.dtype).max
    scale = np.float32(peak / _FULL)
    for top in range(0, len(pixels), _ROWS):
        rows = slice(top, top + _ROWS)
        changed = (after[rows].astype(np.float32) - before[rows]) * scale
        pixels[rows] = np.rint(pixels[rows] + changed).clip(0, peak).astype(pixels.dtype)
