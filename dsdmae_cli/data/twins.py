"""Test images that are training images too, by what they hold: a score on those says nothing. No torch here."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from dsdmae_cli.data.base import ImageDataset, UnreadableImage
from dsdmae_cli.report import number_of

K = TypeVar("K")
_SHOWN = 3
_BY_FILES = "; files alone were compared, since there are too many pixels"
# What takes longer than a person waits is not looked at: files by their sizes, bytes of those that could be equal, and,
# where both are few, headers and pixels.
MOST_IMAGES = 200_000
MOST_BYTES = 2**32
MOST_HEADERS = 20_000
MOST_PIXELS = 50_000_000


@dataclass(frozen=True)
class Twins:
    """Test images that are training images too.

    Attributes:
        count: of the test images.
        total: test images that were looked at.
        pairs: (test image, training image), by name, the first few.
        by_pixels: pixels were compared too, and not the files' bytes alone.
    """

    count: int
    total: int
    pairs: tuple[tuple[str, str], ...]
    by_pixels: bool = True

    def as_dict(self) -> dict[str, Any]:
        """For result.json."""
        return {"count": self.count, "of": self.total, "pairs": [list(pair) for pair in self.pairs],
                "compared": "pixels" if self.by_pixels else "files"}  # fmt: skip

    def words(self) -> str:
        """A sentence for people; empty where there are none, and all was compared."""
        if not self.count:
            none = f"none of {number_of(self.total, 'test image')} is a training image's file"
            return "" if self.by_pixels else none + _BY_FILES
        shown = "; ".join(f"{test} is {train}" for test, train in self.pairs)
        more = f" and {self.count - len(self.pairs):,} more" if self.count > len(self.pairs) else ""
        return (
            f"{self.count:,} of {number_of(self.total, 'test image')} {'is' if self.count == 1 else 'are'} among the"
            f" training images ({shown}{more})" + ("" if self.by_pixels else _BY_FILES)
        )


def find_twins(train: ImageDataset, test: ImageDataset) -> Twins | None:
    """Test images with the bytes or, where that is cheap, the pixels of a training image; None of too many to look at.

    Bytes are read of those files alone that have their size in common with one of the other split; pixels are decoded
    where all images that have width and height in common have no more than MOST_PIXELS. Those of more than 8 bits are
    compared as they are stored: by a range that is not theirs all would be black.
    """
    if len(train) + len(test) > MOST_IMAGES:
        return None
    arrays = train.arrays(), test.arrays()
    if arrays[0] is not None and arrays[1] is not None:
        digests = [{i: _digest(repr(image.shape).encode() + image.tobytes()) for i, image in enumerate(part)}
                     for part in arrays if part is not None]  # fmt: skip
        return _twins(train, test, _matches(*digests))
    sizes = _candidates(train, test, _file_size)
    if sum(size * sum(map(len, pair)) for size, pair in sizes.items()) > MOST_BYTES:
        return None
    found, by_pixels = _equal(train, test, sizes, _file_bytes), False
    are_files = all(len(part) and part.file_size(0) is not None for part in (train, test))
    if len(train) + len(test) <= MOST_HEADERS:
        shapes = _candidates(train, test, _shape)
        if sum(width * height * sum(map(len, pair)) for (width, height), pair in shapes.items()) <= MOST_PIXELS:
            found, by_pixels = _equal(train, test, shapes, _pixels) | found, True
    return _twins(train, test, found, by_pixels) if by_pixels or are_files else None


def twins_row(twins: Twins | None) -> dict[str, str]:
    """A row of the opening account in a dry run; none where there is nothing to say."""
    return {"repeated": twins.words()} if twins is not None and twins.words() else {}


def _twins(train: ImageDataset, test: ImageDataset, found: dict[int, int], by_pixels: bool = True) -> Twins:
    pairs = tuple((test.name(i), train.name(found[i])) for i in sorted(found)[:_SHOWN])
    return Twins(len(found), len(test), pairs, by_pixels)


def _equal(
    train: ImageDataset,
    test: ImageDataset,
    candidates: dict[K, tuple[list[int], list[int]]],
    exact: Callable[[ImageDataset, int], bytes | None],
) -> dict[int, int]:
    """{test image: training image} of the candidates of which `exact` is the same."""
    found: dict[int, int] = {}
    for of_train, of_test in candidates.values():
        found |= _matches(_all(train, of_train, exact), _all(test, of_test, exact))
    return found


def _candidates(
    train: ImageDataset, test: ImageDataset, of: Callable[[ImageDataset, int], K | None]
) -> dict[K, tuple[list[int], list[int]]]:
    """Images of both splits by something that they have in common."""
    groups: defaultdict[K, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for side, dataset in enumerate((train, test)):
        for index in range(len(dataset)):
            try:
                key = of(dataset, index)
            except UnreadableImage:
                continue  # it is counted and named when it is used
            if key is not None:
                groups[key][side].append(index)
    return {key: group for key, group in groups.items() if group[0] and group[1]}


def _all(
    dataset: ImageDataset, indices: Iterable[int], of: Callable[[ImageDataset, int], bytes | None]
) -> dict[int, bytes]:
    found = {}
    for index in indices:
        try:
            content = of(dataset, index)
        except UnreadableImage:
            continue
        if content is not None:
            found[index] = _digest(content)
    return found


def _matches(train: dict[int, bytes], test: dict[int, bytes]) -> dict[int, int]:
    first = {digest: index for index, digest in reversed(train.items())}
    return {index: first[digest] for index, digest in test.items() if digest in first}


def _file_size(dataset: ImageDataset, index: int) -> int | None:
    return dataset.file_size(index)


def _file_bytes(dataset: ImageDataset, index: int) -> bytes | None:
    return dataset.file_bytes(index)


def _shape(dataset: ImageDataset, index: int) -> tuple[int, int]:
    return dataset.size(index)


def _pixels(dataset: ImageDataset, index: int) -> bytes:
    values = dataset.deep_values(index)
    return dataset.load(index).tobytes() if values is None else values.pixels.astype(np.float64).tobytes()


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
