"""From a file's bytes to an RGB array: the program's one policy for every kind of image. No torch here.

The policy in words is in docs/datasets.md. What a dataset is stands in base.py; cropping and scaling to the
network's size happen later, in augment.py.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8

# Pillow registers TIFF and WebP only together with all its other formats unless they are imported by name.
from PIL import Image, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin  # noqa: F401
from PIL.ImageFile import ImageFile

from dsdmae_cli.data.base import UnreadableImage

MAX_PIXELS = 100_000_000
IMAGE_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
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
    }
)
# Image.open tries nothing else: EPS and its like would start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

_ORIENTATION_TAG = 0x0112
_TRANSPOSITION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = frozenset({5, 6, 7, 8})
_TO_RGB_DIRECTLY = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"})

Rgb = UInt8[np.ndarray, "height width 3"]


class Refused(ValueError):  # noqa: N818
    """An image that is intact but that the policy has no place for."""


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


def decode(source: Path | bytes | BinaryIO, name: str) -> Rgb:
    """Decode an image file as RGB, upright, without transparency.

    Args:
        source: where the file is, its bytes, or an open seekable file (left open).
        name: what to call it in messages.

    Raises:
        UnreadableImage: it is not an image, is damaged, too large, or of a kind that has no 8-bit meaning.
    """
    with opened(source, name) as image:
        return to_rgb(image)


def image_size(source: Path | bytes | BinaryIO, name: str) -> tuple[int, int]:
    """Width and height as `decode` would give them, from the header alone.

    Raises:
        UnreadableImage: the header says that `decode` would refuse it.
    """
    with opened(source, name) as image:
        width, height = image.size
        # Pillow would decode a whole PNG to look for a late orientation, and turns TIFF's size by itself.
        in_header = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
        swapped = in_header and orientation(image) in _SWAPS_SIDES
        return (height, width) if swapped else (width, height)


def to_rgb(image: Image.Image) -> Rgb:
    """Turn a Pillow image (its current frame) into upright RGB; transparency is laid over white.

    16-bit grey keeps its upper byte (value >> 8). Mode I counts as 16-bit grey if it stays in 0..65535.

    Raises:
        ValueError: the mode has no defined range (F), holds values outside 0..65535 (I), or is unknown.
    """
    image.load()
    turn = orientation(image)
    if image.mode.startswith("I"):
        rgb = _grey16_to_rgb(image)
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        rgb = Image.alpha_composite(white, rgba).convert("RGB")
    elif image.mode in _TO_RGB_DIRECTLY:
        rgb = image.convert("RGB")
    elif image.mode == "F":
        raise Refused("floating-point pixels have no defined range")
    else:
        raise Refused(f"colour mode {image.mode} is not supported")
    if turn in _TRANSPOSITION:
        rgb = rgb.transpose(_TRANSPOSITION[turn])
    return np.array(rgb)  # a copy, because Pillow's own view is read-only


@contextmanager
def opened(source: Path | bytes | BinaryIO, name: str, max_pixels: int = MAX_PIXELS) -> Iterator[ImageFile]:
    """An image with its header read; whatever is wrong with it, inside the block too, is the file's fault.

    Raises:
        UnreadableImage: it is not an image, is damaged, too large, or what the block does with it is refused.
    """
    try:
        with _quiet_pillow, _allowing(max_pixels), _stream(source) as stream:
            stream.seek(0)
            if not stream.read(1):
                raise Refused("empty file")
            with Image.open(stream, formats=FORMATS) as image:
                _check_size(*image.size, max_pixels)
                yield image
    except Exception as error:  # damaged files make Pillow raise nearly anything; all of it is the file's fault
        raise UnreadableImage(name, _reason(error, max_pixels)) from error


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
        return source.open("rb")
    return io.BytesIO(source) if isinstance(source, bytes) else nullcontext(source)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise Refused(f"no pixels ({width}x{height})")
    if width * height > max_pixels:
        raise Refused(f"{width}x{height} is more than {max_pixels / 1e6:g} million pixels")


def _reason(error: Exception, max_pixels: int) -> str:
    if isinstance(error, Refused):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "not a JPEG, PNG, WebP, BMP, GIF, TIFF or PPM file, or only part of one"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {max_pixels / 1e6:g} million pixels"
    if isinstance(error, MemoryError):
        return "not enough memory for its pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    message = (str(error).splitlines() or [type(error).__name__])[0]
    return "truncated file" if "truncated" in message.lower() else f"damaged file ({message})"


def orientation(image: Image.Image) -> int:
    """EXIF's (or XMP's) orientation, 1..8; 1 is upright. Known for certain only once the image is loaded."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF says nothing about the pixels, so that the image is taken as it lies
        return 1


def _grey16_to_rgb(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "I" and (values.min() < 0 or values.max() > 0xFFFF):
        raise Refused(f"32-bit grey from {values.min()} to {values.max()} is outside 0..65535")
    grey = (values >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")
