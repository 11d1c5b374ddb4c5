"""TIFFs of instruments as pictures that come back as they went in: floats, wide integers, many bands, stacks.

data/tiff.py reads them; what tifffile writes is what it reads. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from dsdmae_cli.data import nodata, tiff
from dsdmae_cli.data.values import Values
from dsdmae_cli.pictures.metadata import Metadata

if TYPE_CHECKING:
    from dsdmae_cli.pictures.picture import Picture

_DESCRIPTION, _XMP, _ICC, _UNDEFINED = 270, 700, 34675, 7
_INCH, _CENTIMETRE = 2, 3
_MODES = {1: "L", 3: "RGB"}


def read_page(stream: BinaryIO, page: int, max_pixels: int) -> tuple[Values, str, Metadata]:
    """A page's values, its mode (L, LA, RGB, RGBA, or as "13 bands"), and what is known of it.

    Raises:
        Refused: see data.tiff.read_page.
    """
    values = tiff.read_page(stream, page, max_pixels)
    colors = values.colors.shape[2]
    mode = _MODES.get(colors, "") + ("A" if values.alpha else "")
    return values, mode if colors in _MODES else f"{values.pixels.shape[2]} bands", _metadata(stream, page)


def _metadata(stream: BinaryIO, number: int) -> Metadata:
    import tifffile

    stream.seek(0)
    with tifffile.TiffFile(stream) as file:
        page = file.pages[number]
        assert isinstance(page, tifffile.TiffPage)
        tags = {tag.code: tag.value for tag in page.tags}
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
        words if isinstance(words, str) and words.isascii() else None,
    )


def write(pages: Iterable[Picture], file: BinaryIO) -> None:
    """Pages of one TIFF, deflated, each with its description, profile, XMP and resolution."""
    import tifffile

    with tifffile.TiffWriter(file, bigtiff=False) as writer:
        for page in pages:
            known, pixels = page.metadata, page.pixels
            colors = pixels.shape[2] - page.mode.endswith("A")
            more: dict[str, Any] = {"extratags": []}
            if pixels.shape[2] > 1:
                extra = pixels.shape[2] - (3 if colors == 3 else 1)
                more["planarconfig"] = "contig"
                kinds = ["unspecified"] * (extra - page.mode.endswith("A"))
                more["extrasamples"] = kinds + ["unassalpha"] * page.mode.endswith("A")
            if known.dpi:
                more |= {"resolution": known.dpi, "resolutionunit": "INCH"}
            if known.xmp:
                more["extratags"].append((_XMP, "B", len(known.xmp), known.xmp, True))
            if page.nodata is not None:
                more["extratags"].append((nodata.TAG, "s", 0, nodata.written(page.nodata), True))
            writer.write(
                pixels if pixels.shape[2] > 1 else pixels[..., 0],
                photometric="rgb" if colors == 3 else "miniswhite" if page.inverted else "minisblack",
                compression="zlib",
                predictor=pixels.dtype.kind != "f",
                description=known.description or "",
                metadata=None,
                software=False,
                iccprofile=known.icc,
                contiguous=False,
                **more,
            )


def lossless(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Values in the type of others: rounded and within what it holds, where it is one of integers."""
    if like.dtype.kind == "f":
        return values.astype(like.dtype)
    info = np.iinfo(like.dtype)
    return np.rint(values).clip(info.min, info.max).astype(like.dtype)
