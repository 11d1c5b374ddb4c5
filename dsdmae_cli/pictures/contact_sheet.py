"""Pictures beside each other with words above: the paper's Fig. 2 (noisy, restored, original), one picture or many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64
from PIL import Image, ImageDraw, ImageFont

from dsdmae_cli.pictures.picture import Picture, to_image

_GAP = 8
_CAPTION = 20
_FONT = 13
# Smaller pictures are enlarged by whole factors until they have this many pixels, so that one can see them.
_SMALLEST = 96
# On a sheet of many, larger pictures are cut to this around what is magnified: scaled down, noise would average out.
_LARGEST = 480
# What is magnified, and pictures with a shorter side below this are not: their pixels are seen as it is.
_MAGNIFIED, _LEAST_MAGNIFIED, _TOO_SMALL = 120, 16, 24
_FRAME = (255, 0, 0)


class Region(NamedTuple):
    """A square of a picture, in pixels."""

    top: int
    left: int
    side: int

    def cut(self, picture: Picture) -> Picture:
        """The picture there."""
        rows, columns = (slice(start, start + self.side) for start in (self.top, self.left))
        return picture.with_pixels(np.ascontiguousarray(picture.pixels[rows, columns]))


@dataclass(frozen=True)
class Panel:
    """A picture and what stands above it.

    Attributes:
        factor: how much it is enlarged; None = as it is, or by so much that one can see it.
        framed: a part of it to be marked.
    """

    picture: Picture
    caption: str
    factor: int | None = None
    framed: Region | None = None


def height_of(row: Sequence[Panel]) -> int:
    """How much a row adds to the height of what is drawn."""
    return max(panel.picture.height * (panel.factor or _enlarged(panel.picture)) for panel in row) + _CAPTION + _GAP


def draw(rows: Iterable[list[Panel]]) -> Image.Image:
    """Rows of panels on white, each row as high as its picture."""
    shown = [[(drawn(panel), panel.caption) for panel in row] for row in rows]
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


def with_magnified(panels: Sequence[Panel], *, whole: bool = False) -> list[list[Panel]]:
    """Two rows of a sheet: the panels, cut to 480x480 pixels where larger, and below them a part of each, magnified.

    Args:
        panels: of one picture and one size; the first as it was given, the second as restored.
        whole: cut nothing.
    """
    first, second, *_ = (panel.picture for panel in panels)
    if min(first.height, first.width) < _TOO_SMALL:
        middle = _window(Region(first.height // 2, first.width // 2, 0), first)
        return [[Panel(middle.cut(panel.picture), panel.caption) for panel in panels]]
    side = max(_LEAST_MAGNIFIED, min(_MAGNIFIED, min(first.height, first.width) // 4))
    region = telling_region(first, second, side)
    window = Region(0, 0, max(first.height, first.width)) if whole else _window(region, first)
    framed = Region(region.top - window.top, region.left - window.left, side)
    above = [Panel(window.cut(panel.picture), panel.caption, framed=framed) for panel in panels]
    factor = max(2, min(_LARGEST, above[0].picture.width) * _enlarged(above[0].picture) // side)
    below = [Panel(region.cut(panel.picture), f"{panel.caption}: the frame, {factor}x", factor) for panel in panels]
    return [above, below]


def _window(region: Region, picture: Picture) -> Region:
    """What is shown of a large picture: around a part of it, and nothing beyond its edges."""

    def start(at: int, length: int) -> int:
        return max(0, min(at + region.side // 2 - _LARGEST // 2, length - _LARGEST))

    return Region(start(region.top, picture.height), start(region.left, picture.width), _LARGEST)


def telling_region(before: Picture, after: Picture, side: int) -> Region:
    """The square where a change shows most: most has changed there, and there is detail to be kept or lost.

    Over squares a quarter of a side apart, the product of two means: of how much each pixel changed, and of how much
    the result differs from one pixel to the next. Where nothing changed at all, the detail alone.
    """
    step = max(1, side // 4)
    change, detail = _block_means(before, after, step)
    wide = min(4, *change.shape)
    changed, score = _over_squares(change, wide), _over_squares(detail, wide)
    if changed.any():
        score = score * changed
    row, column = (int(at) * step for at in np.unravel_index(int(score.argmax()), score.shape))
    return Region(min(row, after.height - side), min(column, after.width - side), side)


def _block_means(before: Picture, after: Picture, step: int) -> Float64[np.ndarray, "2 h w"]:
    """How much pixels changed, and how much those of the result differ from their upper and left neighbours, of 255:
    means over blocks of step x step pixels, a row of blocks at a time."""
    colors, scale = slice(before.num_colors), 255 / before.peak
    rows, columns = after.height // step, after.width // step
    found = np.zeros((2, rows, columns))

    def shown(picture: Picture, first: int, last: int) -> Float32[np.ndarray, "h w"]:
        return picture.pixels[first:last, :, colors].mean(axis=2, dtype=np.float32) * scale

    def means(values: Float32[np.ndarray, "h w"]) -> Float64[np.ndarray, " w"]:
        sums = values[:, : columns * step].sum(axis=0, dtype=np.float64)
        return sums.reshape(columns, step).sum(axis=1) / step**2

    for row in range(rows):
        first, last = row * step, (row + 1) * step
        above = max(0, first - 1)
        new = shown(after, above, last)
        of_row = new[first - above :]
        found[0, row] = means(np.abs(of_row - shown(before, first, last)))
        across = np.diff(of_row, axis=1, prepend=of_row[:, :1])
        found[1, row] = means(np.abs(np.diff(new, axis=0))) + means(np.abs(across))
    return found


def _over_squares(blocks: Float64[np.ndarray, "h w"], wide: int) -> Float64[np.ndarray, "_ _"]:
    """Sums over all squares of wide x wide blocks."""
    return np.lib.stride_tricks.sliding_window_view(blocks, (wide, wide)).sum(axis=(2, 3))


def _enlarged(picture: Picture) -> int:
    return max(1, _SMALLEST // max(picture.width, picture.height))


def drawn(panel: Panel) -> Image.Image:
    """What a sheet shows of a panel, its words left out."""
    shown = to_rgb(panel.picture)
    factor = panel.factor or _enlarged(panel.picture)
    shown = shown.resize((shown.width * factor, shown.height * factor), Image.Resampling.NEAREST)
    if panel.framed is not None:
        top, left, side = (value * factor for value in panel.framed)
        line = max(1, round(max(shown.size) / _LARGEST))  # as thin where a large picture is scaled down to be shown
        ImageDraw.Draw(shown).rectangle((left, top, left + side - 1, top + side - 1), outline=_FRAME, width=line)
    return shown


def to_rgb(picture: Picture) -> Image.Image:
    """As a screen would show it: 8 bits, transparency over white."""
    if picture.mode.endswith("bands"):  # the first that make a colour, or the first alone
        first = picture.pixels[..., list(picture.color_groups[0])]
        picture = replace(picture, pixels=first, mode="RGB" if first.shape[2] == 3 else "L")
    if picture.depth == 16:
        picture = picture.with_pixels((picture.pixels >> 8).astype(np.uint8))
    if picture.inverted and picture.pixels.dtype == np.uint8:
        picture = replace(picture, pixels=255 - picture.pixels, inverted=False)
    image = to_image(picture)
    if not picture.mode.endswith("A"):
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
