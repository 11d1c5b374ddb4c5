"""Pictures that come back as they went in: channels, bit depth, transparency, colour profile, EXIF. No torch here.

data/decode.py turns every image into 8-bit RGB for training; here a person's file is changed and given back. What
Pillow cannot do with 16 bits is in deep.py, what is known of a picture beside its pixels in metadata.py.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Shaped
from PIL import Image
from PIL.ImageFile import ImageFile

from dsdmae_cli.data import deep, nodata, tiff
from dsdmae_cli.data.base import Refused
from dsdmae_cli.data.decode import MAX_PIXELS, opened, readable
from dsdmae_cli.data.to_rgb import orientation
from dsdmae_cli.data.values import TURNS, keyed
from dsdmae_cli.pictures import instrument
from dsdmae_cli.pictures.deep import write_png
from dsdmae_cli.pictures.metadata import Metadata, has_tables, read_metadata, save_options

if TYPE_CHECKING:
    from dsdmae_cli.data.tiff import Tiff

# 8 or 16 bits; any other integers, and floating-point numbers, of an instrument's TIFF.
Pixels = Shaped[np.ndarray, "height width channels"]

# What a suffix stands for to Pillow, and the options that lose least.
WRITERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {"compress_level": 4}),  # 6, the default, takes three times as long for two percent of noise
    ".tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),
}
_HOLDS = {
    "PNG": {"L", "LA", "RGB", "RGBA"},
    "TIFF": {"L", "LA", "RGB", "RGBA", "CMYK"},
    "WEBP": {"RGB", "RGBA"},
    "JPEG": {"L", "RGB", "CMYK"},
}
# Pixels of a side that a format counts to (JPEG: as libjpeg does), and bytes that fit into a segment of a JPEG behind
# its name.
_SIDES = {"JPEG": 65500, "WEBP": 16383}
_SEGMENTS = {"EXIF data": 65533 - len(b"Exif\0\0"), "XMP": 65533 - len(b"http://ns.adobe.com/xap/1.0/\0")}
_TO_MODE = {"1": "L", "La": "LA", "PA": "RGBA", "RGBX": "RGB", "RGBa": "RGBA", "YCbCr": "RGB"}
_BY_CHANNELS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture, upright.

    Attributes:
        pixels: as stored; colours first, alpha (mode ...A) last.
        mode: L, LA, RGB, RGBA or CMYK; of other bands their number, as "13 bands".
        metadata: colour profile, EXIF, XMP and resolution.
        frames: pictures in the file, of which this is one.
        pages: numbers of those that are a stack, where the file is a TIFF; else the first alone.
        beside: pages of a TIFF that are overviews or masks of these, and are not read.
        nodata: the value that says that nothing was measured, where the file names one.
        inverted: its least value is white, which a TIFF alone can say.
    """

    pixels: Pixels
    mode: str
    metadata: Metadata = field(default=Metadata(), repr=False)
    frames: int = 1
    pages: tuple[int, ...] = (0,)
    beside: int = 0
    nodata: float | None = None
    inverted: bool = False

    @classmethod
    def of(cls, source: Pixels | Image.Image) -> Picture:
        """The picture in an array or a Pillow image; `read` takes files.

        Args:
            source: 8 or 16 bits, [height, width] or [height, width, channels] with 1 to 4 channels (grey, grey and
                alpha, RGB, RGBA); or an image of any mode that `read` takes.

        Raises:
            Refused: neither, or 16-bit colour in an image, of which Pillow would hand out the upper byte alone.
        """
        if isinstance(source, Image.Image):
            if isinstance(source, ImageFile) and deep.raw_mode(source):
                raise Refused("Pillow would halve the 16 bits of this image; name its file instead")
            return _upright(*_as_it_lies(source, *_pixels(source)))
        if not isinstance(source, np.ndarray):
            raise Refused(f"a {type(source).__name__} is no picture; it takes an array, a PIL image or a file's path")
        pixels = source[..., None] if source.ndim == 2 else source
        whole = pixels.ndim == 3 and pixels.shape[-1] in _BY_CHANNELS and pixels.size
        if not whole or pixels.dtype not in (np.uint8, np.uint16):
            raise Refused(
                f"an array of {source.dtype} {list(source.shape)} is no picture; it takes uint8 or uint16,"
                " [height, width] or [height, width, channels] with 1 to 4 channels"
            )
        return cls(pixels, _BY_CHANNELS[pixels.shape[-1]])

    @property
    def height(self) -> int:
        """Rows."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.pixels.shape[1])

    @property
    def depth(self) -> int:
        """Bits per channel."""
        return 8 * self.pixels.dtype.itemsize

    @property
    def peak(self) -> int:
        """The largest value of a channel of 8 or 16 bits, 255 or 65535."""
        return 2**self.depth - 1

    @property
    def color_groups(self) -> list[tuple[int, ...]]:
        """Channels that belong together as a colour; a black plate stands alone, alpha is none of them."""
        if self.mode.endswith("bands"):  # the first three of four are colours, of more nothing is known
            count = self.pixels.shape[2]
            return [(0, 1, 2), (3,)] if count == 4 else [(band,) for band in range(count)]
        groups: dict[str, list[tuple[int, ...]]] = {"L": [(0,)], "LA": [(0,)], "CMYK": [(0, 1, 2), (3,)]}
        return groups.get(self.mode, [(0, 1, 2)])

    @property
    def num_colors(self) -> int:
        """Channels without alpha."""
        return int(self.pixels.shape[2]) - self.mode.endswith("A")

    @property
    def is_instruments(self) -> bool:
        """Whether only an instrument's TIFF holds it: other numbers than 8 and 16 bits, other bands, or 0 as white."""
        return self.pixels.dtype not in (np.uint8, np.uint16) or self.mode.endswith("bands") or self.inverted

    @property
    def suffix(self) -> str:
        """The format for it where nobody chose one: a TIFF stays one, whose words and units nothing else holds."""
        stays = self.metadata.tags is not None and (self.depth == 8 or self.mode == "L")
        return ".tif" if stays or self.mode == "CMYK" or self.by_tifffile else ".png"

    @property
    def by_tifffile(self) -> bool:
        """Whether Pillow writes no TIFF of it: other numbers, several pages, or a TIFF's 16-bit colour.

        Of the last one PNG holds the tables of EXIF, which tifffile does not write; where on Earth it lies, TIFF alone.
        """
        tags, colour = self.metadata.tags, self.depth == 16 and self.mode != "L"
        deep = colour and tags is not None and (bool(tags.geo) or not has_tables(self.metadata))
        return self.is_instruments or len(self.pages) > 1 or deep

    @property
    def shape(self) -> str:
        """What a picture that it is compared with has to have in common with it."""
        return f"{self.width}x{self.height}, {self.depth}-bit {self.mode.removesuffix('A')}"

    def with_pixels(self, pixels: Pixels) -> Picture:
        """Other pixels, everything else the same."""
        return replace(self, pixels=pixels)


