"""What patches know, as a picture: images in a row, and below each a colour for every patch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from dsdmae_cli.figures.moments import fitted, visible
from dsdmae_cli.figures.sheet import sheet
from dsdmae_cli.files import aside

# Of a picture on the page, its longer side in pixels.
_TILE = 224
_FRAME = (255, 40, 40)

Patch = tuple[int, int]


def patches(
    images: Sequence[UInt8[np.ndarray, "h w c"]],
    rows: Sequence[tuple[str, Float[np.ndarray, "n rows columns 3"]]],
    path: Path,
    framed: Sequence[Patch | None] = (),
    advice: str = "",
) -> None:
    """Draw images, and rows of colours of their patches.

    Args:
        images: as the network saw them.
        rows: name and RGB from 0 to 1 of the patches of each image.
        framed: (row, column) of the patch of each image that gets a frame.
        advice: what to do where it cannot be written.
    """
    grid = rows[0][1].shape[1:3]
    tiles = [_tile(image) for image in images]
    if framed:
        tiles = [_framed(tile, patch, grid) for tile, patch in zip(tiles, framed, strict=True)]
    drawn = [("image", tiles)]
    for name, colours in rows:
        pixels = (colours * 255).round().astype(np.uint8)
        drawn.append((name, [Image.fromarray(of).resize(tiles[0].size, Image.Resampling.NEAREST) for of in pixels]))
    with aside(path, advice) as partial:
        sheet(drawn).save(partial, format="PNG")


def heat(values: Float[np.ndarray, "n rows columns"]) -> Float[np.ndarray, "n rows columns 3"]:
    """Colours from dark (0 and below) to bright (1)."""
    from matplotlib import colormaps

    return np.asarray(colormaps["inferno"](values.clip(0, 1))[..., :3], dtype=np.float32)


def _tile(image: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    pixels = np.ascontiguousarray(np.moveaxis(visible(np.moveaxis(image, 2, 0)), 0, 2))
    large = max(image.shape[:2]) > _TILE
    return fitted(Image.fromarray(pixels), _TILE, Image.Resampling.LANCZOS if large else Image.Resampling.BICUBIC)


def _framed(tile: Image.Image, patch: Patch | None, grid: tuple[int, int]) -> Image.Image:
    if patch is not None:
        (row, column), (rows, columns) = patch, grid
        left, top = column * tile.width / columns, row * tile.height / rows
        box = (left - 2, top - 2, left + tile.width / columns + 1, top + tile.height / rows + 1)
        ImageDraw.Draw(tile).rectangle(box, outline=_FRAME, width=2)
    return tile
