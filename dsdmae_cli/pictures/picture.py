"""Pictures that come back as they went in: channels, bit depth, transparency, colour profile, EXIF. No torch here.

decode.py turns every image into 8-bit RGB for training; here a person's file is changed and given back to him.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngInfo

from dsdmae_cli.data.decode import MAX_PIXELS, Refused, opened, orientation

Pixels = UInt8[np.ndarray, "height width channels"] | UInt16[np.ndarray, "height width channels"]

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
_TO_MODE = {"1": "L", "La": "LA", "PA": "RGBA", "RGBX": "RGB", "RGBa": "RGBA", "YCbCr": "RGB"}
# EXIF of a TIFF lies among the tags that say how its pixels lie; these and the tables of EXIF and GPS go along.
_XMP_TAG = 700
_DESCRIBING_TAGS = (270, 271, 272, 305, 306, 315, 33432)
_TAG_TABLES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
_BAND_BYTES = 1 << 22


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture, upright.

    Attributes:
        pixels: as stored, 8 or 16 bits a channel; colours first, alpha (mode ...A) last.
        mode: L, LA, RGB, RGBA or CMYK.
        icc, exif, xmp: as in the file but for the orientation, which is 1 now; None where there was none.
        dpi: pixels per inch across and down.
        frames: pictures in the file, of which this is the first.
    """

    pixels: Pixels
    mode: str
    icc: bytes | None = field(default=None, repr=False)
    exif: bytes | None = field(default=None, repr=False)
    xmp: bytes | None = field(default=None, repr=False)
    dpi: tuple[float, float] | None = None
    frames: int = 1

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
        """Bits per channel, 8 or 16."""
        return 8 * self.pixels.dtype.itemsize

    @property
    def peak(self) -> int:
        """The largest value of a channel, 255 or 65535."""
        return 2**self.depth - 1

    @property
    def color_groups(self) -> list[tuple[int, ...]]:
        """Channels that belong together as a colour; a black plate stands alone, alpha is none of them."""
        groups: dict[str, list[tuple[int, ...]]] = {"L": [(0,)], "LA": [(0,)], "CMYK": [(0, 1, 2), (3,)]}
        return groups.get(self.mode, [(0, 1, 2)])

    @property
    def num_colors(self) -> int:
        """Channels without alpha."""
        return len(self.mode.removesuffix("A"))

    @property
    def suffix(self) -> str:
        """The format for it where nobody chose one: PNG, which has no CMYK."""
        return ".tif" if self.mode == "CMYK" else ".png"

    def with_pixels(self, pixels: Pixels) -> Picture:
        """Other pixels, everything else the same."""
        return replace(self, pixels=pixels)


