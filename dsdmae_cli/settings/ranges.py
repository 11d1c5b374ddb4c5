"""How people write a range of values; neither torch nor pydantic here, which `dsdmae denoise` does without."""

from __future__ import annotations

import re

_MOST_BITS = 32
Range = tuple[float, float]


def as_range(value: object) -> object:
    """ "100,1000" and [100, 1000] as a pair, "[0,1],[0,9]" as several; a number of bits as what they can hold; anything
    else as it is.

    Raises:
        ValueError: no such number of bits.
    """
    if isinstance(value, str) and "," in value:
        pairs = re.findall(r"\[([^\[\]]*)\]", value) if value.count("[") > 1 else [value.strip("[] ")]
        parted = tuple(tuple(part.strip() for part in pair.split(",")) for pair in pairs)
        return parted if len(parted) > 1 else parted[0]
    bits = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
    if isinstance(bits, int) and not isinstance(bits, bool):
        if not 1 <= bits <= _MOST_BITS:
            raise ValueError("a single number means bits, 1 to 32; or write LOW,HIGH")
        return (0, 2**bits - 1)
    return value


def range_of(text: str) -> Range | tuple[Range, ...]:
    """A range as numbers, or one for each band.

    Raises:
        ValueError: it is none.
    """
    found = as_range(text)
    if not isinstance(found, tuple):
        raise ValueError("it takes LOW,HIGH or a number of bits, as 100,1000 or 12, or [LOW,HIGH] for each band")
    several = isinstance(found[0], tuple)
    ranges = tuple(_pair(pair) for pair in (found if several else (found,)))
    return ranges if several else ranges[0]


def _pair(pair: tuple[object, ...]) -> Range:
    if len(pair) != 2:
        raise ValueError("it takes LOW,HIGH or a number of bits, as 100,1000 or 12, or [LOW,HIGH] for each band")
    try:
        low, high = (float(str(x)) for x in pair)
    except ValueError:
        raise ValueError("LOW and HIGH are numbers, as 100,1000") from None
    if not -float("inf") < low < high < float("inf"):
        raise ValueError("a range runs from low to high, as 0,4095")
    return low, high
