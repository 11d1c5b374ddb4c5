"""Values that say that nothing was measured: GDAL's nodata, the extremes of a type, a value apart from all others.

They must not become black or white of a picture: -9999 among temperatures would leave the range to the two, and every
temperature white. No torch here.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float64, Shaped

# GDAL's tag: the value in ASCII (https://gdal.org/en/stable/drivers/raster/gtiff.html#nodata-value).
TAG = 42113
# No physical quantity is as large; -3.4028235e38 and -1.797e308, the least floats, are what programs write for nothing.
_NO_QUANTITY = 1e38
# A value is apart where the gap to all others is wider than these together; where it is the least or the most that its
# type holds, wider than this share of them.
_GAP, _GAP_OF_EXTREME = 1.0, 0.1
# It is a value, not a stray one: this share of all, or more. Percentiles take care of fewer. Of the values between it
# and the others a few (by its own number) are forgiven: hot pixels, and edges that were interpolated.
_SHARE, _BETWEEN = 1 / 2000, 1 / 20
# Pictures of fewer values than this are masks or drawings, whose values all count.
_VALUES = 8


def parsed(text: object) -> float | None:
    """What GDAL's tag says, a number; None where it says none ("nan" is no number in any case)."""
    if not isinstance(text, str | bytes):
        return None
    try:
        words = text.decode("ascii") if isinstance(text, bytes) else text
        value = float(words.strip("\0 "))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def written(value: float) -> str:
    """A value as GDAL's tag has it."""
    return repr(value).removesuffix(".0")


def unmeasured(values: Shaped[np.ndarray, "*n"], nodata: float | None) -> Bool[np.ndarray, "*n"]:
    """Where nothing was measured: not a number, of a size that no quantity has, or what the file says.

    Infinity is a measured value that was too much: it counts as black or white.
    """
    missing = np.zeros(values.shape, bool)
    if values.dtype.kind == "f":
        missing |= np.isnan(values)
        if values.dtype.itemsize > 2:
            missing |= (np.abs(values) >= _NO_QUANTITY) & np.isfinite(values)
    if nodata is not None and (stored := _stored(nodata, values.dtype)) is not None:
        missing |= values == stored
    return missing


def _stored(nodata: float, dtype: np.dtype) -> np.generic | None:
    """The value as pixels of a type hold it; None where they cannot."""
    if dtype.kind in "ui":
        info = np.iinfo(dtype)
        return dtype.type(int(nodata)) if float(nodata).is_integer() and info.min <= nodata <= info.max else None
    with np.errstate(over="ignore"):
        return dtype.type(nodata)


def apart(values: Float64[np.ndarray, " n"], extremes: tuple[float, float] | None) -> tuple[float, ...]:
    """The least value, the largest, or both, where they stand apart from all others: no more than two values.

    Nothing, written as a number (-9999), and pixels that are saturated (65535 in a picture of 12 bits) look like that.
    A photograph that uses its type's range has values everywhere between, also where its highlights are clipped.

    Args:
        values: finite, in any order.
        extremes: the least and the most that the type holds, where it is one of signed integers.
    """
    ordered = np.sort(values)
    if len(ordered) < _VALUES:
        return ()
    least, most = ordered[0], ordered[-1]
    lows = int(np.searchsorted(ordered, least, "right"))
    highs = len(ordered) - int(np.searchsorted(ordered, most, "left"))
    inner = ordered[lows : len(ordered) - highs]
    if np.count_nonzero(np.diff(inner)) + 1 < _VALUES:
        return ()
    found = []
    for value, count, outwards in ((least, lows, -1), (most, highs, 1)):
        if count < max(2, len(ordered) * _SHARE):
            continue
        forgiven = min(int(count * _BETWEEN), len(inner) // 4)
        near = inner[forgiven] if outwards < 0 else inner[-1 - forgiven]
        far = inner[-1] if outwards < 0 else inner[0]
        share = _GAP_OF_EXTREME if extremes is not None and value in extremes else _GAP
        if outwards * (value - near) > share * abs(far - near):
            found.append(float(value))
    return tuple(found)