def read(source: Path | bytes, name: str, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a picture, the first one if the file holds several.

    One bit becomes 8 bits of grey, a palette the colours it stands for (grey if all are), since a restored picture has
    values between; 32-bit grey within 0..65535 becomes 16-bit.

    Args:
        name: what to call it in messages.
        max_pixels: refuse more, by the header, before memory is taken.

    Raises:
        UnreadableImage: it is not an image, is damaged, too large, or of a kind that has no place here.
    """
    low = None
    with opened(source, name, max_pixels) as image:
        raw_mode = _deep_color(image)
        if raw_mode == "LA;16B":  # four bytes a pixel, which Pillow would halve: taken as they lie
            _set_raw_mode(image, "RGBA")
        image.load()
        turn = orientation(image)
        if raw_mode is None:
            pixels, mode = _plain(image)
        elif raw_mode == "LA;16B":
            pixels, mode = np.asarray(image).copy().view(">u2").astype(np.uint16), "LA"
        else:
            pixels, mode = np.asarray(image).astype(np.uint16), image.mode
            low = _other_byte(raw_mode)
        picture = Picture(pixels, mode, *_metadata(image), frames=getattr(image, "n_frames", 1))
        key = image.info.get("transparency")
        if image.format == "TIFF":
            turn = 1  # Pillow has turned it already
    if low is not None:
        with opened(source, name, max_pixels) as image:
            _set_raw_mode(image, low)
            image.load()
            pixels <<= 8
            pixels |= np.asarray(image)
            if picture.mode == "RGB" and isinstance(key, tuple):
                picture = _keyed(picture, key)
    return picture.with_pixels(np.ascontiguousarray(_upright(picture.pixels, turn)))


def _plain(image: Image.Image) -> tuple[Pixels, str]:
    """Pixels as Pillow decodes them, and the mode that they are kept in."""
    if image.mode == "F":
        raise Refused("floating-point pixels have no defined range")
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
        raise Refused(f"32-bit grey from {values.min()} to {values.max()} is outside 0..65535")
    grey = values.astype(np.uint16)[..., None]
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return grey, "L"
    return np.concatenate([grey, np.where(grey == key, 0, 0xFFFF).astype(np.uint16)], axis=2), "LA"


def _keyed(picture: Picture, key: tuple[int, ...]) -> Picture:
    alpha = np.where((picture.pixels == np.array(key)).all(axis=2, keepdims=True), 0, 0xFFFF)
    pixels = np.concatenate([picture.pixels, alpha.astype(np.uint16)], axis=2)
    return replace(picture, pixels=pixels, mode="RGBA")


# -- 16 bits a colour channel, of which Pillow hands out the upper byte


def _deep_color(image: ImageFile) -> str | None:
    """Pillow's raw mode for 16-bit colour, or None where its own decoding loses nothing."""
    if image.mode.startswith(("I", "F")):
        return None
    raw_modes = {tile.args if isinstance(tile.args, str) else tile.args[0] for tile in image.tile if tile.args}
    values = [tile.args[1] for tile in image.tile if tile.codec_name.startswith("ppm") and isinstance(tile.args, tuple)]
    if image.mode == "RGB" and any(value > 255 for value in values):
        raise Refused("16-bit colour in PPM is not supported; convert it to PNG or TIFF")
    if image.format == "TIFF" and max(image.tag_v2.get(258, (8,))) > 8:  # type: ignore[attr-defined]
        raw_mode = next(iter(raw_modes)) if len(raw_modes) == 1 else ""
        if raw_mode not in _TIFF_DEEP:
            raise Refused("this kind of 16-bit TIFF is not supported (CMYK, planes, premultiplied); convert it to PNG")
        return raw_mode
    deep = next((raw for raw in raw_modes if isinstance(raw, str) and raw.endswith(";16B")), None)
    return deep if image.format == "PNG" else None


_TIFF_DEEP = {f"{mode};16{order}" for mode in ("RGB", "RGBA", "RGBX") for order in "LBN"}


def _other_byte(raw_mode: str) -> str:
    """The raw mode that hands out the lower byte: the upper one of the opposite byte order."""
    native = "L" if np.little_endian else "B"
    order = native if raw_mode[-1] == "N" else raw_mode[-1]
    return raw_mode[:-1] + ("B" if order == "L" else "L")


def _set_raw_mode(image: ImageFile, raw_mode: str) -> None:
    image.tile = [
        tile._replace(args=raw_mode if isinstance(tile.args, str) else (raw_mode, *(tile.args or ())[1:]))
        for tile in image.tile
    ]


# -- which way is up, and what else is known of a picture

_TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x.transpose(1, 0, 2)[:, ::-1],
    7: lambda x: x.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda x: x.transpose(1, 0, 2)[::-1],
}


def _upright(pixels: Pixels, turn: int) -> Pixels:
    return _TURNS[turn](pixels) if turn in _TURNS else pixels


def _metadata(image: Image.Image) -> tuple[bytes | None, bytes | None, bytes | None, tuple[float, float] | None]:
    """ICC profile, EXIF, XMP and resolution, the orientation in them said to be 1."""
    xmp = image.info.get("xmp")
    if isinstance(xmp, str):
        xmp = xmp.encode()
    if xmp:
        xmp = re.sub(rb'(tiff:Orientation(?:="|>))[1-8]', rb"\g<1>1", xmp)
    dpi = image.info.get("dpi")
    if not (isinstance(dpi, tuple) and len(dpi) == 2 and all(float(x) > 0 for x in dpi)):
        dpi = None
    return (
        image.info.get("icc_profile") or None,
        _exif(image) or None,
        xmp or None,
        (float(dpi[0]), float(dpi[1])) if dpi else None,
    )


def _exif(image: Image.Image) -> bytes:
    raw = image.info.get("exif")
    if isinstance(raw, bytes) and image.format != "TIFF":
        return _oriented_upright(raw.removeprefix(b"Exif\0\0"))
    try:
        found, kept = image.getexif(), Image.Exif()
        for tag in _DESCRIBING_TAGS if image.format == "TIFF" else found:
            if tag in found and tag != ExifTags.Base.Orientation:
                kept[tag] = found[tag]
        for table in _TAG_TABLES:
            if entries := found.get_ifd(table):
                kept.get_ifd(table).update(entries)
        return kept.tobytes().removeprefix(b"Exif\0\0") if len(kept) or kept._ifds else b""
    except Exception:  # damaged EXIF; the pixels are whole
        return b""


def _oriented_upright(raw: bytes) -> bytes:
    """EXIF with its orientation set to 1 where it stands; every other byte, a maker's own among them, is kept."""
    order = {b"II": "<", b"MM": ">"}.get(raw[:2])
    if order is None or len(raw) < 8:
        return b""
    [first] = struct.unpack_from(f"{order}L", raw, 4)
    if first + 2 > len(raw):
        return b""
    [count] = struct.unpack_from(f"{order}H", raw, first)
    changed = bytearray(raw)
    for at in range(first + 2, min(first + 2 + 12 * count, len(raw) - 11), 12):
        if struct.unpack_from(f"{order}H", raw, at)[0] == ExifTags.Base.Orientation:
            struct.pack_into(f"{order}H", changed, at + 8, 1)
    return bytes(changed)


