"""TIFF as instruments write it: any number of bands, planes, integers and floats of any width, stacks. No torch here.

Pillow reads what cameras and scanners write, and decode.py asks it first; of the rest it drops bands without a word,
or calls the file no TIFF at all. tifffile reads those.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

import numpy as np

from dsdmae_cli.data import nodata
from dsdmae_cli.data.base import Form, Refused
from dsdmae_cli.data.kinds import RAW
from dsdmae_cli.data.values import Values, divided_by_alpha

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile
    from tifffile import TiffFile, TiffPage

    # A file from its beginning on, or one that has been opened, for several questions.
    Tiff = BinaryIO | TiffFile

_UNHEARD = logging.NullHandler()
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_UINT, _INT, _FLOAT, _UNSPECIFIED = 1, 2, 3, 0
_PREMULTIPLIED = 1
# Grey that Pillow decodes whole, through more kinds of compression than tifffile alone: (sample format, bits).
_WIDE_GREYS = {(_INT, 32), (_FLOAT, 32)}
_MIN_IS_WHITE = 0
_GREY_OR_RGB = (_MIN_IS_WHITE, 1, 2)
# Bits of a page's kind (tag 254): a smaller copy of another page, and a mask of it.
_KIND, _REDUCED, _MASK = 254, 1, 4
_MOST_LOOKED_AT = 64  # pages whose kind is looked at
_MASK_OF = 4  # photometric of a mask
_SENSOR = (32803, 34892)  # photometric of what a sensor saw (DNG): a colour filter array, and linear raw
_CANON_AT, _CANON = 8, b"CR"  # what Canon's raw files have in their header
_PLANES, _ORIENTATION, _SWAPS_SIDES = 2, 274, 5
# A picture may have this many values for each pixel that is allowed, so that bands do not cost memory without bound.
_MOST_BANDS = 32


class NeedsCodec(Refused):
    """A compression that tifffile has no decoder for by itself."""


def is_tiff(stream: BinaryIO) -> bool:
    """Whether a file begins as a TIFF does; it is left at its beginning."""
    stream.seek(0)
    begins = stream.read(4) in _MAGIC
    stream.seek(0)
    return begins


def is_for_pillow(tiff: Tiff) -> bool:
    """Whether Pillow gives all that the first picture of a TIFF holds, band by band and bit by bit."""
    with _first_page(tiff) as page:
        if page.parent.is_bigtiff and page.parent.byteorder == ">":  # which Pillow takes for no TIFF
            return False
        if page.parent.pages.first.photometric == _MASK_OF:  # of which Pillow opens no page
            return False
        bits, single = page.bitspersample, page.samplesperpixel == 1
        if single and (page.sampleformat, bits) in _WIDE_GREYS:
            return True
        if page.photometric not in _GREY_OR_RGB:  # palette, CMYK, Lab and the like: taken by Pillow, or refused
            return True
        if page.sampleformat != _UINT or _UNSPECIFIED in page.extrasamples:
            return False
        planes = bits > 8 and page.planarconfig == _PLANES and not single
        multiplied = bits > 8 and _PREMULTIPLIED in page.extrasamples  # of which Pillow keeps the upper byte
        return bits in (1, 2, 4, 8, 16) and not planes and not multiplied


def is_plain(tiff: Tiff) -> bool:
    """Whether the first picture is grey or RGB of whole bytes, and no palette, CMYK or single bits."""
    with _first_page(tiff) as page:
        return page.photometric in _GREY_OR_RGB and page.bitspersample >= 8


def is_inverted(tiff: Tiff) -> bool:
    """Whether the first picture is grey whose zero is white, in numbers that Pillow hands out as they are; those of 8
    bits and fewer it turns round."""
    with _first_page(tiff) as page:
        return _is_inverted(page) and (page.bitspersample > 8 or page.sampleformat != _UINT)


def _is_inverted(page: TiffPage) -> bool:
    return page.photometric == _MIN_IS_WHITE and page.samplesperpixel == 1


def read_page(tiff: Tiff, number: int | None, max_pixels: int) -> Values:
    """The values of a page, upright.

    Args:
        number: of the page, from 0; None = the first that is a picture.

    Raises:
        Refused: too many pixels, complex numbers, or a compression that needs another package.
    """
    import tifffile

    with opened(tiff) as file:
        page = file.pages[_first(file) if number is None else number]
        assert isinstance(page, tifffile.TiffPage)  # frames, which know less, are made on request alone
        _check(page, max_pixels)
        try:
            found = page.asarray()
        except ValueError as error:
            if "imagecodecs" in str(error):
                kind = getattr(page.compression, "name", page.compression)
                raise NeedsCodec(f"TIFF compressed by {kind}; pip install 'dsdmae[tiff]' reads it") from error
            raise
        pixels = np.moveaxis(found, 0, -1) if page.axes == "SYX" else found
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.ndim != 3:
            raise Refused(f"a TIFF with axes {page.axes} is not a picture")
        if page.extrasamples and page.extrasamples[-1] == _PREMULTIPLIED:
            pixels = divided_by_alpha(pixels)
        tag = page.tags.get(_ORIENTATION)
        values = Values(pixels, _has_alpha(page), _nodata(page), _is_inverted(page))
        return values.upright(int(tag.value) if tag is not None else 1)


def read_bands(stream: BinaryIO, max_pixels: int) -> Values:
    """The first page; where it has one band and others like it follow, they are the bands, as microscopes write them.

    Raises:
        Refused: as read_page, or the pages differ.
    """
    first = read_page(stream, None, max_pixels)
    if first.pixels.shape[2] > 1 or (number := whole_pages(stream)) == 1:
        return first
    if number > _MOST_BANDS and first.pixels.size * number > max_pixels * _MOST_BANDS:
        raise Refused(
            f"{number} pages of {first.pixels.shape[1]}x{first.pixels.shape[0]} are more than there is room for"
        )
    others = pages(stream).numbers[1:]
    planes = [first.pixels, *(read_page(stream, page, max_pixels).pixels for page in others)]
    if len({(plane.shape, plane.dtype) for plane in planes}) > 1:
        raise Refused("pages of several sizes or types, which are no bands of one picture")
    return replace(first, pixels=np.concatenate(planes, axis=2))


def has_pages(stream: BinaryIO) -> bool:
    """Whether it is a TIFF of several pages, smaller copies of one not counted."""
    return is_tiff(stream) and whole_pages(stream) > 1


def _has_alpha(page: TiffPage) -> bool:
    """Whether the last sample is associated or unassociated alpha; others that follow the colours are bands."""
    return bool(page.extrasamples) and page.extrasamples[-1] in (1, 2)


def _nodata(page: TiffPage) -> float | None:
    tag = page.tags.get(nodata.TAG)
    return None if tag is None else nodata.parsed(tag.value)


def nodata_of(tiff: Tiff) -> float | None:
    """What the first picture says of the value that means that nothing was measured."""
    with _first_page(tiff) as page:
        return _nodata(page)


class Pages(NamedTuple):
    """Which pages of a TIFF are pictures, and how many more are overviews (smaller copies) or masks of these, those
    that hang below a page (SubIFDs) among them.
    """

    numbers: tuple[int, ...]
    beside: int


def pages(tiff: Tiff) -> Pages:
    """The pages of a TIFF, all of which can be read.

    Raises:
        Refused: it holds frames that no page stands for, which would be lost.
    """
    with opened(tiff) as file:
        there, frames = len(file.pages), _frames(file)
        numbers = _numbers(file)
        below = sum(len(getattr(file.pages[number], "subifds", None) or ()) for number in numbers)
    if frames > there:
        raise Refused(
            f"a stack of {frames} frames of which {there} {'has' if there == 1 else 'have'} a page of their own, as"
            " ImageJ writes large ones; write it with a page a frame (tifffile.imwrite without truncate)"
        )
    return Pages(tuple(numbers), there - len(numbers) + below)


def whole_pages(tiff: Tiff) -> int:
    """How many pictures a TIFF holds: its pages without smaller copies and masks of them, and frames that no page
    stands for.
    """
    with opened(tiff) as file:
        return _pictures(file)


def _pictures(file: TiffFile) -> int:
    return max(len(_numbers(file, _MOST_LOOKED_AT)), _frames(file))


def _numbers(file: TiffFile, most: int | None = None) -> list[int]:
    """The pages that are no smaller copies and no masks; where there are no others, the first is a picture.

    Args:
        most: of the pages after so many the kind is not looked at, and they are taken for pictures.
    """
    count = len(file.pages)
    looked_at = count if most is None else min(count, most)
    there = [number for number in range(looked_at) if _is_picture(getattr(file.pages[number], "subfiletype", 0))]
    return [*there, *range(looked_at, count)] or [0]


def _is_picture(kind: int) -> bool:
    return not int(kind) & (_REDUCED | _MASK)


def _first(file: TiffFile) -> int:
    """The number of the first page that is a picture: some write an overview before it."""
    if _is_picture(file.pages.first.subfiletype):
        return 0
    return _numbers(file, _MOST_LOOKED_AT)[0]


def first_for_pillow(image: ImageFile, stream: BinaryIO) -> int:
    """The same of a TIFF that Pillow has opened, whose first page's tags are at hand."""
    if _is_picture(image.tag_v2.get(_KIND, 0)):  # type: ignore[attr-defined]
        return 0
    with opened(stream) as file:
        return _first(file)