def read(source: Path | bytes, name: str, max_pixels: int = MAX_PIXELS, page: int = 0) -> Picture:
    """Read a picture, one of a TIFF's pages if there are several, the first one of an animation.

    One bit becomes 8 bits of grey, a palette the colours it stands for (grey if all are), since a restored picture has
    values between; 32-bit grey within 0..65535 becomes 16-bit.

    Args:
        name: what to call it in messages.
        max_pixels: refuse more, by the header, before memory is taken.
        page: of a TIFF, one of the numbers that its first has.

    Raises:
        UnreadableImage: it is not an image, is damaged, too large, or of a kind that has no place here.
    """
    with readable(source, name, max_pixels) as stream:
        found = _of_tiff(stream, max_pixels, page) if tiff.is_tiff(stream) else None
    return found if isinstance(found, Picture) else _by_pillow(source, name, max_pixels, found)


def read_pages(source: Path | bytes, name: str, max_pixels: int = MAX_PIXELS) -> list[Picture]:
    """A picture, or all pages of a TIFF that is a stack, by one opening of it.

    Raises:
        UnreadableImage: see read.
    """
    first = read(source, name, max_pixels)
    if len(first.pages) == 1:
        return [first]
    with readable(source, name, max_pixels) as stream, tiff.opened(stream) as file:
        found = [_of_tiff(file, max_pixels, page) for page in first.pages[1:]]
    return [first, *(x if isinstance(x, Picture) else _by_pillow(source, name, max_pixels, x) for x in found)]


class _Page(NamedTuple):
    """What a TIFF says of a page that Pillow reads: its number, its own tags, and what Picture has of the file."""

    number: int
    tags: Metadata
    pages: tiff.Pages
    nodata: float | None
    inverted: bool


