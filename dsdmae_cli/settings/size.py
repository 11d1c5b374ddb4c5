"""How large the images are that a network sees: one number for a square, or height and width. Neither torch nor
pydantic here.

A square stays a plain number wherever a size is kept (settings, results, metadata of files), so that what was written
before there were rectangles means the same; `height_width` is how anybody reads one.
"""

from __future__ import annotations

from collections.abc import Sequence

from dsdmae_cli.errors import SettingsError

Size = int | tuple[int, int]


LARGEST = 4096  # of a side, in pixels


def height_width(size: Size) -> tuple[int, int]:
    """Both sides in pixels."""
    return (size, size) if isinstance(size, int) else size


def as_size(height: int, width: int) -> Size:
    """The one way in which a size is kept: a number where both sides are the same."""
    return height if height == width else (height, width)


def size_words(size: Size) -> str:
    """ "HEIGHTxWIDTH", for people."""
    return "x".join(str(side) for side in height_width(size))


def size_word(size: Size) -> str:
    """As it is typed and kept in files' metadata: a number, or "HEIGHT,WIDTH"."""
    return ",".join(str(side) for side in ((size,) if isinstance(size, int) else size))


def as_sides(value: object) -> object:
    """ "H,W" and [H, W] as a pair, a number where both are the same; anything else as it is."""
    if isinstance(value, str) and "," in value:
        value = [side.strip() for side in value.strip("[] ").split(",")]
    if not isinstance(value, (list, tuple)):
        return value
    sides = [int(side) if isinstance(side, str) and side.isdecimal() else side for side in value]
    return sides[0] if len(sides) == 2 and sides[0] == sides[1] else tuple(sides)


def size_of(text: str) -> Size:
    """A size as it is typed.

    Raises:
        ValueError: it is none.
    """
    sides = as_sides(int(text) if text.strip().isdecimal() else text)
    numbers = sides if isinstance(sides, tuple) else (sides,)
    if not 1 <= len(numbers) <= 2 or not all(isinstance(side, int) and side > 0 for side in numbers):
        raise ValueError("it takes a number of pixels or HEIGHT,WIDTH, as 224 or 192,256")
    return as_size(numbers[0], numbers[-1])


def size_flag(text: str | None) -> Size | None:
    """--image-size.

    Raises:
        SettingsError: it is no size.
    """
    try:
        size = None if text is None else size_of(text)
        if size is not None and max(height_width(size)) > LARGEST:
            raise ValueError(f"a side has at most {LARGEST} pixels")
        return size
    except ValueError as error:
        raise SettingsError(f"--image-size {text} is not allowed: {error}") from error


def whole_patches(size: Size, patch: Sequence[int]) -> tuple[int, int] | None:
    """Rows and columns of patches of (height, width) pixels that an image is cut into; None where they do not fit."""
    height, width = height_width(size)
    return None if height % patch[0] or width % patch[1] else (height // patch[0], width // patch[1])


def nearest_whole(size: Size, patch: Sequence[int], least: int = 1) -> tuple[Size, Size]:
    """The sizes next below and next above that are whole numbers of patches, `least` patches a side and more."""
    below = [max(side // one, least) * one for side, one in zip(height_width(size), patch, strict=True)]
    above = [low if low == side else low + one for low, side, one in zip(below, height_width(size), patch, strict=True)]
    return as_size(*below), as_size(*above)
