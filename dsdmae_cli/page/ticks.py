"""Where an axis has its numbers, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Sequence

_STEPS = (1.0, 2.0, 5.0, 10.0)
_MOST_DECADES = 6


def linear(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers within a range, about `most` of them, two at least: multiples of 1, 2 or 5 times a power of ten."""
    assert low < high
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * step for step in _STEPS if power * step >= rough * (1 - 1e-9))
    while (found := _multiples(low, high, step)) and len(found) < 2:
        step = step / 2 if round(step / 10 ** math.floor(math.log10(step) + 1e-9)) != 5 else step / 2.5
    return found or [low, high]


def _multiples(low: float, high: float, step: float) -> list[float]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) + 0.0 for index in range(first, last + 1)]


def logarithmic(low: float, high: float) -> list[float]:
    """Powers of ten within a range; with 2 and 5 times them where there are few, round numbers where there is none."""
    assert 0 < low < high
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = range(first, last + 1)
    decades = math.log10(high / low)
    factors = (1, 2, 5) if decades < 2.5 else (1,)
    stride = 1 if decades <= _MOST_DECADES else math.ceil(decades / _MOST_DECADES)
    found = [f * 10.0**p for p in powers if p % stride == 0 for f in factors]
    within = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
    return within if len(within) >= 2 else linear(low, high, 4)


def label(value: float) -> str:
    """A tick's number: 0.25, 1,500, 1e-4."""
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e6:
        return f"{value:,.10g}" if abs(value) >= 1 else f"{value:.6g}"
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    if not exponent:  # .3g writes 0.0005 so
        power = math.floor(math.log10(abs(value)) + 1e-12)
        mantissa, exponent = f"{value / 10.0**power:.3g}", str(power)
    return f"{mantissa}e{int(exponent)}"


def padded(values: Sequence[float], *, log: bool = False, share: float = 0.06) -> tuple[float, float]:
    """A range around values that has a width whatever they are."""
    low, high = min(values), max(values)
    if log:
        low, high = (math.log10(value) for value in (low, high))
        edge = (high - low) * share or 0.15
        return 10 ** (low - edge), 10 ** (high + edge)
    if low == high == 0:  # what is counted or measured has no reason to go below
        return 0.0, 1.0
    edge = (high - low) * share or abs(high) * 0.1
    return low - edge, high + edge