def _of_tiff(stream: Tiff, max_pixels: int, page: int) -> Picture | _Page:
    """A page that Pillow would not give whole, or of a stack, whose words Pillow would lose; of others what is known.

    Args:
        page: its number; 0 = the first that is a picture.
    """
    with tiff.opened(stream) as file:
        # Of a later page it is known already, and in a stack of thousands it would be found thousands of times.
        pages = tiff.pages(file) if page == 0 else tiff.Pages((0,), 0)
        stack = page > 0 or len(pages.numbers) > 1
        page = page or pages.numbers[0]
        for_pillow = tiff.is_for_pillow(file)
        if not for_pillow or (stack and tiff.is_plain(file)):
            try:
                values, mode, known = instrument.read_page(file, page, max_pixels)
            except tiff.NeedsCodec:
                if not for_pillow:
                    raise
            else:
                pixels = np.ascontiguousarray(values.pixels)
                of_file = (len(pages.numbers), pages.numbers, pages.beside, values.nodata, values.inverted)
                return Picture(pixels, mode, known, *of_file)
        about = (instrument.metadata(file, page), pages, tiff.nodata_of(file), tiff.is_inverted(file))
        return _Page(page, *about)


def _by_pillow(source: Path | bytes, name: str, max_pixels: int, known: _Page | None) -> Picture:
    """What Pillow reads, and of a TIFF what is known of its page."""
    page = known.number if known is not None else 0
    with opened(source, name, max_pixels) as image:
        image.seek(page)
        raw_mode = deep.raw_mode(image)
        pixels, mode = _pixels(image) if raw_mode is None else deep.upper_bytes(image, raw_mode)
        picture, turn = _as_it_lies(image, pixels, mode)
        key = image.info.get("transparency")
    if raw_mode is not None and not deep.is_whole(raw_mode):
        with opened(source, name, max_pixels) as image:
            image.seek(page)
            deep.add_lower_bytes(picture.pixels, image, raw_mode)
        if picture.mode == "RGB" and isinstance(key, tuple):
            picture = replace(picture, pixels=keyed(picture.pixels, key), mode="RGBA")
    if known is not None:
        numbers, beside = known.pages
        own = picture.metadata._replace(description=known.tags.description, tags=known.tags.tags)
        picture = replace(
            picture, frames=len(numbers), pages=numbers, beside=beside, metadata=own, nodata=known.nodata,
            inverted=known.inverted,
        )  # fmt: skip
    return _upright(picture, turn)


def _as_it_lies(image: Image.Image, pixels: Pixels, mode: str) -> tuple[Picture, int]:
    """A picture as it lies in its file, and EXIF's orientation (1..8), which says how to turn it upright."""
    # Pillow turns a TIFF when it loads it.
    is_tiff = image.format == "TIFF"
    turn = 1 if is_tiff else orientation(image)
    frames = 1 if is_tiff else getattr(image, "n_frames", 1)  # some kinds of masks that follow Pillow cannot open
    return Picture(pixels, mode, read_metadata(image), frames), turn


