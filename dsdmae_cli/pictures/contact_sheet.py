"""Pictures beside each other with words above: the paper's Fig. 2 (noisy, restored, original), one picture or many."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dsdmae_cli.pictures.picture import Picture, to_image

_GAP = 8
_CAPTION = 20
_FONT = 13
# Smaller pictures are enlarged by whole factors until they have this many pixels, so that one can see them.
_SMALLEST = 96
# On a sheet of many, larger pictures are cut to this around their middle: scaled down, noise would average out.
_LARGEST = 480


@dataclass(frozen=True)
class Panel:
    """A picture and what stands above it."""

    picture: Picture
    caption: str


def draw(rows: Iterable[list[Panel]], *, crop: bool) -> Image.Image:
    """Rows of panels on white, each row as high as its picture.

    Args:
        crop: show no more than the middle 480x480 pixels of a picture.
    """
    shown = [[(_tile(panel.picture, crop), panel.caption) for panel in row] for row in rows]
    font = ImageFont.load_default(_FONT)
    widths = [sum(max(tile.width, round(font.getlength(text))) + _GAP for tile, text in row) for row in shown]
    heights = [max(tile.height for tile, _ in row) + _CAPTION + _GAP for row in shown]
    page = Image.new("RGB", (max(widths) + _GAP, sum(heights) + _GAP), "white")
    pen = ImageDraw.Draw(page)
    top = _GAP
    for row, height in zip(shown, heights, strict=True):
        left = _GAP
        for tile, text in row:
            pen.text((left, top), text, fill="black", font=font)
            page.paste(tile, (left, top + _CAPTION))
            left += max(tile.width, round(font.getlength(text))) + _GAP
        top += height
    return page


def _tile(picture: Picture, crop: bool) -> Image.Image:
    if crop:
        top, left = max(0, picture.height - _LARGEST) // 2, max(0, picture.width - _LARGEST) // 2
        picture = picture.with_pixels(picture.pixels[top : top + _LARGEST, left : left + _LARGEST])
    tile = to_rgb(picture)
    factor = max(1, _SMALLEST // max(tile.size))
    return tile.resize((tile.width * factor, tile.height * factor), Image.Resampling.NEAREST)


def to_rgb(picture: Picture) -> Image.Image:
    """As a screen would show it: 8 bits, transparency over white."""
    if picture.depth == 16:
        picture = picture.with_pixels((picture.pixels >> 8).astype(np.uint8))
    image = to_image(picture)
    if not picture.mode.endswith("A"):
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
