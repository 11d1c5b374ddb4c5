"""Pictures as an instrument wrote them, in any depth and number of bands, and how they become 8 bits. No torch here.

A 16-bit file may hold 10, 12 or 14 bits, and floating-point numbers have no range of their own: what is black and what
is white is said by the data, once for all pictures of a dataset (`sampled_range`), or by a person (data.range).
8-bit pictures are what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Shaped, UInt8, UInt16

from dsdmae_cli.data.base import Refused

# Of all sampled values these shares are darker than black and brighter than white, so that a hot pixel decides nothing;
# what noise adds beyond them has a margin, a share of the range.
_SHARE, _MARGIN = 0.1, 0.05
_VALUES_OF_ONE = 1 << 16
_FULL_16 = (0.0, 65535.0)

Range = tuple[float, float]
Ranges = Range | tuple[Range, ...]  # of all channels, or of each
_RGB = 3
# Of red, green and blue in 65536ths: ITU-R 601's weights as Pillow rounds them, which grey of equal channels survives.
_LUMA = (19595, 38470, 7471)


@dataclass(frozen=True)
class Reading:
    """How pictures of more than 8 bits, or of other bands than grey and RGB, are shown.

    Attributes:
        range: values that are black and white, of all channels or of each; None = what the format says, which is
            0..65535 for 16 bits.
        bands: those that are the channels, counted from 1; None = all.
        channels: how many there shall be: 3 = RGB, grey repeated; 1 = grey; others = the picture has so many bands, of
            which transparency is one.
    """

    range: Ranges | None = None
    bands: tuple[int, ...] | None = None
    channels: int = 3

    @property
    def is_photographic(self) -> bool:
        """Whether it gives grey or RGB, into which such pictures and no others are made."""
        return self.channels in (1, _RGB)


def asked_bands(
    bands: tuple[int, ...] | Literal["auto"], channels: int | Literal["auto"], own: Callable[[], int]
) -> Reading:
    """Which bands become channels by data.bands and data.channels, and how many there are of these.

    Args:
        own: how many the dataset has; asked only where neither setting says it.
    """
    wanted = None if bands == "auto" else bands
    if channels != "auto":
        return Reading(None, wanted, channels)
    if wanted is not None:
        return Reading(None, wanted, _RGB if len(wanted) == 1 else len(wanted))
    return Reading(None, None, own())


@dataclass(frozen=True, eq=False)
class Values:
    """A picture as stored.

    Attributes:
        pixels: [height, width, bands], of any integer or floating type.
        alpha: the last band is how opaque a pixel is.
    """

    pixels: Shaped[np.ndarray, "h w c"]
    alpha: bool = False

    @property
    def colors(self) -> Shaped[np.ndarray, "h w c"]:
        """The bands without alpha."""
        return self.pixels[..., :-1] if self.alpha else self.pixels

    @property
    def is_deep(self) -> bool:
        """More than 8 bits."""
        return self.pixels.dtype != np.uint8

    def upright(self, orientation: int) -> Values:
        """Turned as EXIF's orientation (1..8) says."""
        turn = TURNS.get(orientation)
        return self if turn is None else Values(np.ascontiguousarray(turn(self.pixels)), self.alpha)

    def channels(self, how: Reading) -> Shaped[np.ndarray, "h w d"]:
        """The bands that become channels, as stored; grey and RGB are not yet what the other is made of.

        Raises:
            Refused: the picture has not these, or not so many.
        """
        return chosen(self.colors if how.is_photographic else self.pixels, how)

    def shown(self, how: Reading) -> UInt8[np.ndarray, "h w {how.channels}"]:
        """In 8 bits; where it is grey or RGB, transparency over white.

        Raises:
            Refused: other bands than asked for and none were chosen, or values without a range.
        """
        rgb = to_bytes(self.channels(how), how.range)
        if rgb.shape[2] != how.channels:
            rgb = luma(rgb) if how.channels == 1 else np.repeat(rgb, how.channels, axis=2)
        if not self.alpha or not how.is_photographic:
            return np.ascontiguousarray(rgb)
        full = np.iinfo(self.pixels.dtype).max if self.pixels.dtype.kind in "ui" else 1
        opaque = self.pixels[..., -1:].astype(np.float32) / full
        return np.rint(255 + opaque * (rgb.astype(np.float32) - 255)).clip(0, 255).astype(np.uint8)


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x.transpose(1, 0, 2)[:, ::-1],
    7: lambda x: x.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda x: x.transpose(1, 0, 2)[::-1],
}


