"""Whether a range fits the pictures it is used on, by the values of some of them; and what stands apart. No torch here.

A run keeps its range, and on pictures of another instrument all of them may be black. That is said before anything is
computed, since black pictures can be trained on, told apart by chance and found to be equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

import numpy as np

from dsdmae_cli.data.base import Form, ImageDataset, Refused, UnreadableImage
from dsdmae_cli.data.nodata import unmeasured
from dsdmae_cli.data.values import FULL_16, RGB, Reading, Values, band_of, in_words, measured, pairs, sampled
from dsdmae_cli.errors import DataError

# The values of so many pictures are looked at, spread over all.
_PICTURES = 16
# Beyond the range is what is so much of it below or above; nearly all are these shares of values and of pictures.
_SLACK, _OF_VALUES, _OF_PICTURES = 0.05, 0.99, 0.9
# Where the middle 98% of values lie in less of the range, most of what is depicted is one grey.
_SMALL_PART, _MIDDLE = 0.05, (1, 99)
_ANOTHER = "--set data.range=auto takes their own, --set data.range=LOW,HIGH another"


def deep_ones(dataset: ImageDataset, indices: Sequence[int]) -> list[Values]:
    """The values of some of these images of more than 8 bits."""
    chosen = {indices[int(at)] for at in np.linspace(0, len(indices) - 1, _PICTURES)} if indices else set[int]()
    found = []
    for index in sorted(chosen):
        with suppress(UnreadableImage):  # it is met again, and counted, when it is used
            values = dataset.deep_values(index)
            if values is not None:
                found.append(values)
    return found


def range_notes(dataset: ImageDataset, advice: str = _ANOTHER) -> tuple[str, ...]:
    """What a person should know of the range of a dataset that has no account; nothing of 8 bits alone.

    Raises:
        DataError: see check_range.
    """
    reading = dataset.reading
    pictures = [] if reading is None else deep_ones(dataset, range(len(dataset)))
    if reading is None or not pictures:
        return ()
    check_range(pictures, reading, advice)
    said = "; ".join([f"values of {in_words(reading.range or FULL_16)} are seen as black to white",
                      *words_of_values(pictures, reading)])  # fmt: skip
    return (said,)


def check_range(pictures: Sequence[Values], how: Reading, advice: str = _ANOTHER) -> None:
    """See that pictures are not black, or white, all over.

    Args:
        pictures: some of a dataset, of more than 8 bits.
        advice: how another range is said.

    Raises:
        DataError: nearly all values of nearly all of them are beyond the range.
    """
    if how.range is None or not pictures:
        return
    shares, least, most = [], [], []
    for bands in (_bands([picture], how) for picture in pictures):
        some = [np.concatenate([measured(p) for p in band] or [np.empty(0)]) for band in bands]
        if not sum(map(len, some)):
            continue  # nothing was measured in it, or it has other bands
        beyond = 0
        for values, (low, high) in zip(some, pairs(how.range), strict=True):
            slack = _SLACK * (high - low)
            beyond += int(((values < low - slack) | (values > high + slack)).sum())
        shares.append(beyond / sum(map(len, some)))
        least.append(min(float(values.min()) for values in some if len(values)))
        most.append(max(float(values.max()) for values in some if len(values)))
    if shares and np.mean(np.array(shares) >= _OF_VALUES) >= _OF_PICTURES:
        raise DataError(
            f"nearly all values of the picture{'s' * (len(pictures) > 1)}, {min(least):g} to {max(most):g}, are beyond"
            f" the range of {in_words(how.range)} (data.range): all would be black or white; {advice}"
        )


def words_of_values(pictures: Sequence[Values], how: Reading) -> list[str]:
    """What stands apart in pictures of more than 8 bits, and whether they use a small part of the range alone."""
    ranges = pairs(how.range or FULL_16)
    bands = _bands(pictures, how)
    nothing, saturated = set[float](), set[float]()
    for band, (low, high) in zip(bands, ranges, strict=True):
        for picture in band:
            some = picture.pixels[unmeasured(picture.pixels, picture.nodata)]
            nothing |= {float(value) for value in np.unique(some) if np.isfinite(value)}
        found = sampled(band)
        nothing |= {value for value in found.left_out if value < low} if found else set()
        saturated |= {value for value in found.left_out if value > high} if found else set()
    words = [f"nodata {_listed(nothing)}"] if nothing else []
    words += [f"saturated or nodata {_listed(saturated)}"] if saturated else []
    if len(ranges) > 1:
        return words
    [(low, high)] = ranges
    values = np.concatenate([measured(picture) for picture in bands[0]] or [np.empty(0)])
    values = values[~np.isin(values, [*nothing, *saturated])]
    if len(values):
        first, last = (float(x) for x in np.percentile(values, _MIDDLE))
        if 0 < last - first < _SMALL_PART * (high - low):
            words.append(
                f"98% of the values lie in {first:g} to {last:g} (--set data.range={first:g},{last:g} shows more)"
            )
    return words


def _bands(pictures: Iterable[Values], how: Reading) -> list[list[Values]]:
    """Pictures band by band where each band has its range, else whole; those of other bands are left out."""
    whole = []
    for picture in pictures:
        with suppress(Refused):
            whole.append(Values(picture.channels(how), nodata=picture.nodata))
    number = 1 if how.range is None else len(pairs(how.range))
    return [whole] if number == 1 else [band_of(whole, band) for band in range(number)]


def _listed(values: set[float]) -> str:
    return ", ".join(f"{value:g}" for value in sorted(values))


def is_first_alone(form: Form, channels: int) -> bool:
    """Whether a file holds several pictures of which the first is taken; pages of one band each are bands where neither
    grey nor RGB is wanted.
    """
    return form.pages > 1 and (form.animated or form.bands > 1 or channels in (1, RGB))


def words_of_several(stacks: int, animations: int, total: int) -> list[str]:
    """What is said of files of several pages or frames, of which the first alone is taken."""
    words = []
    for count, a, several, which in (
        (stacks, "a stack", "stacks", "page"),
        (animations, "an animation", "animations", "frame"),
    ):
        if total == 1 == count:
            words.append(f"it is {a}: its first {which} is taken")
        elif count == 1:
            words.append(f"1 of {total:,} is {a}: its first {which} is taken")
        elif count:
            are = f"all {total:,} are" if count == total else f"{count:,} of {total:,} are"
            words.append(f"{are} {several}: the first {which} of each is taken")
    return words
