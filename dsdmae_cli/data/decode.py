"""From a file's bytes to an array, RGB or what data.channels says: one policy for every kind of image. No torch here.

The policy in words is in docs/datasets.md. What a dataset is stands in base.py; cropping and scaling to the
network's size happen later, in augment.py.
"""

from __future__ import annotations

import io
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8

# Pillow registers AVIF, TIFF and WebP only together with all its other formats unless they are imported by name.
from PIL import AvifImagePlugin, Image, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin  # noqa: F401
from PIL.ImageFile import ImageFile

from dsdmae_cli.data import deep, kinds, tiff
from dsdmae_cli.data.base import Form, Refused, UnreadableImage, raise_shortage
from dsdmae_cli.data.to_rgb import SWAPS_SIDES, orientation, to_rgb
from dsdmae_cli.data.values import Reading, Values, keyed
from dsdmae_cli.files import instead, open_file

# What Pillow has to say of a damaged file comes as an exception too; without a handler Python prints it raw.
logging.getLogger("PIL").addHandler(logging.NullHandler())

MAX_PIXELS = 100_000_000
# What phones and cameras write; Pillow reads it with the help of a package of its own.
HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
HEIF_ADVICE = "pip install 'dsdmae[heif]'"
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_LONGEST_BRANDS = 256  # bytes from the start of a file, which its table of brands never reaches
IMAGE_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".avif",
    }
    | (HEIF_SUFFIXES if find_spec("pillow_heif") else frozenset())
)
# Those that can hold more than 8 bits a channel.
DEEP_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".pgm", ".ppm", ".pnm"})
# Image.open tries nothing else: EPS and its like would start other programs.
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")

# Kinds of files that hold animations; a JPEG of several pictures is a photograph with what a telephone adds to it.
_ANIMATED = frozenset({"GIF", "WEBP", "PNG", "AVIF"})
_BAND_BY_BAND = frozenset({"L", "LA", "RGB", "RGBA"})

AS_STORED = Reading()
_COLORS = {
    "1": "black and white", "L": "grey", "LA": "grey with transparency", "La": "grey with transparency",
    "I;16": "grey", "I;16B": "grey", "I;16L": "grey", "I;16N": "grey", "I": "grey", "F": "grey", "P": "palette",
    "RGBA": "RGB with transparency", "RGBa": "RGB with transparency",
}  # fmt: skip


