"""Plain 8-bit RGB pictures, decoded quickly and, where that is cheap, at a fraction of their size. No torch here.

What most training images are: JPEGs of one or three components, and PPMs. decode.py is the policy for every kind of
image and the reader of all else; at full size a picture has the same pixels from either. A damaged picture is none of
this module's: whatever is odd goes to decode.py, which says what is wrong with it.
"""

from __future__ import annotations

import re
import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from dsdmae_cli.data.base import UnreadableImage
from dsdmae_cli.data.decode import MAX_PIXELS, opened
from dsdmae_cli.data.to_rgb import SWAPS_SIDES, orientation
from dsdmae_cli.data.values import TURNS

# libjpeg-turbo can decode to any number of eighths; for these its inverse transforms are vectorised, and cost less than
# the full one.
_SHRINKS = (8, 4, 2)
_PPM = re.compile(rb"P6\n(\d{1,9}) (\d{1,9})\n255\n")
_END = b"\xff\xd9"
_START_OF_SCAN, _APP1, _APP14 = 0xDA, 0xE1, 0xEE
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
# Start-of-frame markers of the other kinds (lossless, hierarchical, arithmetic); C4, C8 and CC are none.
_OTHER_FRAMES = frozenset(range(0xC3, 0xD0)) - {0xC4, 0xC8, 0xCC}
_YCBCR = 1  # what Adobe's marker says of colours as JPEG has them
_NO_SEGMENT = frozenset({0x01, *range(0xD0, 0xD9)})


class Odd(ValueError):  # noqa: N818
    """A picture that looked plain and is not; decode.py says what it is."""


class Plain(ABC):
    """A picture whose header is read.

    Attributes:
        width, height: in pixels, upright.
        shrinks: by which whole numbers it can be decoded smaller at less than the cost of all its pixels, falling.
    """

    width: int
    height: int
    shrinks: tuple[int, ...] = ()

    @abstractmethod
    def pixels(self, shrink: int = 1) -> UInt8[np.ndarray, "h w 3"]:
        """Upright, at ceil(side / shrink); pixel i shows the places [i * shrink, (i + 1) * shrink) of the whole, less
        what a side lacks to a multiple of `shrink` where EXIF turned it about.

        Args:
            shrink: 1, or one of `shrinks`.

        Raises:
            Odd: decode.py has to look at it.
        """


def plain(content: bytes | memoryview) -> Plain | None:
    """The picture in a file's bytes if it is a plain one, else None."""
    start = bytes(content[:2])
    try:
        if start == b"\xff\xd8":
            return _jpeg(content)
        if start == b"P6":
            return _pixmap(content)
    except (IndexError, struct.error):  # the header ends too early
        return None
    return None


# ------------------------------------------------------------------------------------------------------- JPEG


@dataclass(frozen=True)
class _Jpeg(Plain):
    content: bytes | memoryview
    stored: tuple[int, int]
    turn: int
    shrinks = _SHRINKS

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.stored[1 if self.turn in SWAPS_SIDES else 0]

    @property
    def height(self) -> int:  # type: ignore[override]
        return self.stored[0 if self.turn in SWAPS_SIDES else 1]

    def pixels(self, shrink: int = 1) -> UInt8[np.ndarray, "h w 3"]:
        from simplejpeg import decode_jpeg

        width, height = (-(-side // shrink) for side in self.stored)
        smaller = {} if shrink == 1 else {"min_height": height, "min_width": width, "min_factor": shrink}
        try:
            # Warnings are no errors: Pillow, whose policy decode.py has, heeds none of libjpeg's either.
            found = decode_jpeg(self.content, strict=False, **smaller)
        except ValueError as error:
            raise Odd(str(error)) from error
        if found.shape != (height, width, 3):
            raise Odd(f"decoded to {found.shape}")
        turn = TURNS.get(self.turn)
        return found if turn is None else turn(found)


def _jpeg(content: bytes | memoryview) -> _Jpeg | None:
    """By its segments up to the first scan."""
    # A torn file lacks the end. What cameras write behind it is rare, and not worth to search for.
    if bytes(content[-2:]) != _END:
        return None
    at, size, components, tagged, adobe = 2, None, 0, False, _YCBCR
    while True:
        if content[at] != 0xFF:
            return None
        marker = content[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        if marker in _NO_SEGMENT:
            at += 2
            continue
        length = content[at + 2] << 8 | content[at + 3]
        if length < 2:
            return None
        if marker in (_BASELINE, _EXTENDED, _PROGRESSIVE):
            bits, height, width, components = struct.unpack(">BHHB", content[at + 4 : at + 10])
            if size is not None or bits != 8 or components not in (1, 3) or not 0 < width * height <= MAX_PIXELS:
                return None
            size = (width, height)
        elif marker in _OTHER_FRAMES:
            return None
        elif marker == _APP14 and bytes(content[at + 4 : at + 9]) == b"Adobe":
            adobe = content[at + 15]
        elif marker == _APP1:
            tagged = True
        elif marker == _START_OF_SCAN:
            break
        at += 2 + length
    if size is None or (components == 3 and adobe != _YCBCR):
        return None
    turn = _turn(content) if tagged else 1
    return None if turn is None else _Jpeg(content, size, turn)


def _turn(content: bytes | memoryview) -> int | None:
    """What EXIF or XMP says, by the same reader as decode.py's; None where that refuses the file."""
    try:
        with opened(bytes(content), "") as image:
            return orientation(image)
    except UnreadableImage:
        return None


# -------------------------------------------------------------------------------------------------------- PPM


@dataclass(frozen=True)
class _Pixmap(Plain):
    content: bytes | memoryview
    offset: int
    width: int
    height: int

    def pixels(self, shrink: int = 1) -> UInt8[np.ndarray, "h w 3"]:
        assert shrink == 1
        return np.frombuffer(self.content, np.uint8, offset=self.offset).reshape(self.height, self.width, 3)


def _pixmap(content: bytes | memoryview) -> _Pixmap | None:
    header = _PPM.match(content)
    if header is None:
        return None
    width, height = int(header[1]), int(header[2])
    if not 0 < width * height <= MAX_PIXELS or len(content) - header.end() != 3 * width * height:
        return None
    return _Pixmap(content, header.end(), width, height)