def chosen(colors: Shaped[np.ndarray, "h w c"], how: Reading) -> Shaped[np.ndarray, "h w d"]:
    """As many bands as there shall be channels; one or three where these are 3 or 1.

    Raises:
        Refused: the picture has not these, or another number of them and none were chosen.
    """
    there, bands = colors.shape[2], how.bands
    if bands is None:
        if how.is_photographic and there not in (1, _RGB):
            raise Refused(
                f"{there} bands, neither grey nor RGB; take them all with --set data.channels={there}, or choose one or"
                " three, counted from 1, as --set data.bands=[3,2,1]"
            )
        if not how.is_photographic and there != how.channels:
            raise Refused(
                f"{there} band{'s' if there > 1 else ''} and not the {how.channels} of data.channels;"
                f" {'choose as many with data.bands' if there > how.channels else 'give another data.channels'},"
                " or take the picture out"
            )
        return colors
    if max(bands) > there:
        raise Refused(f"data.bands names band {max(bands)} and the picture has {there}")
    return colors[..., [band - 1 for band in bands]]


def keyed(pixels: UInt16[np.ndarray, "h w c"], key: int | tuple[int, ...]) -> UInt16[np.ndarray, "h w d"]:
    """16-bit pixels with alpha, of which those of one colour are transparent."""
    opaque = np.where((pixels == np.array(key)).all(axis=2, keepdims=True), 0, 0xFFFF)
    return np.concatenate([pixels, opaque.astype(np.uint16)], axis=2)


def luma(rgb: UInt8[np.ndarray, "*n 3"]) -> UInt8[np.ndarray, "*n 1"]:
    """RGB as grey; of equal channels one of them."""
    red, green, blue = (weight * rgb[..., i].astype(np.uint32) for i, weight in enumerate(_LUMA))
    return ((red + green + blue + (1 << 15)) >> 16).astype(np.uint8)[..., None]


def to_bytes(values: Shaped[np.ndarray, "h w c"], limits: Ranges | None) -> UInt8[np.ndarray, "h w c"]:
    """Values from black to white as 0..255; 8-bit ones as they are, what is not a number as black.

    Raises:
        Refused: no limits are given and the type has none: floating point, or integers outside 0..65535.
    """
    if values.dtype == np.uint8:
        return values
    if limits is None:
        if values.dtype.kind == "f":
            raise Refused("floating-point pixels have no range of their own; say it with --set data.range=LOW,HIGH")
        if values.dtype.itemsize > 2 or values.dtype.kind == "i":
            least, most = int(values.min()), int(values.max())
            if least < 0 or most > _FULL_16[1]:
                raise Refused(f"values from {least} to {most} are outside 0..65535; say --set data.range=LOW,HIGH")
        return (values >> 8).astype(np.uint8)
    pairs = limits if isinstance(limits[0], tuple) else (limits,)
    low, high = np.array(pairs, np.float64).T
    scaled = (values.astype(np.float32) - low.astype(np.float32)) * (255 / (high - low)).astype(np.float32)
    return np.rint(np.nan_to_num(scaled, nan=0.0).clip(0, 255)).astype(np.uint8)


def sampled_ranges(pictures: Iterable[Values], how: Reading) -> tuple[Range, ...] | None:
    """One range for each channel, as `sampled_range` has it for all; None where no picture has more than 8 bits.

    Bands of one instrument differ by orders of magnitude, and 8 bits of a range that all share would leave the darkest
    ones black. Pictures of other bands do not count.
    """
    bands = []
    for picture in pictures:
        with suppress(Refused):
            bands.append(Values(picture.channels(how)))
    found = [sampled_range(Values(p.pixels[..., i : i + 1]) for p in bands) for i in range(how.channels)]
    # A band without a single number is black in any range.
    return tuple(limits or (0.0, 1.0) for limits in found) if any(found) else None


def sampled_range(pictures: Iterable[Values]) -> Range | None:
    """One range for pictures of more than 8 bits, by some of their values; None where there are no such pictures.

    16-bit values that reach into the upper half of 0..65535 use the format as it is meant, and that is their range.
    Otherwise it goes from the 0.1st to the 99.9th percentile and a margin beyond both, no further than the values go.
    """
    sampled, sixteen = [], True
    for picture in pictures:
        if picture.is_deep:
            sampled.append(_some(picture.colors))
            sixteen = sixteen and picture.pixels.dtype == np.uint16
    values = np.concatenate(sampled) if sampled else np.empty(0)
    if not len(values):
        return None
    low, high = (float(x) for x in np.percentile(values, [_SHARE, 100 - _SHARE]))
    if sixteen and high > _FULL_16[1] / 2:
        return _FULL_16
    margin = _MARGIN * (high - low)
    low, high = max(float(values.min()), low - margin), min(float(values.max()), high + margin)
    # Of a constant picture any range will do that holds it; it is black.
    return (low, high) if high > low else (low, low + 1)


def _some(values: np.ndarray) -> np.ndarray:
    """At most some tens of thousands of finite values, the same at every call, as float64."""
    flat = values.reshape(-1)
    if len(flat) > _VALUES_OF_ONE:  # drawn, because a stride would meet the rows and bands of a picture
        flat = flat[np.random.default_rng(0).integers(len(flat), size=_VALUES_OF_ONE)]
    flat = flat.astype(np.float64)
    return flat[np.isfinite(flat)]
