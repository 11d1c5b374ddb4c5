"""PNG with 16 bits a colour channel, which Pillow cannot write; data/deep.py reads it. No torch here."""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8, UInt16

from dsdmae_cli.pictures.metadata import Metadata

# Colour types of PNG by the number of channels: grey, grey and alpha, colour, colour and alpha.
_PNG_COLOR = {1: 0, 2: 4, 3: 2, 4: 6}
_BAND_BYTES = 1 << 22


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
