"""What the VALUES of `--sweep KEY VALUES` mean: lists, and ranges of numbers. What they are values of is in sweep.py.

    VALUES    0.75..0.95        a range, ends included, about five steps
              0.75..0.95:0.05   the same with a step
              0.75..0.95/5      the same with a number of values; 1e-4..1e-2/5log spaces them evenly by ratio
              0.2,0.4,0.6       a list of values, words or ranges; a pair stands in brackets: [0.8,0.95],[0.7,0.9]

In --mask-ratio "0.75..0.95" is one value, a range that the run draws from; here it is a range of runs.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from dsdmae_cli.errors import SettingsError

MOST_TRIALS = 1000
_USUAL_VALUES = 5
_LARGEST_WHOLE = 10**15  # a double and four digits of rounding are exact up to here
_RANGE = re.compile(r"(?P<low>[^.].*?)\.\.(?P<high>[^:/]+?)(?::(?P<step>[^/]+?))?(?:/(?P<count>\w+?))?(?P<log>log)?")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")


@dataclass(frozen=True)
class Span:
    """A range that a search may draw from.

    Attributes:
        low, high: its ends, included.
        step: distance of the values that are allowed; None = any.
        log: evenly by ratio.
        whole: whole numbers only.
    """

    low: float
    high: float
    step: float | None
    log: bool
    whole: bool


def parse_values(key: str, text: str, whole: bool | None) -> tuple[tuple[str, ...], Span | None]:
    """The values as texts, and the range that a search may draw from, if VALUES is one.

    Args:
        key: for messages.
        whole: whether the setting takes whole numbers only; None = not known.

    Raises:
        SettingsError: there are none, one stands there twice, or a range cannot be.
    """
    if not text:
        raise SettingsError(f"--sweep {key} has no values; write a range (0.75..0.95) or a list (0.2,0.4)")
    items = split_values(text)
    found: list[str] = []
    span: Span | None = None
    for item in items:
        if not item:
            raise SettingsError(f"--sweep {key} {text}: a value is missing between commas")
        ranged = _range(key, item, whole)
        found += ranged[0] if ranged else [item]
        span = ranged[1] if ranged else None
    for value in found:
        if found.count(value) > 1:
            raise SettingsError(f"--sweep {key} {text}: {value} stands there twice; nothing is run twice")
    return tuple(found), span if len(items) == 1 else None


def is_number(text: str) -> bool:
    """Whether a value is a plain number."""
    return _NUMBER.fullmatch(text) is not None


def split_values(values: str) -> list[str]:
    """At commas that stand outside brackets and braces."""
    parts, depth = [""], 0
    for letter in values:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _number(text: str) -> Decimal | None:
    try:
        return Decimal(text) if _NUMBER.fullmatch(text) else None
    except InvalidOperation:
        return None


def _range(key: str, item: str, whole: bool | None) -> tuple[list[str], Span] | None:
    """The values of LOW..HIGH, and its span; None if the text is no range of numbers.

    Raises:
        SettingsError: it is empty, runs backwards, or its steps do not meet its end.
    """
    match = _RANGE.fullmatch(item)
    ends = (_number(match["low"].strip()), _number(match["high"].strip())) if match else (None, None)
    low, high = ends
    if match is None or low is None or high is None:
        return None
    said, log = f"--sweep {key} {item}", match["log"] is not None
    if low > high:
        raise SettingsError(f"{said}: the range runs backwards; write {match['high']}..{match['low']}")
    if whole is None:
        whole = low == low.to_integral_value() and high == high.to_integral_value()
    _check_ends(said, low, high, whole, log)
    if match["step"] is None:
        return _counted(said, low, high, match["count"], whole, log)
    if log or match["count"] is not None:
        raise SettingsError(f"{said}: give a step (:0.05) or a number of values (/5, /5log), not both")
    step = _number(match["step"].strip())
    values = _stepped(said, low, high, step, whole)
    return [_text(v) for v in values], Span(float(low), float(high), float(step or 0), False, whole)


def _check_ends(said: str, low: Decimal, high: Decimal, whole: bool, log: bool) -> None:
    if low == high:
        raise SettingsError(f"{said}: the range is empty; write one value, {low}, or two different ends")
    if whole and (low != low.to_integral_value() or high != high.to_integral_value()):
        raise SettingsError(f"{said}: this setting takes whole numbers; got ends {low} and {high}")
    if whole and max(abs(low), abs(high)) > _LARGEST_WHOLE:
        raise SettingsError(f"{said}: that is further than whole numbers are counted here, {_LARGEST_WHOLE:.0e}")
    if log and low <= 0:
        raise SettingsError(f"{said}: log needs ends above 0, got {low}")


def _counted(
    said: str, low: Decimal, high: Decimal, number: str | None, whole: bool, log: bool
) -> tuple[list[str], Span]:
    """The values of a range without a step: as many as it says, or as are usual."""
    count = _count(said, number)
    if count is None:
        count = _USUAL_VALUES if log else _usual_count(low, high, whole)
    values = _spaced(low, high, count, whole, log)
    if len(set(values)) < count:
        raise SettingsError(f"{said}: there are not {count} different whole numbers from {low} to {high}; take fewer")
    return [_text(v) for v in values], Span(float(low), float(high), None, log, whole)


def _count(said: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or not 2 <= int(text) <= MOST_TRIALS:
        raise SettingsError(f"{said}: after / stands how many values, 2 to {MOST_TRIALS}, got {text!r}")
    return int(text)


def _stepped(said: str, low: Decimal, high: Decimal, step: Decimal | None, whole: bool) -> list[Decimal]:
    if step is None or step <= 0 or (whole and step != int(step)):
        kind = "whole number" if whole else "number"
        raise SettingsError(f"{said}: after : stands the step, a {kind} above 0")
    steps = (high - low) / step
    if steps > MOST_TRIALS:
        raise SettingsError(f"{said}: that is more than {MOST_TRIALS} values; take a larger step")
    if steps != int(steps):
        last = _text(low + step * int(steps))
        raise SettingsError(
            f"{said}: steps of {_text(step)} end at {last}, not at {_text(high)}; change the step or the end, or say"
            " how many values by /N"
        )
    return [low + step * i for i in range(int(steps) + 1)]


def _usual_count(low: Decimal, high: Decimal, whole: bool) -> int:
    """How many values make round steps, four to seven of them; five where nothing is round."""

    def roundness(count: int) -> tuple[int, int]:
        step = (high - low) / (count - 1)
        digits = step.normalize().as_tuple().digits
        return len(digits), abs(count - _USUAL_VALUES)

    if whole and high - low < _USUAL_VALUES + 2:
        return int(high - low) + 1
    fits = [n for n in range(4, 8) if not whole or (high - low) % (n - 1) == 0]
    best = min(fits, key=roundness, default=_USUAL_VALUES)
    return best if fits and (whole or roundness(best)[0] <= 2) else _USUAL_VALUES


def _spaced(low: Decimal, high: Decimal, count: int, whole: bool, log: bool) -> list[Decimal]:
    shares = [Decimal(i) / (count - 1) for i in range(count)]
    if log:
        values = [low * (high / low) ** share for share in shares]
    else:
        values = [low + (high - low) * share for share in shares]
    # Four digits are plenty, unless the values lie closer to each other than that.
    apart = float((values[1] - low) / max(abs(low), abs(high)))
    digits = max(4, 2 + math.ceil(-math.log10(max(apart, 1e-20))))
    rounded = [value.to_integral_value() if whole else Decimal(f"{value:.{digits}g}") for value in values]
    return [low, *rounded[1:-1], high]


def drawn_text(value: float, span: Span) -> str:
    """A value that a search drew from a span: within it, and by a thousandth of its width at least, in four digits
    where that is enough."""
    if span.whole:
        return str(int(value))
    width = (span.high - span.low) / max(abs(span.low), abs(span.high))
    text = f"{value:.{4 + max(0, math.floor(-math.log10(width)))}g}"
    return text if span.low <= float(text) <= span.high else repr(value)


def _text(number: Decimal) -> str:
    """The number as TOML takes it: 0.75, 20, 1e-05."""
    plain = format(number.normalize(), "f")
    short = len(plain) <= 8 or (number == number.to_integral_value() and abs(number) <= _LARGEST_WHOLE)
    return plain if short else repr(float(number))
