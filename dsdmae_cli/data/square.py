"""From images of a dataset to pictures of one size in one array, each image decoded once. No torch here.

What is called a square here is a rectangle where data.image_size names two sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dsdmae_cli.data.base import ImageDataset, UnreadableImage
from dsdmae_cli.data.cores import usable_cores
from dsdmae_cli.errors import DataError
from dsdmae_cli.settings.size import Size, as_size, height_width

_RGB = 3

if TYPE_CHECKING:
    from dsdmae_cli.data.source import Unreadable  # whose module needs torch


def to_square(pixels: UInt8[np.ndarray, "h w c"], size: Size) -> UInt8[np.ndarray, "rows columns c"]:
    """Resize the shorter side to `size` pixels (bicubic, antialiased) and cut the middle square out.

    Of (height, width), the largest rectangle of that shape is cut out of the middle.
    """
    height, width = pixels.shape[:2]
    rows, columns = height_width(size)
    if (height, width) == (rows, columns):
        return pixels
    tall, wide = middle(height, width, size)
    left, top = (width - wide) / 2, (height - tall) / 2
    return resized(pixels, size, Image.Resampling.BICUBIC, (left, top, left + wide, top + tall))


def middle(height: int, width: int, size: Size) -> tuple[float, float]:
    """Height and width of the largest rectangle of the shape of `size` in an image."""
    rows, columns = height_width(size)
    if height * columns <= width * rows:
        return height, height * columns / rows
    return width * rows / columns, width


def resized(
    pixels: UInt8[np.ndarray, "h w c"],
    size: Size,
    kernel: Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> UInt8[np.ndarray, "rows columns c"]:
    """Resized to one size by Pillow, which does so band by band and takes RGB at once.

    Args:
        box: left, top, right and bottom of the part that is taken; None = all.
    """
    height, width = height_width(size)
    if pixels.shape[2] == _RGB:
        return np.asarray(Image.fromarray(pixels).resize((width, height), kernel, box))
    bands = (np.ascontiguousarray(pixels[..., band]) for band in range(pixels.shape[2]))
    return np.stack([np.asarray(Image.fromarray(band).resize((width, height), kernel, box)) for band in bands], axis=2)


def common_side(dataset: ImageDataset, look_at: int = 64) -> int | None:
    """The side that images of a dataset share, judged by `look_at` of them; None if they differ or are no squares."""
    size = common_size(dataset, look_at)
    return size if isinstance(size, int) else None


def common_size(dataset: ImageDataset, look_at: int = 64) -> Size | None:
    """The size that images of a dataset share, judged by `look_at` of them; None if they differ."""
    sizes = set()
    for index in np.linspace(0, len(dataset) - 1, min(look_at, len(dataset)), dtype=int):
        try:
            sizes.add(dataset.size(int(index)))
        except UnreadableImage:
            continue  # it is met again, and counted, when the dataset is read
    if len(sizes) != 1:
        return None
    width, height = sizes.pop()
    return as_size(height, width)


class Squares:
    """Room for squares of one size of some images, which `decode_into` fills.

    Args:
        indices: which images of a dataset, each once.
        size: of a square, or (height, width), in pixels.
        channels: of the images.

    Attributes:
        kept: the images that could be read, in the order in which they were decoded.
    """

    def __init__(self, indices: Sequence[int], size: Size, channels: int = _RGB) -> None:
        self.size = size
        self.kept: list[int] = []
        self._wanted = indices if isinstance(indices, range) else frozenset(indices)
        self._room = np.empty((len(indices), *height_width(size), channels), dtype=np.uint8)

    @property
    def pixels(self) -> UInt8[np.ndarray, "n rows columns c"]:
        """One square for each of `kept`; a view."""
        return self._room[: len(self.kept)]

    def __contains__(self, index: int) -> bool:
        return index in self._wanted

    def add(self, index: int, square: UInt8[np.ndarray, "rows columns c"]) -> None:
        """The square of an image."""
        self._room[len(self.kept)] = square
        self.kept.append(index)

    def require(self, unreadable: Unreadable) -> None:
        """Raise DataError if none of the images could be read."""
        require_some(len(self.kept), len(self._room), unreadable)


def require_some(num_kept: int, num_asked: int, unreadable: Unreadable) -> None:
    """Raise DataError if none of the images that were asked for could be read."""
    if not num_kept:
        them = "it" if num_asked == 1 else "them"
        raise DataError(f"none of {num_asked} images can be read (first: {unreadable.first}); mend or remove {them}")


def decode_into(
    dataset: ImageDataset, indices: Sequence[int], rooms: Sequence[Squares], unreadable: Unreadable
) -> None:
    """Decode each image once and put its square into every room that wants it.

    Raises:
        DataError: too many are unreadable.
    """

    def one(index: int) -> list[UInt8[np.ndarray, "_ _ c"] | None] | UnreadableImage:
        try:
            pixels = dataset.load(index)
        except UnreadableImage as error:
            return error
        return [to_square(pixels, room.size) if index in room else None for room in rooms]

    with ThreadPoolExecutor(usable_cores()) as pool:  # PIL decodes outside the interpreter's lock
        for index, squares in zip(indices, pool.map(one, indices), strict=True):
            if isinstance(squares, UnreadableImage):
                unreadable.add(squares.name, squares.reason)
                continue
            for room, square in zip(rooms, squares, strict=True):
                if square is not None:
                    room.add(index, square)


def decode_square(
    dataset: ImageDataset, indices: Sequence[int], size: Size, unreadable: Unreadable, may_be_empty: bool = False
) -> tuple[UInt8[np.ndarray, "n rows columns c"], list[int]]:
    """Decode images into one array, with the indices of those that could be read.

    Raises:
        DataError: too many are unreadable, or all of them are and the answer may not be empty.
    """
    squares = Squares(indices, size, dataset.channels)
    decode_into(dataset, indices, [squares], unreadable)
    if not may_be_empty:
        squares.require(unreadable)
    return squares.pixels, squares.kept
