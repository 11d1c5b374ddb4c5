"""Where an encoder looks, as a picture: images in a row, below each the attention of all heads and of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from dsdmae_cli.figures.moments import fitted, sheet, visible
from dsdmae_cli.files import aside

_TILE = 96
_MOST_HEADS = 6
MOST_IMAGES = 8


def attention(
    images: UInt8[np.ndarray, "n h w c"], maps: Float[np.ndarray, "n heads rows columns"], path: Path
) -> None:
    """Draw a few images and where each is looked at, from dark (least) to bright (most), patch by patch.

    Args:
        images: 8 at most are drawn.
    """
    images, maps = images[:MOST_IMAGES], maps[:MOST_IMAGES]
    tiles = [_tile(Image.fromarray(np.ascontiguousarray(_seen(image)))) for image in images]
    rows = [("image", tiles), ("all heads", [_heat(of.mean(axis=0), tiles[0].size) for of in maps])]
    shown = range(min(maps.shape[1], _MOST_HEADS))
    rows += [
        (f"head {head + 1}\nof {maps.shape[1]}", [_heat(of[head], tiles[0].size) for of in maps]) for head in shown
    ]
    with aside(path) as partial:
        sheet(rows).save(partial, format="PNG")


def _seen(image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
    return np.moveaxis(visible(np.moveaxis(image, 2, 0)), 0, 2)


def _tile(image: Image.Image) -> Image.Image:
    return fitted(image, _TILE, Image.Resampling.LANCZOS if max(image.size) > _TILE else Image.Resampling.NEAREST)


def _heat(values: Float[np.ndarray, "rows columns"], size: tuple[int, int]) -> Image.Image:
    from matplotlib import colormaps

    low, high = float(values.min()), float(values.max())
    share = (values - low) / (high - low) if high > low else np.zeros_like(values)
    colours = (colormaps["inferno"](share)[..., :3] * 255).round().astype(np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.NEAREST)
