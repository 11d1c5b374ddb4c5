"""Pictures of more than 8 bits, shown to a network as ones that use all of 16: from LOW to HIGH, and back. No torch.

Nothing is lost on the way: only what was changed goes back, so that values beyond the range, and digits that 16 bits do
not have, stay as they were.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from dsdmae_cli.data.base import Refused, UnreadableImage
from dsdmae_cli.data.values import Range, Values, sampled_range
from dsdmae_cli.errors import DataError
from dsdmae_cli.pictures.instrument import lossless
from dsdmae_cli.pictures.paths import Source
from dsdmae_cli.pictures.picture import Picture, read

_FULL = (0.0, 65535.0)
_ROWS, _SOME = 512, 1 << 15


def limits_of(pictures: Sequence[Picture]) -> Range | None:
    """The range of those of more than 8 bits together; None where there are none."""
    deep = (Values(p.pixels, p.mode.endswith("A")) for p in pictures if p.pixels.dtype != np.uint8)
    return sampled_range(deep)


def limits_of_all(sources: Sequence[Source], max_pixels: int) -> Range | None:
    """One range for all pictures; those that cannot be read are met again.

    Raises:
        DataError: one of them is standard input, which can be read once.
    """
    found: list[Picture] = []
    for source in sources:
        if source.path is None:
            raise DataError("--range batch is for several pictures; standard input is one")
        with suppress(UnreadableImage, Refused):
            found += (thinned(page) for page in read_pages(source, max_pixels))
    return limits_of(found)


def read_pages(source: Source, max_pixels: int) -> list[Picture]:
    """A picture, or all pages of a stack.

    Raises:
        UnreadableImage: see picture.read.
    """
    content = sys.stdin.buffer.read() if source.path is None else source.path
    first = read(content, str(source), max_pixels)
    return [first, *(read(content, str(source), max_pixels, page) for page in range(1, first.pages))]


def seen(picture: Picture, limits: Range) -> Picture:
    """The picture with LOW..HIGH as 0..65535, alpha by its own full scale; itself where that is what it has."""
    if is_itself(picture, limits):
        return picture
    result = np.empty(picture.pixels.shape, np.uint16)
    low, high = limits
    for top in range(0, picture.height, _ROWS):
        band = picture.pixels[top : top + _ROWS].astype(np.float64)
        scaled = np.nan_to_num((band - low) * (_FULL[1] / (high - low)), nan=0.0).clip(0, _FULL[1])
        result[top : top + _ROWS] = np.rint(scaled)
    if picture.mode.endswith("A"):
        result[..., -1] = _FULL[1]  # no network looks at it, and it comes back as it was
    return picture.with_pixels(result)


def brought_back(given: Picture, before: Picture, after: Picture, limits: Range) -> Picture:
    """What was changed between `before` = seen(given) and `after`, done to the picture itself."""
    if before is given:
        return after
    low, high = limits
    result = given.pixels.copy()
    colors = given.num_colors
    for top in range(0, given.height, _ROWS):
        rows = (slice(top, top + _ROWS), slice(None), slice(0, colors))
        changed = after.pixels[rows].astype(np.float64) - before.pixels[rows]
        values = given.pixels[rows].astype(np.float64) + changed * ((high - low) / _FULL[1])
        result[rows] = np.where(changed == 0, given.pixels[rows], lossless(values, result))
    return given.with_pixels(result)


def thinned(picture: Picture) -> Picture:
    """Some of its pixels, enough to see their range by."""
    flat = picture.pixels.reshape(1, -1, picture.pixels.shape[2])
    some = np.random.default_rng(0).integers(flat.shape[1], size=min(flat.shape[1], _SOME))
    return picture.with_pixels(flat[:, some])


def is_itself(picture: Picture, limits: Range | None) -> bool:
    """Whether a network may see the picture as it is: 8 bits, or 16 that are all used."""
    return picture.pixels.dtype == np.uint8 or (picture.pixels.dtype == np.uint16 and limits in (None, _FULL))