class _QuietPillow:
    """Silences Pillow's own warnings while any thread is inside; everyone else's still show.

    `warnings.catch_warnings` alone is not safe between threads: two that overlap can leave the filter in
    place for good. Here the first one in saves the filters and the last one out restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved: warnings.catch_warnings[None] | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._saved is not None:
                self._saved.__exit__(None, None, None)
                self._saved = None


_quiet_pillow = _QuietPillow()


def decode(source: Path | bytes | BinaryIO, name: str, how: Reading = AS_STORED) -> UInt8[np.ndarray, "h w c"]:
    """Decode an image file, upright: as RGB without transparency unless `how` wants other channels.

    Args:
        source: where the file is, its bytes, or an open seekable file (left open).
        name: what to call it in messages.
        how: what is black and what is white where there are more than 8 bits, and which bands are the channels.

    Raises:
        UnreadableImage: it is not an image, is damaged, too large, or of a kind that has no 8-bit meaning.
    """
    with readable(source, name) as stream:
        if (values := _by_tifffile(stream, how)) is not None:
            return values.shown(how)
        with _image(stream, MAX_PIXELS) as image:
            if not (_needs_values(image, stream, how) and is_deep(image)):  # in this order: is_deep refuses some
                return _bands(image, how)
            values = _values(image, stream)
        return values.shown(how)


def _needs_values(image: ImageFile, stream: BinaryIO, how: Reading) -> bool:
    """Whether a picture, if it has more than 8 bits, is to be shown otherwise than as Pillow would make RGB of it."""
    by_pillow = how.range is None and how.is_photographic
    return not by_pillow or (image.format == "TIFF" and tiff.is_inverted(stream))


def deep_values(source: Path | bytes | BinaryIO, name: str, how: Reading = AS_STORED) -> Values | None:
    """The values of a picture of more than 8 bits as stored, upright; None for others, by their header alone.

    Args:
        how: of which channels it is, where these are not grey or RGB.

    Raises:
        UnreadableImage: as decode.
    """
    with readable(source, name) as stream:
        if (values := _by_tifffile(stream, how)) is not None:
            return values if values.is_deep else None
        with _image(stream, MAX_PIXELS) as image:
            return _values(image, stream) if is_deep(image) else None


def _by_tifffile(stream: BinaryIO, how: Reading) -> Values | None:
    """A TIFF that Pillow does not read whole; where neither grey nor RGB is wanted, with its pages for bands."""
    if not how.is_photographic and tiff.has_pages(stream):
        return tiff.read_bands(stream, MAX_PIXELS)
    if tiff.is_tiff(stream) and not tiff.is_for_pillow(stream):
        return tiff.read_page(stream, None, MAX_PIXELS)
    return None


def image_size(source: Path | bytes | BinaryIO, name: str) -> tuple[int, int]:
    """Width and height as `decode` would give them, from the header alone.

    Raises:
        UnreadableImage: the header says that `decode` would refuse it.
    """
    found = image_form(source, name)
    return found.width, found.height


def image_form(source: Path | bytes | BinaryIO, name: str) -> Form:
    """What kind of picture a file holds, from its header alone.

    Raises:
        UnreadableImage: the header says that `decode` would refuse it.
    """
    with readable(source, name) as stream:
        pages, missing = 1, None
        if tiff.is_tiff(stream):
            if not tiff.is_for_pillow(stream):
                return tiff.form(stream, MAX_PIXELS)
            pages, missing = tiff.whole_pages(stream), tiff.nodata_of(stream)
        with _image(stream, MAX_PIXELS) as image:
            width, height = image.size
            # Pillow would decode a whole PNG to look for a late orientation, and turns TIFF's size by itself.
            in_header = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
            if in_header and orientation(image) in SWAPS_SIDES:
                width, height = height, width
            bits = _bits(image)
            bands, colors = _kind(image)
            animated = image.format in _ANIMATED and getattr(image, "is_animated", False)
            pages = image.n_frames if animated else pages  # type: ignore[attr-defined]
            return Form(width, height, bands, bits, image.mode == "F", colors, pages, missing, animated=animated)


def _kind(image: ImageFile) -> tuple[int, str]:
    """How many bands there are, and what they are in a word."""
    if deep.is_grey_alpha(image):  # which Pillow calls RGBA
        return 2, _COLORS["LA"]
    return len(image.getbands()), _COLORS.get(image.mode, image.mode)


def _bits(image: ImageFile) -> int:
    if image.mode == "F" or image.mode == "I":
        return 32
    if image.mode == "1":
        return 1
    try:
        return 16 if is_deep(image) else 8
    except Refused:  # the size is known all the same
        return 16


def is_deep(image: ImageFile) -> bool:
    """Whether an image that is not loaded yet has more than 8 bits a channel.

    Raises:
        Refused: 16-bit colour that Pillow cannot give whole.
    """
    return image.mode.startswith(("I", "F")) or deep.raw_mode(image) is not None


def _values(image: ImageFile, stream: BinaryIO) -> Values:
    """Of an image of more than 8 bits, upright."""
    raw = deep.raw_mode(image)
    if raw is None:
        image.load()
        pixels, alpha = np.array(image)[..., None], False
        if pixels.dtype == np.int32 and pixels.size and pixels.min() >= 0 and pixels.max() <= 0xFFFF:
            pixels = pixels.astype(np.uint16)
    else:
        pixels, mode = deep.upper_bytes(image, raw)
        alpha = mode.endswith("A")
    turn = 1 if image.format == "TIFF" else orientation(image)  # Pillow turns a TIFF when it loads it
    key = image.info.get("transparency")
    if raw is not None and not deep.is_whole(raw):
        with _image(stream, MAX_PIXELS) as again:
            deep.add_lower_bytes(pixels, again, raw)
    if not alpha and isinstance(key, int | tuple):
        pixels, alpha = keyed(pixels, key), True
    is_tiff = image.format == "TIFF"
    missing, inverted = (tiff.nodata_of(stream), tiff.is_inverted(stream)) if is_tiff else (None, False)
    return Values(pixels, alpha, missing, inverted).upright(turn)


def _bands(image: ImageFile, how: Reading) -> UInt8[np.ndarray, "h w c"]:
    """The bands of an ordinary picture that were asked for."""
    if not how.is_photographic:
        return Values(_as_stored(image)).shown(Reading(bands=how.bands, channels=how.channels))
    rgb = to_rgb(image)
    return (
        rgb
        if how.bands is None and how.channels == 3
        else Values(rgb).shown(Reading(bands=how.bands, channels=how.channels))
    )


def _as_stored(image: ImageFile) -> UInt8[np.ndarray, "h w c"]:
    """Grey, RGB, and the transparency of either as one more band, upright; anything else as RGB."""
    image.load()
    if image.mode not in _BAND_BY_BAND:
        return to_rgb(image)
    pixels = np.array(image)
    turn = 1 if image.format == "TIFF" else orientation(image)
    return Values(pixels[..., None] if pixels.ndim == 2 else pixels).upright(turn).pixels


@contextmanager
def opened(source: Path | bytes | BinaryIO, name: str, max_pixels: int = MAX_PIXELS) -> Iterator[ImageFile]:
    """An image with its header read; whatever is wrong with it, inside the block too, is the file's fault.

    Raises:
        UnreadableImage: it is not an image, is damaged, too large, or what the block does with it is refused.
    """
    with readable(source, name, max_pixels) as stream, _image(stream, max_pixels) as image:
        yield image


@contextmanager
def readable(source: Path | bytes | BinaryIO, name: str, max_pixels: int = MAX_PIXELS) -> Iterator[BinaryIO]:
    """The file at its beginning; whatever goes wrong in the block is the file's fault.

    Raises:
        UnreadableImage: it is empty, or what the block does with it fails or is refused.
    """
    try:
        with _quiet_pillow, _allowing(max_pixels), _stream(source) as stream:
            stream.seek(0)
            if not stream.read(1):
                raise Refused("empty file")
            stream.seek(0)
            yield stream
    except Exception as error:  # damaged files make decoders raise nearly anything; all of it is the file's fault
        raise_shortage(error, name)
        unknown = isinstance(error, UnidentifiedImageError)
        reason = _unknown(source) if unknown else _reason(error, max_pixels)
        raise UnreadableImage(name, reason) from error


def _unknown(source: Path | bytes | BinaryIO) -> str:
    """What is said of a file that Pillow takes for no picture."""
    with suppress(OSError), _stream(source) as stream:
        stream.seek(0)
        if kind := kinds.kind_of(stream.read(kinds.HEAD)):
            return kind
    return f"not a JPEG, PNG, WebP, BMP, GIF, TIFF, PPM or AVIF file, or only part of one{instead(source)}"


@contextmanager
def _image(stream: BinaryIO, max_pixels: int) -> Iterator[ImageFile]:
    stream.seek(0)
    begins = stream.read(_LONGEST_BRANDS)
    stream.seek(0)
    formats = FORMATS
    if begins[4:8] == b"ftyp" and begins[8:12] in _HEIF_BRANDS and not _is_avif(begins):
        formats = _with_heif()
    with Image.open(stream, formats=formats) as image:
        if image.format == "TIFF" and (first := tiff.first_for_pillow(image, stream)):
            image.seek(first)
        _check_size(*image.size, max_pixels)
        yield image


def _is_avif(begins: bytes) -> bool:
    """Whether the brands that a file is compatible with (ISO/IEC 14496-12, 4.3) name AVIF, which Pillow reads itself:
    its major brand may be that of any picture of this container, mif1."""
    size = int.from_bytes(begins[:4], "big")
    return any(begins[at : at + 4] in _AVIF_BRANDS for at in range(16, min(size, len(begins)), 4))


def _with_heif() -> tuple[str, ...]:
    try:
        import pillow_heif
    except ImportError as error:
        raise Refused(f"HEIC needs another package: {HEIF_ADVICE}") from error
    pillow_heif.register_heif_opener()
    return (*FORMATS, "HEIF")


@contextmanager
def _allowing(max_pixels: int) -> Iterator[None]:
    """Lift Pillow's own limit where somebody asked for more than ours; it is a global, so for one thread only."""
    before = Image.MAX_IMAGE_PIXELS
    if max_pixels > MAX_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        yield
    finally:
        if max_pixels > MAX_PIXELS:
            Image.MAX_IMAGE_PIXELS = before


def _stream(source: Path | bytes | BinaryIO) -> AbstractContextManager[BinaryIO]:
    if isinstance(source, Path):
        return open_file(source)
    return io.BytesIO(source) if isinstance(source, bytes) else nullcontext(source)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise Refused(f"no pixels ({width}x{height})")
    if width * height > max_pixels:
        raise Refused(f"{width}x{height} is more than {max_pixels / 1e6:g} million pixels")


def _reason(error: Exception, max_pixels: int) -> str:
    if isinstance(error, Refused):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {max_pixels / 1e6:g} million pixels"
    if isinstance(error, MemoryError):
        return "not enough memory for its pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    message = (str(error).splitlines() or [type(error).__name__])[0]
    return "truncated file" if "truncated" in message.lower() else f"damaged file ({message})"
