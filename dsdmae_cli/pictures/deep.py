"""16 bits a colour channel, of which Pillow hands out the upper byte and writes none: both bytes in, both bytes out.

16-bit grey is no business of this file: Pillow reads and writes it whole. No torch here.
"""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL.ImageFile import ImageFile

from dsdmae_cli.data.decode import Refused
from dsdmae_cli.pictures.metadata import Metadata

_GREY_ALPHA = "LA;16B"
_TIFF = {f"{mode};16{order}" for mode in ("RGB", "RGBA", "RGBX") for order in "LBN"}
_BITS_PER_SAMPLE = 258
# Colour types of PNG by the number of channels: grey, grey and alpha, colour, colour and alpha.
_PNG_COLOR = {1: 0, 2: 4, 3: 2, 4: 6}
_BAND_BYTES = 1 << 22


def raw_mode(image: ImageFile) -> str | None:
    """Pillow's raw mode of an image with 16-bit colour, not yet loaded; None where its own decoding loses nothing.

    Raises:
        Refused: 16-bit colour that cannot be had whole.
    """
    if image.mode.startswith(("I", "F")):
        return None
    raw_modes = {tile.args if isinstance(tile.args, str) else tile.args[0] for tile in image.tile if tile.args}
    values = [tile.args[1] for tile in image.tile if tile.codec_name.startswith("ppm") and isinstance(tile.args, tuple)]
    if image.mode == "RGB" and any(value > 255 for value in values):
        raise Refused("16-bit colour in PPM is not supported; convert it to PNG or TIFF")
    if image.format == "TIFF" and max(image.tag_v2.get(_BITS_PER_SAMPLE, (8,))) > 8:  # type: ignore[attr-defined]
        found = next(iter(raw_modes)) if len(raw_modes) == 1 else ""
        if found not in _TIFF:
            raise Refused("this kind of 16-bit TIFF is not supported (CMYK, planes, premultiplied); convert it to PNG")
        return found
    deep = next((raw for raw in raw_modes if isinstance(raw, str) and raw.endswith(";16B")), None)
    return deep if image.format == "PNG" else None


def is_whole(mode: str) -> bool:
    """Whether `upper_bytes` gives both bytes of this raw mode."""
    return mode == _GREY_ALPHA


def upper_bytes(image: ImageFile, mode: str) -> tuple[UInt16[np.ndarray, "h w c"], str]:
    """The upper bytes of an image of this raw mode, to be shifted up by `add_lower_bytes`, and Pillow's mode for it."""
    if mode == _GREY_ALPHA:  # four bytes a pixel, which Pillow would halve: taken as they lie
        _set_raw_mode(image, "RGBA")
        image.load()
        return np.asarray(image).copy().view(">u2").astype(np.uint16), "LA"
    image.load()
    return np.asarray(image).astype(np.uint16), image.mode


def add_lower_bytes(upper: UInt16[np.ndarray, "h w c"], image: ImageFile, mode: str) -> None:
    """Make values of 16 bits of the upper bytes, in place, with the lower ones from the same file opened again."""
    native = "L" if np.little_endian else "B"
    order = native if mode[-1] == "N" else mode[-1]
    # The lower byte is the upper one of the opposite byte order.
    _set_raw_mode(image, mode[:-1] + ("B" if order == "L" else "L"))
    image.load()
    upper <<= 8
    upper |= np.asarray(image)


def _set_raw_mode(image: ImageFile, mode: str) -> None:
    image.tile = [
        tile._replace(args=mode if isinstance(tile.args, str) else (mode, *(tile.args or ())[1:]))
        for tile in image.tile
    ]


def write_png(pixels: UInt16[np.ndarray, "h w c"], known: Metadata, file: BinaryIO) -> None:
    """A PNG of 16 bits a channel (ISO/IEC 15948), which Pillow cannot write in colour or with alpha."""
    height, width, channels = pixels.shape
    file.write(b"\x89PNG\r\n\x1a\n")
    _chunk(file, b"IHDR", struct.pack(">LLBBBBB", width, height, 16, _PNG_COLOR[channels], 0, 0, 0))
    if known.icc:
        _chunk(file, b"iCCP", b"ICC Profile\0\0" + zlib.compress(known.icc))
    if known.dpi:
        per_meter = (round(x / 0.0254) for x in known.dpi)
        _chunk(file, b"pHYs", struct.pack(">LLB", *per_meter, 1))
    if known.xmp:
        _chunk(file, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + known.xmp)
    if known.exif:
        _chunk(file, b"eXIf", known.exif)
    packer = zlib.compressobj(4)
    row_bytes = pixels.strides[0]
    for top in range(0, height, rows := max(1, _BAND_BYTES // row_bytes)):
        packed = packer.compress(_filtered(pixels, top, rows).tobytes())
        if packed:
            _chunk(file, b"IDAT", packed)
    _chunk(file, b"IDAT", packer.flush())
    _chunk(file, b"IEND", b"")


def _filtered(pixels: UInt16[np.ndarray, "h w c"], top: int, rows: int) -> UInt8[np.ndarray, "rows row_bytes"]:
    """Rows as PNG stores them: big-endian, each a difference to the row above (filter 2, "up")."""
    first = max(0, top - 1)
    raw = pixels[first : top + rows].astype(">u2").view(np.uint8).reshape(min(top + rows, len(pixels)) - first, -1)
    above = raw[:-1] if top else np.concatenate([np.zeros_like(raw[:1]), raw[:-1]])
    own = raw[1:] if top else raw
    return np.concatenate([np.full((len(own), 1), 2, np.uint8), own - above], axis=1)


def _chunk(file: BinaryIO, name: bytes, content: bytes) -> None:
    file.write(struct.pack(">L", len(content)) + name + content)
    file.write(struct.pack(">L", zlib.crc32(content, zlib.crc32(name))))
