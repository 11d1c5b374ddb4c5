"""The paper's noise on a picture, by the functions that pre-training uses: with torch, whichever engine restores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dsdmae_cli import corruption as C
from dsdmae_cli.data.source import derive_seed, seeded
from dsdmae_cli.pictures.picture import Picture


@dataclass(frozen=True)
class Corruption:
    """The paper's noise: Gaussian, of this σ for pixels in [-1, 1], on a share of the patches."""

    ratio: float
    std: float
    seed: int


_CORRUPTED_ROWS = 64


def corrupted(picture: Picture, how: Corruption, patch: tuple[int, int]) -> Picture:
    """The picture with noise on `ratio` of its patches, rounded and clipped as a file must be; alpha is as it was."""
    generator = seeded(torch.device("cpu"), derive_seed(how.seed, "corrupt"))
    rows, columns = -(-picture.height // patch[0]), -(-picture.width // patch[1])
    count = C.num_masked(how.ratio, rows * columns, generator)
    ids, _ = C.random_ids(1, rows * columns, count, generator)
    noisy = C.ids_to_mask(ids, rows * columns).reshape(1, rows, columns)
    result, half = picture.pixels.copy(), picture.peak / 2
    for row in range(0, rows, _CORRUPTED_ROWS):
        mask = noisy[:, row : row + _CORRUPTED_ROWS]
        spread = C.mask_to_pixels(mask.flatten(1), patch, (mask.shape[1], columns))
        band = result[row * patch[0] : (row + _CORRUPTED_ROWS) * patch[0], :, : picture.num_colors]
        x = torch.from_numpy(band.astype(np.float32)).permute(2, 0, 1).unsqueeze(0) / half - 1
        x = C.add_noise(x, spread[..., : x.shape[2], : x.shape[3]], how.std, "add", generator)
        values = ((x[0].permute(1, 2, 0) + 1) * half).round().clamp(0, picture.peak)
        band[...] = values.numpy().astype(result.dtype)
    return picture.with_pixels(result)
