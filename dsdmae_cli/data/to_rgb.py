"""An image that Pillow holds as upright RGB, without transparency, as its format means it. No torch here.

What is black and what is white where there are more than 8 bits is values.py's business, and asked for by decode.py.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dsdmae_cli.data.base import Refused

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
SWAPS_SIDES = frozenset({5, 6, 7, 8})
_TO_RGB_DIRECTLY = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"})

Rgb = UInt8[np.ndarray, "height width 3"]


def to_rgb(image: Image.Image) -> Rgb:
    """Turn a Pillow image (its current frame) into upright RGB; transparency is laid over white.

    A picture as its format means it: 16-bit grey keeps its upper byte (value >> 8). Mode I counts as 16-bit grey if it
    stays in 0..65535.

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
        raise Refused("floating-point pixels have no range of their own; say it with --set data.range=LOW,HIGH")
    else:
        raise Refused(f"colour mode {image.mode} is not supported; convert it to RGB")
    if turn in _TRANSPOSITION:
        rgb = rgb.transpose(_TRANSPOSITION[turn])
    return np.array(rgb)  # a copy, because Pillow's own view is read-only


def orientation(image: Image.Image) -> int:
    """EXIF's (or XMP's) orientation, 1..8; 1 is upright. Known for certain only once the image is loaded."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF says nothing about the pixels, so that the image is taken as it lies
        return 1


def _grey16_to_rgb(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "I" and (values.min() < 0 or values.max() > 0xFFFF):
        raise Refused(
            f"32-bit grey from {values.min()} to {values.max()} is outside 0..65535; say --set data.range=LOW,HIGH"
        )
    grey = (values >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")