def _pixels(image: Image.Image) -> tuple[Pixels, str]:
    """Pixels as Pillow decodes them, and the mode that they are kept in."""
    image.load()
    if image.mode == "F":
        return np.array(image)[..., None], "L"
    if image.mode.startswith("I"):
        return _grey16(image)
    mode = _TO_MODE.get(image.mode, image.mode)
    if image.mode == "P":
        mode = _palette_mode(image)
    elif image.has_transparency_data and mode in {"L", "RGB"}:  # one colour is declared transparent
        mode += "A"
    if mode not in {"L", "LA", "RGB", "RGBA", "CMYK"}:
        raise Refused(f"colour mode {image.mode} is not supported")
    pixels = np.array(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(image.height, image.width, -1), mode


def _palette_mode(image: Image.Image) -> str:
    used = np.flatnonzero(np.bincount(np.asarray(image).ravel(), minlength=256))
    table = np.frombuffer(image.im.getpalette("RGB", "RGB"), np.uint8).reshape(-1, 3)
    colors = table[used[used < len(table)]]
    mode = "L" if (colors == colors[:, :1]).all() else "RGB"
    return f"{mode}A" if image.has_transparency_data else mode


def _grey16(image: Image.Image) -> tuple[Pixels, str]:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        return values.astype(np.int32)[..., None], "L"
    grey = values.astype(np.uint16)[..., None]
    key = image.info.get("transparency")
    return (keyed(grey, key), "LA") if isinstance(key, int) else (grey, "L")


def _upright(picture: Picture, turn: int) -> Picture:
    pixels = TURNS[turn](picture.pixels) if turn in TURNS else picture.pixels
    return picture.with_pixels(np.ascontiguousarray(pixels))


# -- writing


def most_of_a_side(suffix: str) -> int:
    """Pixels of a side that a format counts to."""
    return _SIDES.get(WRITERS[suffix][0], sys.maxsize)


def check_format(picture: Picture, suffix: str) -> None:
    """Whether a format can hold the picture.

    Raises:
        Refused: it cannot; the message names one that can.
    """
    kind = WRITERS[suffix][0]
    deep_enough = picture.depth == 8 or kind == "PNG" or (kind == "TIFF" and picture.mode == "L")
    deep_enough = deep_enough or (picture.by_tifffile and kind == "TIFF")
    only_tiff = picture.is_instruments or len(picture.pages) > 1
    held = kind == "TIFF" if only_tiff else picture.mode in _HOLDS[kind]
    if not held or not deep_enough:
        what = f"{len(picture.pages)} pages" if len(picture.pages) > 1 else f"{picture.depth}-bit {picture.mode} pixels"
        raise Refused(f"{kind} cannot hold {what} as they are; write {picture.suffix}")
    if max(picture.width, picture.height) > (most := most_of_a_side(suffix)):
        raise Refused(f"{kind} cannot hold {picture.width}x{picture.height}, but {most} a side; write {picture.suffix}")
    for (what, room), known in zip(_SEGMENTS.items(), (picture.metadata.exif, picture.metadata.xmp), strict=True):
        if kind == "JPEG" and known and len(known) > room:
            raise Refused(f"JPEG cannot hold {len(known):,} bytes of {what}, but {room:,}; write {picture.suffix}")


def write(pages: Sequence[Picture], file: BinaryIO, suffix: str) -> None:
    """Write a picture, or the pages of a stack, with everything that came with it.

    Args:
        suffix: a key of WRITERS; several pages make a TIFF.

    Raises:
        Refused: the format cannot hold it (see check_format).
    """
    check_format(pages[0], suffix)
    try:
        _write(pages, file, suffix)
    except (ValueError, OverflowError, struct.error) as error:  # what else a writer finds too much
        raise Refused(f"{WRITERS[suffix][0]} cannot hold it: {error}; write {pages[0].suffix}") from error


def _write(pages: Sequence[Picture], file: BinaryIO, suffix: str) -> None:
    picture = pages[0]
    kind, options = WRITERS[suffix]
    if kind == "TIFF" and (picture.by_tifffile or len(pages) > 1):
        instrument.write(pages, file)
        return
    if kind == "PNG" and picture.depth == 16 and picture.mode != "L":
        write_png(picture.pixels, picture.metadata, file)
        return
    options = {**options, **save_options(picture.metadata, kind)}
    if kind == "TIFF" and picture.nodata is not None:
        options["exif"][nodata.TAG] = nodata.written(picture.nodata)
        options["compression"] = None  # Pillow's compressing writer loses tags that it does not know
    to_image(picture).save(file, format=kind, **options)


def to_image(picture: Picture) -> Image.Image:
    """As Pillow holds it: L, LA, RGB, RGBA, CMYK, I;16, or I and F of one band.

    Raises:
        Refused: 16-bit colour, other bands or other numbers, which Pillow has no mode for.
    """
    pixels = picture.pixels
    if picture.is_instruments:
        if pixels.shape[2] != 1 or pixels.dtype not in (np.int32, np.float32) or picture.inverted:
            what = f"{picture.mode} of {pixels.dtype}{' whose zero is white' if picture.inverted else ''}"
            raise Refused(f"Pillow has no mode for {what}; `dsdmae denoise` writes a TIFF")
        return Image.fromarray(pixels[..., 0])
    if picture.depth == 16:
        if picture.mode != "L":
            raise Refused("Pillow has no mode for 16-bit colour; give an array, or `dsdmae denoise` writes a PNG")
        return Image.fromarray(pixels[..., 0])
    data = np.ascontiguousarray(pixels)
    return Image.frombuffer(picture.mode, (picture.width, picture.height), data, "raw", picture.mode, 0, 1)
