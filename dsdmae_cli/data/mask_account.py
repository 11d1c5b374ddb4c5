"""What is seen of a dataset's masks before anything is computed. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from dsdmae_cli.data.base import UnreadableImage
from dsdmae_cli.data.masks import VOID, MaskedImages, listed, no_mask, wrong_size
from dsdmae_cli.errors import DataError
from dsdmae_cli.report import number_of

# Headers that are read, and masks that are decoded, for the opening account; all are checked when they are used.
_HEADERS, _DECODED = 512, 32
_NAMED = 3


@dataclass(frozen=True)
class MaskAccount:
    """What was seen of the masks of a dataset.

    Attributes:
        classes: names.
        void: values that are void.
        void_share: of the pixels of the masks that were decoded.
        decoded: so many masks.
        measured: masks whose size was held against their image's.
        missing: images without one.
        unseen: by split, classes of which no decoded mask of it has a pixel.
        all_decoded: by split, whether these are all its masks.
        faults: the first of each kind, a line each: what makes the dataset unusable for segmentation.
    """

    classes: tuple[str, ...]
    void: tuple[int, ...]
    void_share: float
    decoded: int
    measured: int
    missing: int
    unseen: dict[str, tuple[str, ...]]
    all_decoded: dict[str, bool]
    faults: tuple[str, ...]

    def line(self) -> str:
        """As it is printed below the account of the images."""
        shown = ", ".join(self.classes[:_NAMED]) + (", ..." if len(self.classes) > _NAMED else "")
        masks = number_of(self.decoded, "mask")
        void = f"void ({', '.join(map(str, self.void)) or 'no value'}) is {self.void_share:.1%} of {masks}"
        lacking = ""
        if self.missing:
            lacking = f"; {number_of(self.missing, 'image')}"
            lacking += f" without a mask {'is' if self.missing == 1 else 'are'} left out"
        unseen = next(iter(self.unseen.values()), ())
        of_all = next(iter(self.all_decoded.values()), True)
        none = f"; no pixel of {listed(unseen)} in training ones{'' if of_all else ' of these'}" if unseen else ""
        return f"{'masks':<10}{len(self.classes)} classes: {shown}; {void}{none}{lacking}"


def look_at_masks(splits: dict[str, MaskedImages]) -> MaskAccount:
    """Names of all, sizes of some hundreds and values of some masks, spread evenly over each split."""
    first = next(iter(splits.values()))
    missing = [(d, i) for d in splits.values() for i in range(len(d)) if d.mask_name(i) is None]
    refused = missing and not first.may_lack
    faults = [no_mask(len(missing), missing[0][0].name(missing[0][1]))] if refused else []
    odd_sizes: list[str] = []
    odd_values: list[str] = []
    void = pixels = decoded = measured = 0
    seen: dict[str, Int64[np.ndarray, " 256"]] = {}
    all_decoded: dict[str, bool] = {}
    for split, dataset in splits.items():
        seen[split] = np.zeros(256, np.int64)
        there = [i for i in range(len(dataset)) if dataset.mask_name(i) is not None]
        values_of = set(_spread(there, _DECODED))
        all_decoded[split] = len(values_of) == len(there)
        for index in _spread(there, _HEADERS):
            measured += 1
            try:
                if wrong := wrong_size(dataset, index):
                    odd_sizes.append(wrong)
                if index in values_of:
                    mask = dataset.load_mask(index)
                    count = np.bincount(mask.ravel(), minlength=256)
                    seen[split] += count
                    decoded, void, pixels = decoded + 1, void + int(count[VOID]), pixels + mask.size
            except UnreadableImage:
                continue  # the image is met again, and counted, when it is used
            except DataError as error:
                odd_values.append(str(error))
    faults += [_and_more(lines) for lines in (odd_sizes, odd_values) if lines]
    legend = first.legend
    unseen = {
        split: tuple(name for name, count in zip(legend.classes, counts, strict=False) if not count)
        for split, counts in seen.items()
    }
    return MaskAccount(
        legend.classes,
        legend.void,
        void / max(1, pixels),
        decoded,
        measured,
        len(missing),
        unseen,
        all_decoded,
        tuple(faults),
    )


def present(dataset: MaskedImages, enough: int) -> set[int]:
    """Labels that masks have, void not among them; the search ends where `enough` were found.

    Raises:
        DataError: a mask cannot be used.
    """
    found: set[int] = set()
    for index in range(len(dataset)):
        if dataset.mask_name(index) is not None:
            found |= set(np.unique(dataset.load_mask(index)).tolist()) - {VOID}
        if len(found) >= enough:
            break
    return found


def _and_more(lines: list[str]) -> str:
    return lines[0] + (f" (and {len(lines) - 1} more masks like it)" if len(lines) > 1 else "")


def _spread(indices: list[int], most: int) -> list[int]:
    return [indices[i] for i in np.linspace(0, len(indices) - 1, min(most, len(indices)), dtype=int).tolist()]
