"""Pictures of more than 8 bits, shown to a network as ones that use all of 16: from LOW to HIGH, and back. No torch.

Nothing is lost on the way: only what was changed goes back, so that values beyond the range, and digits that 16 bits do
not have, stay as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
from jaxtyping import Bool, UInt16

from dsdmae_cli.data.base import Refused, UnreadableImage
from dsdmae_cli.data.nodata import unmeasured
from dsdmae_cli.data.values import RGB, Ranges, Values, band_of, pairs, sampled, sampled_range
from dsdmae_cli.errors import DataError
from dsdmae_cli.pictures.instrument import lossless
from dsdmae_cli.pictures.paths import Source
from dsdmae_cli.pictures.picture import Picture, read_pages
from dsdmae_cli.report import number_of

_FULL = (0.0, 65535.0)
_ROWS, _SOME = 512, 1 << 15


def limits_of(pictures: Sequence[Picture]) -> Ranges | None:
    """The range of those of more than 8 bits together, of other bands than grey and RGB one for each; None where there
    are none.
    """
    deep = [_values(picture) for picture in pictures if picture.pixels.dtype != np.uint8]
    counts = {picture.colors.shape[2] for picture in deep}
    if len(counts) != 1 or counts <= {1, RGB}:
        return sampled_range(deep)
    return tuple(sampled_range(band_of(deep, band)) or (0.0, 1.0) for band in range(counts.pop()))


def range_of(picture: Picture, limits: Ranges | None) -> Ranges | None:
    """The range that one picture is seen by: 8 bits have their own, and need it only where the file names a value that
    says that nothing was measured, which is to stay; so do 16 bits where no range was asked for."""
    whole = picture.pixels.dtype in (np.uint8, np.uint16)
    asked = None if picture.pixels.dtype == np.uint8 else limits
    return (0.0, float(picture.peak)) if whole and asked is None and picture.nodata is not None else asked


def _values(picture: Picture) -> Values:
    return Values(picture.pixels, picture.mode.endswith("A"), picture.nodata)


def limits_of_all(sources: Sequence[Source], max_pixels: int) -> Ranges | None:
    """One range for all pictures; those that cannot be read are met again.

    Raises:
        DataError: one of them is standard input, which can be read once.
    """
    found: list[Picture] = []
    for source in sources:
        if source.path is None:
            raise DataError("--range batch is for several pictures; standard input is one")
        with suppress(UnreadableImage, Refused):
            found += (thinned(page) for page in read_pages(source.path, str(source), max_pixels))
    return limits_of(found)


def seen(picture: Picture, limits: Ranges, *, itself: bool = True) -> Picture:
    """The picture with LOW..HIGH as 0..65535, alpha by its own full scale; itself where that is what it has.

    Where nothing was measured stands what is mirrored at the edge of what was, noise and all: a network that saw black
    there would darken what is beside it, and the noise could not be told.

    Args:
        itself: False = it is 0..65535 in any case, to be compared with one that is.

    Raises:
        Refused: there are other bands than ranges.
    """
    missing = unmeasured_in(picture, limits)
    if itself and missing is None and is_itself(picture, limits):
        return picture
    result = np.empty(picture.pixels.shape, np.uint16)
    colors = picture.num_colors
    low, high = _of_bands(limits, colors)
    for top in range(0, picture.height, _ROWS):
        band = picture.pixels[top : top + _ROWS, :, :colors].astype(np.float64)
        with np.errstate(over="ignore"):  # where nothing was measured
            scaled = np.nan_to_num((band - low) * (_FULL[1] / (high - low)), nan=0.0).clip(0, _FULL[1])
        result[top : top + _ROWS, :, :colors] = np.rint(scaled)
    result[..., colors:] = _FULL[1]  # no network looks at alpha, and it comes back as it was
    if missing is not None:
        _mirror_into(result, missing)
    return picture.with_pixels(result)


def _of_bands(limits: Ranges, bands: int) -> tuple[np.ndarray, np.ndarray]:
    """LOW and HIGH, [1] of all bands or [bands] of each."""
    if (given := len(pairs(limits))) not in (1, bands):
        raise Refused(f"--range says {given} pairs and the picture has {number_of(bands, 'band')}; give one a band")
    low, high = np.array(pairs(limits), np.float64).T
    return low, high


def unmeasured_in(picture: Picture, limits: Ranges) -> Bool[np.ndarray, "h w c"] | None:
    """Which values of the colours say that nothing was measured; None where all were.

    That is what the file says, what is no number, and what stands apart from all others outside of the range.
    """
    colors = picture.pixels[..., : picture.num_colors]
    missing = unmeasured(colors, picture.nodata)
    if colors.dtype.kind == "f":
        missing |= ~np.isfinite(colors)
    for band, values in _standing_apart(picture, limits):
        missing[..., band] |= np.isin(colors[..., band], values)
    return missing if missing.any() else None


def left_out(picture: Picture, limits: Ranges) -> tuple[float, ...]:
    """The numbers among them, the least first."""
    missing = unmeasured_in(picture, limits)
    if missing is None:
        return ()
    found = np.unique(picture.pixels[..., : picture.num_colors][missing])
    return tuple(float(value) for value in found if np.isfinite(value))


def _standing_apart(picture: Picture, limits: Ranges) -> Iterator[tuple[slice | int, list[float]]]:
    """Values outside of the range, of all bands or of each."""
    some = _values(thinned(picture))
    if some.pixels.dtype == np.uint8:
        return
    ranges = pairs(limits)
    for band, (low, high) in enumerate(ranges):
        of_band = [some] if len(ranges) == 1 else band_of([some], band)
        found = sampled(of_band)
        values = [value for value in found.left_out if not low <= value <= high] if found else []
        if values:
            yield (slice(None) if len(ranges) == 1 else band), values


def _mirror_into(pixels: UInt16[np.ndarray, "h w c"], missing: Bool[np.ndarray, "h w d"]) -> None:
    """Fill what is missing of each band by what lies as far from the nearest known pixel on its other side, in place;
    by that pixel where nothing is known there either.
    """
    from scipy.ndimage import distance_transform_edt

    height, width, bands = missing.shape
    for band in range(bands):
        holes = missing[..., band]
        if not holes.any() or holes.all():
            continue
        near = distance_transform_edt(holes, return_distances=False, return_indices=True)[:, holes]
        there = np.stack(np.nonzero(holes))
        beyond = np.clip(2 * near - there, 0, [[height - 1], [width - 1]])
        rows, columns = np.where(holes[beyond[0], beyond[1]], near, beyond)
        pixels[..., band][holes] = pixels[rows, columns, band]


def brought_back(given: Picture, before: Picture, after: Picture, limits: Ranges) -> Picture:
    """What was changed between `before` = seen(given) and `after`, done to the picture itself where it was measured."""
    if before is given:
        return after
    colors = given.num_colors
    low, high = _of_bands(limits, colors)
    missing = unmeasured_in(given, limits)
    result = given.pixels.copy()
    for top in range(0, given.height, _ROWS):
        rows = (slice(top, top + _ROWS), slice(None), slice(0, colors))
        changed = after.pixels[rows].astype(np.float64) - before.pixels[rows]
        kept = changed == 0 if missing is None else (changed == 0) | missing[rows]
        with np.errstate(over="ignore", invalid="ignore"):  # where nothing was measured
            values = given.pixels[rows].astype(np.float64) + changed * ((high - low) / _FULL[1])
            result[rows] = np.where(kept, given.pixels[rows], lossless(values, result))
    return given.with_pixels(result)


def thinned(picture: Picture) -> Picture:
    """Some of its pixels, enough to see their range by."""
    flat = picture.pixels.reshape(1, -1, picture.pixels.shape[2])
    some = np.random.default_rng(0).integers(flat.shape[1], size=min(flat.shape[1], _SOME))
    return picture.with_pixels(flat[:, some])


def is_itself(picture: Picture, limits: Ranges | None) -> bool:
    """Whether a network may see the picture as it is: 8 bits, or 16 that are all used."""
    whole = limits is None or set(pairs(limits)) == {_FULL}
    return picture.pixels.dtype == np.uint8 or (picture.pixels.dtype == np.uint16 and whole)
