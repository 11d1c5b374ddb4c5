"""TIFFs of instruments as pictures that come back as they went in: floats, wide integers, many bands, stacks.

data/tiff.py reads them; what tifffile writes is what it reads. No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from dsdmae_cli.data import nodata, tiff
from dsdmae_cli.data.values import Values
from dsdmae_cli.files import parsed_json
from dsdmae_cli.pictures.metadata import Metadata, TiffTags

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

    from dsdmae_cli.pictures.picture import Picture

_DESCRIPTION, _XMP, _ICC, _UNDEFINED = 270, 700, 34675, 7
_INCH, _CENTIMETRE = 2, 3
_RGB, _CMYK = 2, 5
# GeoTIFF's tags, of scale, tie points, transformation and keys, and GDAL's own words.
_GEO = (33550, 33922, 34264, 34735, 34736, 34737, 42112)
# Alpha that colours were multiplied by is divided out when it is read.
_EXTRAS = {0: "unspecified", 1: "unassalpha", 2: "unassalpha"}
_SHAPED = '{"shape": '  # begins what tifffile writes of an array
_MODES = {1: "L", 3: "RGB"}
# Integers of so many bytes have no differences from pixel to pixel in tifffile.
_WIDEST_PREDICTED = 8


def read_page(file: TiffFile, page: int, max_pixels: int) -> tuple[Values, str, Metadata]:
    """A page's values, its mode (L, LA, RGB, RGBA, or as "13 bands"), and what is known of it.

    Raises:
        Refused: see data.tiff.read_page.
    """
    values = tiff.read_page(file, page, max_pixels)
    colors = values.colors.shape[2]
    mode = _MODES.get(colors, "") + ("A" if values.alpha else "")
    return values, mode if colors in _MODES else f"{values.pixels.shape[2]} bands", metadata(file, page)


def metadata(file: TiffFile, number: int) -> Metadata:
    """What is known of a page beside its pixels; what Pillow tells of it too is not all here."""
    page = _page(file, number)
    # tifffile's own words follow as a second description.
    tags = {tag.code: tag.value for tag in reversed(list(page.tags))}
    unit, across, down = (tags.get(code) for code in (296, 282, 283))
    dpi = None
    if unit in (_INCH, _CENTIMETRE) and across and down and across[1] and down[1] and across[0] and down[0]:
        scale = 2.54 if unit == _CENTIMETRE else 1.0
        dpi = (scale * across[0] / across[1], scale * down[0] / down[1])
    icc, xmp, words = tags.get(_ICC), tags.get(_XMP), tags.get(_DESCRIPTION)
    return Metadata(
        bytes(icc) if icc else None,
        None,
        bytes(xmp) if isinstance(xmp, bytes | tuple) and xmp else None,
        dpi,
        words if isinstance(words, str) else None,
        _tags_of(page),
    )


def _page(file: TiffFile, number: int) -> TiffPage:
    return cast("TiffPage", file.pages[number])  # frames, which know less, are made on request alone


def _tags_of(page: TiffPage) -> TiffTags:
    """What a page says of colours, resolution and place."""
    across, down, unit = (page.tags.valueof(code) for code in (282, 283, 296))
    known = [tag for tag in page.tags if tag.code in _GEO]
    return TiffTags(
        int(page.photometric),
        tuple(map(int, page.extrasamples)),
        (across, down, _INCH if unit is None else int(unit)) if _is_rational(across) and _is_rational(down) else None,
        tuple((tag.code, int(tag.dtype), tag.count, tag.value) for tag in known),
    )


def _is_rational(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, int) and part > 0 for part in value)


def write(pages: Iterable[Picture], file: BinaryIO) -> None:
    """Pages of one TIFF, deflated, each with its description, profile, XMP and resolution."""
    import tifffile

    with tifffile.TiffWriter(file, bigtiff=False) as writer:
        for page in pages:
            known, pixels = page.metadata, page.pixels
            tags = known.tags or TiffTags(0)
            photometric, colors = _colors(page, tags)
            more: dict[str, Any] = {"extratags": [_extra_tag(*tag) for tag in tags.geo]}
            if pixels.shape[2] > 1:
                extra, alpha = pixels.shape[2] - colors, page.mode.endswith("A")
                kinds = ["unspecified"] * (extra - alpha) + ["unassalpha"] * alpha
                if len(tags.extras) == extra:
                    kinds = [_EXTRAS.get(kind, "unspecified") for kind in tags.extras]
                more |= {"planarconfig": "contig", "extrasamples": kinds}
            if tags.resolution:
                more |= {"resolution": tags.resolution[:2], "resolutionunit": tags.resolution[2]}
            elif known.dpi:
                more |= {"resolution": known.dpi, "resolutionunit": "INCH"}
            if known.xmp:
                more["extratags"].append((_XMP, "B", len(known.xmp), known.xmp, True))
            if page.nodata is not None:
                more["extratags"].append((nodata.TAG, "s", 0, nodata.written(page.nodata), True))
            writer.write(
                pixels if pixels.shape[2] > 1 else pixels[..., 0],
                photometric=photometric,
                compression="zlib",
                predictor=pixels.dtype.kind != "f" and pixels.dtype.itemsize < _WIDEST_PREDICTED,
                description=_interleaved(known.description or "", pixels).encode(),
                metadata=None,
                software=False,
                iccprofile=known.icc,
                contiguous=False,
                **more,
            )


def _interleaved(words: str, pixels: np.ndarray) -> str:
    """A description, and tifffile's own with its bands last: the shape of a file of planes has them in front, and read
    by it tifffile doubts the file."""
    if pixels.shape[2] == 1 or not words.startswith(_SHAPED):
        return words
    try:
        said = parsed_json(words)
        *before, bands, height, width = said["shape"]
    except (ValueError, TypeError):  # cut short, or of fewer numbers than a picture has
        return words
    if (height, width, bands) != pixels.shape:
        return words
    return json.dumps({**said, "shape": [*before, height, width, bands]})


def _colors(page: Picture, tags: TiffTags) -> tuple[str, int]:
    """What a TIFF calls the colours of a page, and how many samples they are: as they were, where they are the same."""
    bands = page.pixels.shape[2]
    others = page.mode.endswith("bands")
    if page.mode == "CMYK" or (others and tags.photometric == _CMYK and bands >= 4):
        return "separated", 4
    if page.num_colors == 3 or (others and tags.photometric == _RGB and bands > 3):
        return "rgb", 3
    return "miniswhite" if page.inverted else "minisblack", 1


def _extra_tag(code: int, kind: int, count: int, value: object) -> tuple[int, int, int, object, bool]:
    if isinstance(value, str):
        value, count = value.encode() + b"\0", 0
    return code, kind, count, value, True


def lossless(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Values in the type of others: rounded and within what it holds, where it is one of integers."""
    if like.dtype.kind == "f":
        return values.astype(like.dtype)
    info = np.iinfo(like.dtype)
    most = float(info.max)
    if int(most) > info.max:  # 2^63 and 2^64, which would become the least of 64 bits
        most = float(np.nextafter(most, 0))
    return np.rint(values).clip(info.min, most).astype(like.dtype)
