"""What is known of a picture beside its pixels: colour profile, EXIF, XMP, resolution. No torch here.

Pixels are kept upright (picture.py), so that the orientation in EXIF and XMP is set to 1; nothing else is changed.
"""

from __future__ import annotations

import re
import struct
from typing import Any, NamedTuple

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import IFDRational

# EXIF of a TIFF lies among the tags that say how its pixels lie; these and the tables of EXIF and GPS go along.
_XMP_TAG = 700
_DESCRIBING_TAGS = (270, 271, 272, 305, 306, 315, 33432)
_DESCRIPTION, _ACROSS, _DOWN, _UNIT = 270, 282, 283, 296
_TAG_TABLES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)


class TiffTags(NamedTuple):
    """What a TIFF says of its pixels, as it stands there.

    Attributes:
        photometric: what the colours are (2 = RGB, 5 = CMYK).
        extras: what the samples behind the colours are.
        resolution: pixels per unit across and down, two rationals, and the unit (1 = said elsewhere, 2 = inch, 3 = cm).
        geo: where on Earth it lies: number, type, count and value of each tag.
    """

    photometric: int
    extras: tuple[int, ...] = ()
    resolution: tuple[tuple[int, int], tuple[int, int], int] | None = None
    geo: tuple[tuple[int, int, int, Any], ...] = ()


class Metadata(NamedTuple):
    """As in the file but for the orientation, which is 1; None where there was none.

    Attributes:
        icc: colour profile.
        exif, xmp: without what a format puts before them.
        dpi: pixels per inch across and down.
        description: of a TIFF.
        tags: of a TIFF.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    description: str | None = None
    tags: TiffTags | None = None


def read_metadata(image: Image.Image) -> Metadata:
    """What Pillow has found in an image's file; all of it only once the image is loaded."""
    xmp = image.info.get("xmp")
    if isinstance(xmp, str):
        xmp = xmp.encode()
    if xmp:
        xmp = re.sub(rb'(tiff:Orientation(?:="|>))[1-8]', rb"\g<1>1", xmp)
    dpi = image.info.get("dpi")
    if not (isinstance(dpi, tuple) and len(dpi) == 2 and all(float(x) > 0 for x in dpi)):
        dpi = None
    return Metadata(
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


def has_tables(known: Metadata) -> bool:
    """Whether its EXIF has more than tags of the image: how and where it was taken."""
    exif = Image.Exif()
    exif.load(known.exif or b"")
    return any(exif.get_ifd(table) for table in _TAG_TABLES)


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


def info_of(known: Metadata) -> dict[str, Any]:
    """The same as Pillow keeps it in an image's `info`."""
    exif = known.exif and b"Exif\0\0" + known.exif
    found = {"icc_profile": known.icc, "exif": exif, "xmp": known.xmp, "dpi": known.dpi}
    return {name: value for name, value in found.items() if value}


def save_options(known: Metadata, kind: str) -> dict[str, Any]:
    """Arguments of Image.save, as each of Pillow's writers wants them.

    Args:
        kind: PNG, TIFF, WEBP or JPEG.
    """
    options: dict[str, Any] = {}
    if known.icc:
        options["icc_profile"] = known.icc
    as_it_stands = kind == "TIFF" and known.tags is not None and known.tags.resolution is not None
    if known.dpi and kind != "WEBP" and not as_it_stands:
        options["dpi"] = known.dpi
    return options | _exif_and_xmp(known, kind)


def _exif_and_xmp(known: Metadata, kind: str) -> dict[str, Any]:
    exif, xmp = known.exif, known.xmp
    if kind == "TIFF":  # both are tags of the file itself; Pillow's compressing writer loses tables of EXIF
        tags = Image.Exif()
        tags.load(exif or b"")
        if xmp:
            tags[_XMP_TAG] = xmp
        plain = bool(exif)
        if known.description and not known.description.isascii():
            tags[_DESCRIPTION] = known.description.encode()  # Pillow would write question marks
        if known.tags is not None:
            plain |= _add(known.tags, tags)
        return {"exif": tags, **({"compression": None} if plain else {})}
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


def _add(known: TiffTags, to: Image.Exif) -> bool:
    """Set what a TIFF said of resolution and place; True where there is what Pillow's compressing writer loses."""
    if known.resolution is not None:
        across, down, unit = known.resolution
        to[_ACROSS], to[_DOWN], to[_UNIT] = IFDRational(*across), IFDRational(*down), unit
    for code, _, _, value in known.geo:
        to[code] = value
    return bool(known.geo)