def _frames(file: TiffFile) -> int:
    """How many frames a file says that it holds, one after the other behind its first page; 1 where it says nothing."""
    said = (file.imagej_metadata or {}).get("images", 1) if file.is_imagej else 1
    shapes = file.shaped_metadata or () if file.is_shaped else ()
    page = file.pages.first
    for known in shapes[:1]:
        shape = known.get("shape", ())
        said = max(said, math.prod(map(int, shape)) // max(1, math.prod(page.shape)))
    return int(said) if isinstance(said, int) else 1


def form(tiff: Tiff, max_pixels: int) -> Form:
    """What kind of picture the first one is, upright, from its header."""
    with _first_page(tiff) as page:
        _check(page, max_pixels)
        tag = page.tags.get(_ORIENTATION)
        width, height = page.imagewidth, page.imagelength
        if tag is not None and int(tag.value) >= _SWAPS_SIDES:
            width, height = height, width
        bands, kind = page.samplesperpixel, page.sampleformat
        colors = {1: "grey", 3: "RGB"}.get(bands, "")
        if _has_alpha(page):
            colors = {2: "grey with transparency", 4: "RGB with transparency"}.get(bands, "")
        number, bits = _pictures(page.parent), page.bitspersample
        return Form(width, height, bands, bits, kind == _FLOAT, colors, number, _nodata(page), signed=kind == _INT)


def opened(tiff: Tiff) -> AbstractContextManager[TiffFile]:
    """The file, with at least one page, at its beginning; one that is open stays open. What tifffile would log of a
    damaged one is for those who listen to its log.

    Raises:
        Refused: it has no page.
    """
    import tifffile

    if isinstance(tiff, tifffile.TiffFile):
        return nullcontext(tiff)
    logging.getLogger("tifffile").addHandler(_UNHEARD)
    tiff.seek(0)
    file = tifffile.TiffFile(tiff)
    try:
        _ = file.pages.first  # their number would be counted through the whole file
        _refuse_hidden(file)
    except IndexError:
        file.close()
        raise Refused("damaged file (a TIFF without a page)") from None
    return file


def _refuse_hidden(file: TiffFile) -> None:
    """Refuse a TIFF of which only a preview could be read: a camera's raw file has one before what the sensor saw,
    which stands below it or behind it as no picture yet.

    Raises:
        Refused: it is such a file.
    """
    first = file.pages.first
    handle = file.filehandle
    handle.seek(_CANON_AT)
    raw = handle.read(len(_CANON)) == _CANON or first.photometric in _SENSOR
    below = () if raw or _is_picture(first.subfiletype) or not first.subifds else tuple(first.pages or ())
    if raw or any(getattr(page, "photometric", None) in _SENSOR for page in below):
        raise Refused(RAW)


@contextmanager
def _first_page(tiff: Tiff) -> Iterator[TiffPage]:
    with opened(tiff) as file:
        yield cast("TiffPage", file.pages[_first(file)])  # frames, which know less, are made on request alone


def _check(page: TiffPage, max_pixels: int) -> None:
    width, height, bands = page.imagewidth, page.imagelength, page.samplesperpixel
    if width * height > max_pixels:
        raise Refused(f"{width}x{height} is more than {max_pixels / 1e6:g} million pixels")
    if bands > _MOST_BANDS and width * height * bands > max_pixels * _MOST_BANDS:
        raise Refused(f"{width}x{height} in {bands} bands is more than there is room for")
    if page.dtype is None or page.dtype.kind not in "uif":
        raise Refused(f"pixels of type {page.dtype} have no grey value")
