"""16 bits a colour channel, of which Pillow hands out the upper byte: both bytes in. No torch here.

16-bit grey is no business of this file: Pillow reads it whole.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt16
from PIL.ImageFile import ImageFile

from dsdmae_cli.data.base import Refused

_GREY_ALPHA = "LA;16B"
_TIFF = {f"{mode};16{order}" for mode in ("RGB", "RGBA", "RGBX") for order in "LBN"}
_BITS_PER_SAMPLE = 258


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
            raise Refused("this kind of 16-bit TIFF is not supported (CMYK, premultiplied); convert it to PNG")
        return found
    deep = next((raw for raw in raw_modes if isinstance(raw, str) and raw.endswith(";16B")), None)
    return deep if image.format == "PNG" else None


def is_grey_alpha(image: ImageFile) -> bool:
    """Whether it is grey and alpha of 16 bits each, not loaded yet."""
    return any(tile.args == _GREY_ALPHA for tile in image.tile)


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
