"""What a dataset is, in three lines, before anything is computed: how many images, of which kinds, and what is wrong
with some. No torch here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dsdmae_cli.data.base import Form, ImageDataset, Refused, UnreadableImage
from dsdmae_cli.data.beyond import (
    check_range,
    deep_ones,
    is_first_alone,
    words_of_several,
    words_of_values,
)
from dsdmae_cli.data.masks import MaskedImages
from dsdmae_cli.data.values import FULL_16, Ranges, Values, check_form, in_words
from dsdmae_cli.report import number_of, shown

# Headers of so many images are read; of a larger dataset so many evenly spread ones.
LOOKED_AT = 512
# In a dry run, where nothing follows that would decode them, all of a dataset with no more than this are decoded.
_DECODED = 500
_NAMED = 3


@dataclass
class Account:
    """What was seen.

    Attributes:
        splits: images in each, by what they are for ("training").
        classes: names, or None without labels.
        labelled: training images that have a label.
        looked_at: images whose header was read.
        sides: widths and heights.
        kinds: how many images there are of each kind, as "RGB, 8 bits".
        deep: of these more than 8 bits have so many.
        limits: values that deep ones show as black and white, of all channels or of each; None = as their format says.
        decoded: and its pixels.
        channels: that the network sees.
        grey: of the images that were looked at so many are.
        unreadable_of: reasons by the names of images that cannot be read, in each split that has some.
        masked: images have masks, and no labels of their own.
        stacks: of the images that were looked at so many are the first of several pages.
        animations: and so many the first of several frames.
        values: what is to be said of the values of deep ones: what stands apart, what part of the range they use.
    """

    splits: dict[str, int]
    classes: tuple[str, ...] | None
    labelled: int
    limits: Ranges | None = None
    looked_at: int = 0
    sides: Counter[tuple[int, int]] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    deep: int = 0
    grey: int = 0
    channels: int = 3
    decoded: bool = False
    unreadable_of: dict[str, dict[str, str]] = field(default_factory=dict)
    masked: bool = False
    stacks: int = 0
    animations: int = 0
    values: tuple[str, ...] = ()

    @property
    def unreadable(self) -> dict[str, str]:
        """Those of all splits."""
        return {name: reason for of_split in self.unreadable_of.values() for name, reason in of_split.items()}

    def rows(self) -> dict[str, str]:
        """The three lines, each under its first word; a name of a file or class begins none of its own."""
        said = {"data": self._data(), "images": self._images(), "readable": self._readable()}
        return {name: shown(words, one_line=True) for name, words in said.items()}

    def lines(self) -> list[str]:
        """The three lines as they are printed."""
        return [f"{name:<10}{words}" for name, words in self.rows().items()]

    def _data(self) -> str:
        said = " and ".join(f"{count:,} {name}" for name, count in self.splits.items()) + " images"
        if self.classes is None:
            return f"{said} with masks" if self.masked else f"{said} without labels"
        named = ", ".join(self.classes[:_NAMED]) + (", ..." if len(self.classes) > _NAMED else "")
        missing = next(iter(self.splits.values())) - self.labelled
        some = f", {missing:,} of them without a label" if missing else ""
        return f"{said}{some} in {number_of(len(self.classes), 'class')}: {named}"

    def _images(self) -> str:
        if not self.kinds:
            return "none could be looked at"
        kinds = self.kinds.most_common()
        alone = len(kinds) == 1
        words = [name if alone else f"{name} ({count:,})" for name, count in kinds[: _NAMED + 1]]
        words += [f"{len(kinds) - len(words)} other kinds"] if len(kinds) > len(words) else []
        said = [self._range(), *self.values, *words_of_several(self.stacks, self.animations, self.looked_at)]
        return f"{self._sizes()}, {'; '.join(words)}{''.join(f'; {w}' for w in said if w)}{self._channels()}"

    def _channels(self) -> str:
        """What is made of them, where that is not RGB of RGB."""
        if self.channels == 3:
            through = any("transparency" in kind for kind in self.kinds)
            grey = "; grey is seen as RGB (data.channels)" if self.grey else ""
            return grey + ("; transparency is laid over white (data.channels=4 makes it a band)" if through else "")
        return f"; seen as {number_of(self.channels, 'channel')} (data.channels)"

    def _sizes(self) -> str:
        if len(self.sides) == 1:
            width, height = next(iter(self.sides))
            return f"{width}x{height} px"
        widths, heights = zip(*self.sides, strict=True)
        return f"{min(widths)} to {max(widths)} px wide and {min(heights)} to {max(heights)} px high"

    def _range(self) -> str:
        return f"{in_words(self.limits or FULL_16)} are shown as black to white" if self.deep else ""

    def _readable(self) -> str:
        total = sum(self.splits.values())
        of = f"of all {total:,}" if self.looked_at == total else f"of the {self.looked_at:,} that were looked at"
        if not self.unreadable:
            return f"{of.removeprefix('of ')}, by their {'pixels' if self.decoded else 'headers'}"
        named = "; ".join(f"{name}: {reason}" for name, reason in list(self.unreadable.items())[:_NAMED])
        more = f"; and {len(self.unreadable) - _NAMED:,} more" if len(self.unreadable) > _NAMED else ""
        return f"{len(self.unreadable):,} {of} cannot be read ({named}{more})"


def take_account(splits: dict[str, ImageDataset], limits: Ranges | None, *, decoded: bool = False) -> Account:
    """Look at the images of a dataset.

    Args:
        splits: by what they are for; the first is learned from.
        limits: data.range, resolved.
        decoded: decode images and do not believe their headers, where they are few.

    Raises:
        DataError: nearly all values of deep images are beyond the range.
    """
    first = next(iter(splits.values()))
    labelled = 0 if first.labels is None else int((first.labels >= 0).sum())
    account = Account(
        {name: len(dataset) for name, dataset in splits.items()},
        first.classes if labelled else None,
        labelled,
        limits,
        channels=first.channels,
        masked=isinstance(first, MaskedImages),
    )
    total = sum(account.splits.values())
    in_memory = all(dataset.arrays() is not None for dataset in splits.values())
    account.decoded = in_memory or (decoded and total <= _DECODED)
    deep: list[Values] = []
    for name, dataset in splits.items():
        if in_memory:
            width, height = dataset.size(0)
            account.looked_at += len(dataset)
            account.sides[width, height] += len(dataset)
            form = dataset.form(0)
            account.kinds[str(form)] += len(dataset)
            account.grey += form.is_grey * len(dataset)
            continue
        share = min(len(dataset), max(1, LOOKED_AT * len(dataset) // max(total, LOOKED_AT)))
        found = _look(account, name, dataset, np.linspace(0, len(dataset) - 1, share, dtype=int).tolist())
        deep += deep_ones(dataset, found)
    reading = first.reading
    if deep and reading is not None:
        check_range(deep, reading)
        account.values = tuple(words_of_values(deep, reading))
    return account


def _look(account: Account, split: str, dataset: ImageDataset, indices: Sequence[int]) -> list[int]:
    """Take these images into account; which of them are deep."""
    deep = []
    for index in indices:
        account.looked_at += 1
        try:
            form: Form = dataset.form(index)
            if account.decoded:
                dataset.load(index)
            elif dataset.reading is not None:
                check_form(form, dataset.reading)
        except UnreadableImage as error:
            account.unreadable_of.setdefault(split, {})[error.name] = error.reason
            continue
        except Refused as error:
            account.unreadable_of.setdefault(split, {})[dataset.name(index)] = str(error)
            continue
        account.sides[form.width, form.height] += 1
        account.kinds[str(form)] += 1
        alone = is_first_alone(form, dataset.channels)
        account.stacks += alone and not form.animated
        account.animations += alone and form.animated
        account.deep += form.is_deep
        deep += [index] if form.is_deep else []
        account.grey += form.is_grey
    return deep
