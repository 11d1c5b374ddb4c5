"""How much noise a picture carries, judged from the picture alone. No torch here.

Noise is loudest, next to what is depicted, in the diagonal detail of the finest Haar wavelet; Donoho & Johnstone (1994,
"Ideal spatial adaptation by wavelet shrinkage") take the median of its magnitudes over the picture. Half of a
photograph may be texture, though. So the picture is cut into blocks (Olsen 1993, "Estimation of noise in images: an
evaluation"), and the calmest tenth of them decides; on 40 clean photographs that halves the level that texture mimics.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Int32, UInt8, UInt16

BLOCK = 16
_CALM = 0.1
# What the calmest tenth of blocks of pure Gaussian noise says of σ = 1, so that noise itself is judged rightly.
_CALM_OF_NOISE = 0.926
# A block of which more lies at black or white than this has lost its noise to clipping; where nearly all have, the
# least clipped fifth must do.
_CLIPPED = 0.1
_LEAST_CLIPPED = 0.2
# Rows that are looked at together: no more than so many, and so many pixels, which take 36 bytes each.
_ROWS, _PIXELS = 64 * BLOCK, 1 << 21


def rows_of(width: int) -> int:
    """How many rows of a picture are looked at together: whole blocks."""
    return min(_ROWS, max(BLOCK, _PIXELS // width // BLOCK * BLOCK))


def noise_level(pixels: UInt8[np.ndarray, "h w c"] | UInt16[np.ndarray, "h w c"]) -> float:
    """Standard deviation of additive white Gaussian noise, mean over channels, in units of 1/255 of the full range.

    Noise that was smoothed, by JPEG or by a camera, is underestimated; a picture that is texture everywhere is said to
    carry some. Zero where everything is clipped, or the picture has less than two rows or columns.
    """
    height, width, channels = pixels.shape
    if min(height, width) < 2:
        return 0.0
    peak = np.iinfo(pixels.dtype).max
    levels, rows = [], rows_of(width)
    for channel in range(channels):
        blocks = [_block_levels(pixels[top : top + rows + 1, :, channel], peak) for top in range(0, height - 1, rows)]
        levels.append(_calmest(np.concatenate(blocks, axis=1)))
    return float(np.mean(levels)) * 255 / peak


def color_noise_level(pixels: UInt8[np.ndarray, "h w 3"] | UInt16[np.ndarray, "h w 3"]) -> float:
    """The same of noise that is independent in each colour, by what red and blue differ from green.

    What is depicted is much the same in all colours at the finest scale, so that texture is not taken for noise; noise
    that is the same in all colours, and noise whose colour JPEG has taken, is not seen.
    """
    height, width, _ = pixels.shape
    if min(height, width) < 2:
        return 0.0
    peak = np.iinfo(pixels.dtype).max
    levels, rows = [], rows_of(width)
    for channel in (0, 2):
        blocks = []
        for top in range(0, height - 1, rows):
            band = pixels[top : top + rows + 1]
            extreme = (band[..., channel] % peak == 0) | (band[..., 1] % peak == 0)
            blocks.append(_levels(band[..., channel].astype(np.int32) - band[..., 1], extreme))
        levels.append(_calmest(np.concatenate(blocks, axis=1)) / np.sqrt(2))
    return float(np.mean(levels)) * 255 / peak


def _calmest(blocks: Float64[np.ndarray, "2 blocks"]) -> float:
    """σ by the calmest tenth of blocks that are not clipped."""
    level, lost = blocks
    known = (lost <= max(_CLIPPED, np.quantile(lost, _LEAST_CLIPPED))) & (lost < 1)
    return float(np.quantile(level[known], _CALM)) / _CALM_OF_NOISE if known.any() else 0.0


def _block_levels(
    values: UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"], peak: int
) -> Float64[np.ndarray, "2 blocks"]:
    """σ as each block of some rows has it, and the share of the block that is clipped."""
    return _levels(values.astype(np.int32), (values == 0) | (values == peak))


def _levels(x: Int32[np.ndarray, "h w"], clipped: Bool[np.ndarray, "h w"]) -> Float64[np.ndarray, "2 blocks"]:
    detail = np.abs(x[:-1, :-1] - x[:-1, 1:] - x[1:, :-1] + x[1:, 1:]) / 2
    clipped = clipped[:-1, :-1] | clipped[:-1, 1:] | clipped[1:, :-1] | clipped[1:, 1:]
    rows = np.arange(0, max(1, detail.shape[0] - BLOCK + 1), BLOCK)
    columns = np.arange(0, max(1, detail.shape[1] - BLOCK + 1), BLOCK)

    def totals(of: np.ndarray) -> np.ndarray:
        return np.add.reduceat(np.add.reduceat(of, rows, axis=0), columns, axis=1).ravel()

    count, lost = totals(np.ones_like(detail)), totals(clipped.astype(np.float64))
    # Of Gaussian detail |d| the mean is σ sqrt(2/π).
    level = totals(np.where(clipped, 0, detail)) / np.maximum(count - lost, 1) * np.sqrt(np.pi / 2)
    return np.stack([level, lost / count])
