"""How people write a range of values; neither torch nor pydantic here, which `dsdmae denoise` does without."""

from __future__ import annotations

import re

_MOST_BITS = 32


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


def range_of(text: str) -> tuple[float, float]:
    """A range as numbers.

    Raises:
        ValueError: it is none.
    """
    pair = as_range(text)
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise ValueError("it takes LOW,HIGH or a number of bits, as 100,1000 or 12")
    try:
        low, high = (float(x) for x in pair)
    except ValueError:
        raise ValueError("LOW and HIGH are numbers, as 100,1000") from None
    if not -float("inf") < low < high < float("inf"):
        raise ValueError("a range runs from low to high, as 0,4095")
    return low, high