# -- writing


def check_format(picture: Picture, suffix: str) -> None:
    """Whether a format can hold the picture.

    Raises:
        Refused: it cannot; the message names one that can.
    """
    kind = WRITERS[suffix][0]
    deep_enough = picture.depth == 8 or kind == "PNG" or (kind == "TIFF" and picture.mode == "L")
    if picture.mode not in _HOLDS[kind] or not deep_enough:
        raise Refused(
            f"{kind} cannot hold {picture.depth}-bit {picture.mode} pixels as they are; write {picture.suffix}"
        )


def write(picture: Picture, file: BinaryIO, suffix: str) -> None:
    """Write a picture with everything that came with it.

    Args:
        suffix: a key of WRITERS.

    Raises:
        Refused: the format cannot hold it (see check_format).
    """
    check_format(picture, suffix)
    kind, options = WRITERS[suffix]
    if kind == "PNG" and picture.depth == 16 and picture.mode != "L":
        _write_deep_png(picture, file)
        return
    options = dict(options)
    if picture.icc:
        options["icc_profile"] = picture.icc
    if picture.dpi and kind != "WEBP":
        options["dpi"] = picture.dpi
    options |= _exif_and_xmp(kind, picture)
    to_image(picture).save(file, format=kind, **options)


def to_image(picture: Picture) -> Image.Image:
    """As Pillow holds it: L, LA, RGB, RGBA, CMYK or I;16.

    Raises:
        Refused: 16-bit colour, which Pillow has no mode for.
    """
    pixels = picture.pixels
    if picture.depth == 16:
        if picture.mode != "L":
            raise Refused("Pillow has no mode for 16-bit colour")
        return Image.fromarray(pixels[..., 0])
    data = np.ascontiguousarray(pixels)
    return Image.frombuffer(picture.mode, (picture.width, picture.height), data, "raw", picture.mode, 0, 1)


def _exif_and_xmp(kind: str, picture: Picture) -> dict[str, Any]:
    """As each of Pillow's writers wants them."""
    exif, xmp = picture.exif, picture.xmp
    if kind == "TIFF":  # both are tags of the file itself; Pillow's compressing writer loses tables of EXIF
        tags = Image.Exif()
        tags.load(exif or b"")
        if xmp:
            tags[_XMP_TAG] = xmp
        return {"exif": tags, **({"compression": None} if exif else {})}
    options: dict[str, Any] = {}
    if exif:
        options["exif"] = exif if kind == "PNG" else b"Exif\0\0" + exif
    if xmp and kind == "PNG":
        text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
        options["pnginfo"] = text
    elif xmp:
        options["xmp"] = xmp
    return options


_PNG_COLOR = {"L": 0, "RGB": 2, "LA": 4, "RGBA": 6}


def _write_deep_png(picture: Picture, file: BinaryIO) -> None:
    """A PNG of 16 bits a channel (ISO/IEC 15948), which Pillow cannot write in colour or with alpha."""
    file.write(b"\x89PNG\r\n\x1a\n")
    size = struct.pack(">LLBBBBB", picture.width, picture.height, 16, _PNG_COLOR[picture.mode], 0, 0, 0)
    _chunk(file, b"IHDR", size)
    if picture.icc:
        _chunk(file, b"iCCP", b"ICC Profile\0\0" + zlib.compress(picture.icc))
    if picture.dpi:
        per_meter = (round(x / 0.0254) for x in picture.dpi)
        _chunk(file, b"pHYs", struct.pack(">LLB", *per_meter, 1))
    if picture.xmp:
        _chunk(file, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + picture.xmp)
    if picture.exif:
        _chunk(file, b"eXIf", picture.exif)
    packer = zlib.compressobj(4)
    row_bytes = picture.pixels.strides[0]
    for top in range(0, picture.height, rows := max(1, _BAND_BYTES // row_bytes)):
        packed = packer.compress(_filtered(picture.pixels, top, rows).tobytes())
        if packed:
            _chunk(file, b"IDAT", packed)
    _chunk(file, b"IDAT", packer.flush())
    _chunk(file, b"IEND", b"")


def _filtered(pixels: Pixels, top: int, rows: int) -> UInt8[np.ndarray, "rows row_bytes"]:
    """Rows as PNG stores them: big-endian, each a difference to the row above (filter 2, "up")."""
    first = max(0, top - 1)
    raw = pixels[first : top + rows].astype(">u2").view(np.uint8).reshape(min(top + rows, len(pixels)) - first, -1)
    above = raw[:-1] if top else np.concatenate([np.zeros_like(raw[:1]), raw[:-1]])
    own = raw[1:] if top else raw
    return np.concatenate([np.full((len(own), 1), 2, np.uint8), own - above], axis=1)


def _chunk(file: BinaryIO, name: bytes, content: bytes) -> None:
    file.write(struct.pack(">L", len(content)) + name + content)
    file.write(struct.pack(">L", zlib.crc32(content, zlib.crc32(name))))
