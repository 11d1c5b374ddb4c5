"""Pictures at half their size. No torch here."""

from __future__ import annotations

import numpy as np
from jaxtyping import Shaped, UInt16

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
