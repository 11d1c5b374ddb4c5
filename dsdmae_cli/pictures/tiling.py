"""Large pictures through a network that takes small ones: overlapping tiles, blended, in bands of bounded memory.

Pure functions of numbers and arrays; what a tile is and what is predicted for it is the caller's business. No torch
here: every engine's tiles are cut and blended by the same arithmetic.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, Shaped


class Tile(NamedTuple):
    """Size of all tiles of a picture, in pixels."""

    height: int
    width: int


class Corner(NamedTuple):
    """The upper left pixel of a tile; outside the picture where the tile reaches over its edge.

    `way` is one of the eight ways to lay a tile down, in which the network shall see it (see `turn`).
    """

    y: int
    x: int
    way: int = 0


@dataclass(frozen=True)
class Grid:
    """Where the tiles of one pass begin; every row of tiles has the same columns."""

    ys: list[int]
    xs: list[int]
    way: int = 0

    def __len__(self) -> int:
        return len(self.ys) * len(self.xs)

    def corners(self) -> Iterator[Corner]:
        """Row by row."""
        return (Corner(y, x, self.way) for y in self.ys for x in self.xs)


def starts(length: int, tile: int, overlap: int, shift: int = 0, slack: int = 0) -> list[int]:
    """Where tiles along one axis begin, spread evenly so that each overlaps the next by at least `overlap` pixels.

    Without slack the tiles end with the picture where it is long enough. Where one is enough the picture lies in its
    middle, but for the shift.

    Args:
        length: pixels of the picture along the axis.
        shift: the first tile begins this much before the picture, 0..slack.
        slack: the tiles reach over both edges by this much together.
    """
    if tile - length >= slack:  # wherever it is shifted to, one covers all
        return [-((tile - length - slack) // 2) - shift]
    missing = max(0, tile - length)
    first = -(missing // 2) - shift
    last = length - tile + missing - missing // 2 + slack - shift
    gaps = math.ceil((last - first) / (tile - overlap))
    if gaps <= 0:
        return [first]
    spread = (first + round(k * (last - first) / gaps) for k in range(gaps + 1))
    return [start for start in spread if -tile < start < length]  # a small picture may be missed by the outer ones


def side_of_tiles(length: int, side: int, overlap: int, multiple: int, most: int) -> int:
    """Side along one axis of the fewest tiles that cover it, no larger than they have to be.

    For a network that takes any size: over 768 pixels eight tiles of 128 that overlap by 32 see 1,024, two of 400 800.

    Args:
        length: pixels to cover along the axis.
        side, most: no tile is smaller, none larger.
        multiple: of which a side has to be one, as `side` and `most` are.
    """
    count = max(1, math.ceil((length - overlap) / (most - overlap)))
    covering = math.ceil((length + (count - 1) * overlap) / count)
    return max(side, math.ceil(covering / multiple) * multiple)


# Mirrored both ways and transposed first: of all the ways these differ most.
_WAYS = (0, 1, 4, 2, 7, 6, 3, 5)


def slack_of(overlap: int, passes: int) -> int:
    """Pixels by which the tiles of several passes reach over both edges together, so that they can be shifted."""
    # Shifts as wide as a tile's stride would cost a row and a column of tiles more, and brought nothing.
    return overlap // 2 if passes > 1 else 0


def grids(height: int, width: int, tile: Tile, overlap: int, passes: int) -> list[Grid]:
    """The tiles of each pass. Several passes see the picture in different ways, mirrored and turned, and are shifted
    against each other by a few pixels, so that nothing stands at one place of a patch in all of them.

    The shifts follow Roberts' R2 sequence (2018, "The unreasonable effectiveness of quasirandom sequences"): its first
    n points are well spread for every n.
    """
    slack = slack_of(overlap, passes)
    plastic = 1.32471795724474602596
    shifts = [[int((slack + 1) * ((0.5 + k / plastic**axis) % 1)) for axis in (1, 2)] for k in range(passes)]
    return [
        Grid(
            starts(height, tile.height, overlap, down, slack),
            starts(width, tile.width, overlap, right, slack),
            _WAYS[number % len(_WAYS)],
        )
        for number, (down, right) in enumerate(shifts)
    ]


def turn(image: Shaped[np.ndarray, "h w c"], way: int) -> Shaped[np.ndarray, "a b c"]:
    """An image in one of eight ways: transposed (4), then upside down (2), then left to right (1)."""
    image = image.transpose(1, 0, 2) if way & 4 else image
    image = image[::-1] if way & 2 else image
    return image[:, ::-1] if way & 1 else image


def turn_back(image: Float32[np.ndarray, "c a b"], way: int) -> Float32[np.ndarray, "c h w"]:
    """The inverse of `turn`, for an image with its channels first."""
    image = image[:, ::-1] if way & 2 else image
    image = image[:, :, ::-1] if way & 1 else image
    return image.transpose(0, 2, 1) if way & 4 else image


def window(tile: Tile) -> Float32[np.ndarray, "height width"]:
    """Weight of each pixel of a tile: a raised cosine along both axes, highest in the middle and never zero.

    Where tiles overlap their predictions fade into each other; a pixel near a tile's edge, where the network sees least
    around it, counts least.
    """
    ramps = (np.square(np.sin(np.pi * (np.arange(side) + 0.5) / side)) for side in tile)
    return np.outer(*ramps).astype(np.float32)


def reflected(start: int, count: int, length: int) -> Int64[np.ndarray, " count"]:
    """Indices start..start+count-1 into `length` pixels, mirrored at both edges (the edge itself is not repeated)."""
    if length == 1:
        return np.zeros(count, dtype=np.int64)
    period = 2 * (length - 1)
    index = (start + np.arange(count)) % period
    return np.minimum(index, period - index)


class Band(NamedTuple):
    """Finished rows of a picture.

    Attributes:
        top: the first of them.
        pixels: predicted values.
        tiles: tiles predicted so far, for progress.
    """

    top: int
    pixels: Float32[np.ndarray, "c rows width"]
    tiles: int


def blended(
    height: int,
    width: int,
    tile: Tile,
    passes: Iterable[Grid],
    begin: Callable[[list[Corner]], Callable[[], Float32[np.ndarray, "b c th tw"]]],
    batch_size: int,
) -> Iterator[Band]:
    """Predict all tiles of all passes and average them, weighted by `window`; rows are handed out as soon as no tile to
    come touches them. Every batch gives a band, perhaps one without rows.

    Memory grows with the width of the picture and the height of a tile, not with the height of the picture.

    Args:
        begin: to predict tiles at these corners, at most `batch_size`; what it gives waits for them. The next ones are
            begun before, so that a device predicts while tiles are blended here.
    """
    weight = window(tile)
    corners = heapq.merge(*(grid.corners() for grid in passes))
    batch, done = list(itertools.islice(corners, batch_size)), 0
    total, weights = np.zeros((0, 0, width), np.float32), np.zeros((0, width), np.float32)
    top = 0
    coming = begin(batch)
    while batch:
        following = list(itertools.islice(corners, batch_size))
        next_coming = begin(following) if following else coming
        predicted = coming()
        rows = min(batch[-1].y + tile.height, height) - top
        if not done:
            total = np.zeros((predicted.shape[1], 0, width), np.float32)
        if missing := max(0, rows - len(weights)):
            total = np.concatenate([total, np.zeros((len(total), missing, width), np.float32)], axis=1)
            weights = np.concatenate([weights, np.zeros((missing, width), np.float32)])
        for corner, values in zip(batch, predicted, strict=True):
            inner, outer = _meeting(corner, tile, top, height, width)
            total[:, outer[0], outer[1]] += values[:, inner[0], inner[1]] * weight[inner]
            weights[outer] += weight[inner]
        done += len(batch)
        batch, coming = following, next_coming
        finished = max(0, (min(batch[0].y, height) if batch else height) - top)
        yield Band(top, total[:, :finished] / weights[:finished], done)
        total, weights = total[:, finished:], weights[finished:]
        top += finished


def _meeting(
    corner: Corner, tile: Tile, top: int, height: int, width: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a tile and the picture meet: within the tile, and within rows of the picture that begin at `top`."""
    y0, y1 = max(corner.y, 0), min(corner.y + tile.height, height)
    x0, x1 = max(corner.x, 0), min(corner.x + tile.width, width)
    inner = slice(y0 - corner.y, y1 - corner.y), slice(x0 - corner.x, x1 - corner.x)
    return inner, (slice(y0 - top, y1 - top), slice(x0, x1))
