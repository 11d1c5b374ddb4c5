"""From images of a dataset to pictures of one size in one array, each image decoded once. No torch here.

What is called a square here is a rectangle where data.image_size names two sides.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
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
_PIECE = 16  # images that a thread decodes one after the other

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
    """Squares of one size of some images; `decode_into`, or together.decode_together, fills them.

    Args:
        indices: which images of a dataset, each once.
        size: of a square, or (height, width), in pixels.
        channels: of the images.

    Attributes:
        kept: the images that could be read, in the order of `indices`.
    """

    def __init__(self, indices: Sequence[int], size: Size, channels: int = _RGB) -> None:
        self.size = size
        self.kept: list[int] = []
        self._indices = indices
        self._places = None if isinstance(indices, range) else {index: place for place, index in enumerate(indices)}
        self._shape = (len(indices), channels, *height_width(size))
        self._room: UInt8[np.ndarray, "n rows columns c"] | None = None

    @property
    def num_bytes(self) -> int:
        """Of all squares."""
        return math.prod(self._shape)

    @property
    def pixels(self) -> UInt8[np.ndarray, "n rows columns c"]:
        """One square for each of `kept`; a view of memory where channels come first, as networks have them."""
        assert self._room is not None
        return self._room[: len(self.kept)]

    def __contains__(self, index: int) -> bool:
        return index in (self._indices if self._places is None else self._places)

    def lie_in(self, memory: UInt8[np.ndarray, " num_bytes"] | None = None) -> None:
        """Have this memory, or some of its own, for the squares."""
        room = np.empty(self.num_bytes, dtype=np.uint8) if memory is None else memory
        self._room = room.reshape(self._shape).transpose(0, 2, 3, 1)

    def put(self, index: int, square: UInt8[np.ndarray, "rows columns c"]) -> None:
        """The square of an image, at its place."""
        assert self._room is not None
        self._room[self._indices.index(index) if self._places is None else self._places[index]] = square

    def close_up(self, missing: Collection[int], *, move: bool = True) -> None:
        """Leave out the images that are missing.

        Args:
            move: what comes after them; False where another process does, in the same memory.
        """
        assert self._room is not None
        places = [place for place, index in enumerate(self._indices) if index not in missing]
        if move and len(places) < len(self._indices):
            for row, place in enumerate(places):
                if row != place:
                    self._room[row] = self._room[place]
        self.kept = [self._indices[place] for place in places]

    def require(self, unreadable: Unreadable) -> None:
        """Raise DataError if none of the images could be read."""
        require_some(len(self.kept), len(self._indices), unreadable)


def require_some(num_kept: int, num_asked: int, unreadable: Unreadable) -> None:
    """Raise DataError if none of the images that were asked for could be read."""
    if not num_kept:
        images = f"{unreadable.split} image".strip()
        if num_asked == 1:
            raise DataError(f"the only {images} cannot be read ({unreadable.first}); mend or remove it")
        raise DataError(f"none of {num_asked} {images}s can be read (first: {unreadable.first}); mend or remove them")


def decode_into(
    dataset: ImageDataset, indices: Sequence[int], rooms: Sequence[Squares], unreadable: Unreadable
) -> None:
    """Decode each image once and put its square into every room that wants it.

    Raises:
        DataError: too many are unreadable.
    """
    for room in rooms:
        room.lie_in()
    missing = decode_each(dataset, indices, rooms, unreadable, usable_cores())
    for room in rooms:
        room.close_up(missing)


def decode_each(
    dataset: ImageDataset, indices: Sequence[int], rooms: Sequence[Squares], unreadable: Unreadable, threads: int
) -> dict[int, UnreadableImage]:
    """The same into rooms that have memory; those that cannot be read are told, and their places are left as they are.

    Raises:
        DataError: too many are unreadable.
    """

    def some(chosen: Sequence[int]) -> list[tuple[int, UnreadableImage]]:
        found = []
        for index in chosen:
            try:
                pixels = dataset.load(index)
            except UnreadableImage as error:
                found.append((index, error))
                continue
            for room in rooms:
                if index in room:
                    room.put(index, to_square(pixels, room.size))
        return found

    piece = max(1, min(_PIECE, len(indices) // (4 * threads)))  # what is to be done is a list: not of a million
    pieces = [indices[start : start + piece] for start in range(0, len(indices), piece)]
    missing: dict[int, UnreadableImage] = {}
    with ThreadPoolExecutor(threads) as pool:  # PIL decodes outside the interpreter's lock
        for found in pool.map(some, pieces):
            for index, error in found:
                unreadable.add(error.name, error.reason)
                missing[index] = error
    return missing


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
