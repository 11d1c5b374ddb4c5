"""Pictures as an instrument wrote them, in any depth and number of bands, and how they become 8 bits. No torch here.

A 16-bit file may hold 10, 12 or 14 bits, and floating-point numbers have no range of their own: what is black and what
is white is said by the data, once for all pictures of a dataset (`sampled_range`), or by a person (data.range).
8-bit pictures are what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float64, Shaped, UInt8, UInt16

from dsdmae_cli.data.base import Form, Refused
from dsdmae_cli.data.nodata import apart, unmeasured
from dsdmae_cli.report import number_of

# Of all sampled values these shares are darker than black and brighter than white, so that a hot pixel decides nothing;
# what noise adds beyond them has a margin, a share of the range.
_SHARE, _MARGIN = 0.1, 0.05
_VALUES_OF_ONE = 1 << 16
FULL_16 = (0.0, 65535.0)
_NARROW = (1023, 4095, 16383)  # the most that 10, 12 and 14 bits hold

Range = tuple[float, float]
Ranges = Range | tuple[Range, ...]  # of all channels, or of each
RGB = 3
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
        return self.channels in (1, RGB)


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
        return Reading(None, wanted, RGB if len(wanted) == 1 else len(wanted))
    return Reading(None, None, own())


@dataclass(frozen=True, eq=False)
class Values:
    """A picture as stored.

    Attributes:
        pixels: [height, width, bands], of any integer or floating type.
        alpha: the last band is how opaque a pixel is.
        nodata: the value that says that nothing was measured, where the file names one.
        inverted: the least value is white.
    """

    pixels: Shaped[np.ndarray, "h w c"]
    alpha: bool = False
    nodata: float | None = None
    inverted: bool = False

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
        return self if turn is None else replace(self, pixels=np.ascontiguousarray(turn(self.pixels)))

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
        values = self.channels(how)
        rgb = to_bytes(values, how.range, self.nodata)
        if self.inverted:  # the range is that of the values as stored; where nothing was measured black stays
            rgb = np.where(unmeasured(values, self.nodata), 0, 255 - rgb).astype(np.uint8)
        if rgb.shape[2] != how.channels:
            rgb = luma(rgb) if how.channels == 1 else np.repeat(rgb, how.channels, axis=2)
        if not self.alpha or not how.is_photographic:
            return np.ascontiguousarray(rgb)
        alpha = self.pixels[..., -1:]
        opaque = alpha.astype(np.float32) / _most_opaque(alpha)
        return np.rint(255 + opaque * (rgb.astype(np.float32) - 255)).clip(0, 255).astype(np.uint8)


def _most_opaque(alpha: Shaped[np.ndarray, "h w 1"]) -> int:
    """What stands for an opaque pixel: the most that the type holds, or 10, 12 or 14 bits where the picture reaches
    exactly these.
    """
    if alpha.dtype.kind not in "ui":
        return 1
    most = int(alpha.max()) if alpha.size else 0
    return most if alpha.dtype == np.uint16 and most in _NARROW else int(np.iinfo(alpha.dtype).max)


def divided_by_alpha(pixels: Shaped[np.ndarray, "h w c"]) -> Shaped[np.ndarray, "h w c"]:
    """Colours of which a file holds the product with alpha, which is last; black where nothing is seen of them."""
    alpha, full = pixels[..., -1:], _most_opaque(pixels[..., -1:])
    factor = np.divide(full, alpha, where=alpha > 0, out=np.zeros(alpha.shape, np.float64), dtype=np.float64)
    colors = pixels[..., :-1] * factor
    if pixels.dtype.kind in "ui":
        colors = np.rint(colors).clip(0, np.iinfo(pixels.dtype).max)
    return np.concatenate([colors.astype(pixels.dtype), alpha], axis=2)


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
    check_bands(colors.shape[2], how)
    return colors if how.bands is None else colors[..., [band - 1 for band in how.bands]]


def check_bands(there: int, how: Reading) -> None:
    """See that a picture of so many bands has those that are asked for.

    Raises:
        Refused: see chosen.
    """
    if how.bands is not None:
        if max(how.bands) > there:
            raise Refused(f"data.bands names band {max(how.bands)} and the picture has {there}")
    elif how.is_photographic and there not in (1, RGB):
        raise Refused(
            f"{there} bands, neither grey nor RGB; take them all with --set data.channels={there}, or choose one or"
            " three, counted from 1, as --set data.bands=[3,2,1]"
        )
    elif not how.is_photographic and there != how.channels:
        raise Refused(
            f"{number_of(there, 'band')} and not the {how.channels} of data.channels;"
            f" {'choose as many with data.bands' if there > how.channels else 'give another data.channels'},"
            " or take the picture out"
        )


def check_form(form: Form, how: Reading) -> None:
    """`check_bands` by a header, as far as it says what decoding makes of the picture.

    Raises:
        Refused: see chosen.
    """
    if not form.colors:
        in_pages = not how.is_photographic and form.bands == 1 and form.pages > 1
        check_bands(form.pages if in_pages else form.bands, how)
    elif not how.is_photographic and form.colors.removesuffix(" with transparency") in ("grey", "RGB"):
        in_pages = form.bands == 1 and form.pages > 1 and not form.animated
        check_bands(form.pages if in_pages else form.bands, how)


def keyed(pixels: UInt16[np.ndarray, "h w c"], key: int | tuple[int, ...]) -> UInt16[np.ndarray, "h w d"]:
    """16-bit pixels with alpha, of which those of one colour are transparent."""
    opaque = np.where((pixels == np.array(key)).all(axis=2, keepdims=True), 0, 0xFFFF)
    return np.concatenate([pixels, opaque.astype(np.uint16)], axis=2)


def luma(rgb: UInt8[np.ndarray, "*n 3"]) -> UInt8[np.ndarray, "*n 1"]:
    """RGB as grey; of equal channels one of them."""
    red, green, blue = (weight * rgb[..., i].astype(np.uint32) for i, weight in enumerate(_LUMA))
    return ((red + green + blue + (1 << 15)) >> 16).astype(np.uint8)[..., None]


def to_bytes(
    values: Shaped[np.ndarray, "h w c"], limits: Ranges | None, nodata: float | None = None
) -> UInt8[np.ndarray, "h w c"]:
    """Values from black to white as 0..255; 8-bit ones as they are, where nothing was measured black.

    Args:
        nodata: see Values.

    Raises:
        Refused: no limits are given and the type has none: floating point, or integers outside 0..65535.
    """
    if values.dtype == np.uint8:
        return values
    missing = unmeasured(values, nodata)
    if limits is None:
        if values.dtype.kind == "f":
            raise Refused("floating-point pixels have no range of their own; say it with --set data.range=LOW,HIGH")
        if values.dtype.itemsize > 2 or values.dtype.kind == "i":
            measured = values[~missing]
            least, most = (int(measured.min()), int(measured.max())) if measured.size else (0, 0)
            if least < 0 or most > FULL_16[1]:
                raise Refused(f"values from {least} to {most} are outside 0..65535; say --set data.range=LOW,HIGH")
        return np.where(missing, 0, values >> 8).astype(np.uint8)
    low, high = np.array(pairs(limits), np.float64).T
    known = np.where(missing, 0, values) if missing.any() else values
    # Far from zero floats of 32 bits are so far apart that a range has few of them.
    kind = np.float32 if np.can_cast(values.dtype, np.float32) else np.float64
    with np.errstate(over="ignore"):  # too much is white
        scaled = (known.astype(kind) - low.astype(kind)) * (255 / (high - low)).astype(kind)
    return np.rint(np.where(missing, 0, scaled).clip(0, 255)).astype(np.uint8)


def in_words(limits: Ranges, most: int = 3) -> str:
    """ "100 to 1000"; of several ranges "band by band" and the first ones."""
    said = [f"{low:g} to {high:g}" for low, high in pairs(limits)]
    if len(said) == 1:
        return said[0]
    return f"band by band {', '.join(said[:most])}{', ...' if len(said) > most else ''}"


def pairs(limits: Ranges) -> tuple[Range, ...]:
    """The ranges of all channels, or one for all of them."""
    return limits if isinstance(limits[0], tuple) else (limits,)


@dataclass(frozen=True)
class Found:
    """What some values say.

    Attributes:
        range: from black to white.
        left_out: values beyond it that stand apart from all others; see nodata.apart.
    """

    range: Range
    left_out: tuple[float, ...] = ()


def range_for(pictures: Iterable[Values], how: Reading) -> Ranges | None:
    """data.range = auto, by the bands that become channels: one range for grey or RGB, else one for each channel. None
    where no picture has more than 8 bits; pictures of other bands do not count.
    """
    some = []
    for picture in pictures:
        with suppress(Refused):
            some.append(Values(picture.channels(how), nodata=picture.nodata))
    return sampled_range(some) if how.is_photographic else _sampled_ranges(some, how)


def _sampled_ranges(bands: list[Values], how: Reading) -> tuple[Range, ...] | None:
    """One range for each channel, as `sampled_range` has it for all.

    Bands of one instrument differ by orders of magnitude, and 8 bits of a range that all share would leave the darkest
    ones black.
    """
    found = [sampled_range(band_of(bands, i)) for i in range(how.channels)]
    # A band without a single number is black in any range.
    return tuple(limits or (0.0, 1.0) for limits in found) if any(found) else None


def band_of(pictures: Iterable[Values], number: int) -> list[Values]:
    """One band of pictures, as pictures."""
    return [Values(p.pixels[..., number : number + 1], nodata=p.nodata) for p in pictures]


def sampled_range(pictures: Iterable[Values]) -> Range | None:
    """One range for pictures of more than 8 bits, by some of their values; None where there are no such pictures.

    16-bit values that reach into the upper half of 0..65535 use the format as it is meant, and that is their range.
    Otherwise it goes from the 0.1st to the 99.9th percentile and a margin beyond both, no further than the values go.
    What says that nothing was measured does not count, nor does a value that stands apart from all others.
    """
    found = sampled(pictures)
    return None if found is None else found.range


def sampled(pictures: Iterable[Values]) -> Found | None:
    """The same, with what stands apart."""
    some, kinds = [], set[np.dtype]()
    for picture in pictures:
        if picture.is_deep:
            some.append(measured(picture))
            kinds.add(picture.pixels.dtype)
    values = np.concatenate(some) if some else np.empty(0)
    if not len(values):
        return None
    left_out = apart(values, _extremes(kinds))
    values = values[~np.isin(values, left_out)]
    low, high = (float(x) for x in np.percentile(values, [_SHARE, 100 - _SHARE]))
    if kinds == {np.dtype(np.uint16)} and high > FULL_16[1] / 2:
        return Found(FULL_16)
    margin = _MARGIN * (high - low)
    low, high = max(float(values.min()), low - margin), min(float(values.max()), high + margin)
    # Of a constant picture any range will do that holds it; it is black.
    return Found((low, high) if high > low else (low, low + 1), left_out)


def _extremes(kinds: set[np.dtype]) -> tuple[float, float] | None:
    """The least and the most of a type of signed integers; of others 0 and the like are ordinary values."""
    if len(kinds) != 1 or next(iter(kinds)).kind != "i":
        return None
    info = np.iinfo(next(iter(kinds)))
    return float(info.min), float(info.max)


def measured(picture: Values) -> Float64[np.ndarray, " n"]:
    """At most some tens of thousands of finite values, the same at every call."""
    flat = picture.colors.reshape(-1)
    if len(flat) > _VALUES_OF_ONE:  # drawn, because a stride would meet the rows and bands of a picture
        flat = flat[np.random.default_rng(0).integers(len(flat), size=_VALUES_OF_ONE)]
    flat = flat[~unmeasured(flat, picture.nodata)].astype(np.float64)
    return flat[np.isfinite(flat)]
