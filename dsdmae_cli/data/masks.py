"""Images with a mask each, for segmentation: what such a dataset is, what masks' values mean, what is wrong with some.

No torch here. Which file is whose mask is a plugin's to say; evaluation and fine-tuning see classes from 0 up and VOID.
"""

from __future__ import annotations

import io
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int16, Int64, UInt8
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from dsdmae_cli.data.base import MAX_FILE_BYTES, Form, ImageDataset, UnreadableImage
from dsdmae_cli.data.files import FileImages, Files
from dsdmae_cli.data.values import Values
from dsdmae_cli.errors import DataError
from dsdmae_cli.files import read_within
from dsdmae_cli.report import number_of

# Of a pixel that nobody judges, whatever its value in the file: more classes than 255 have no place in 8 bits.
VOID = 255
MOST_CLASSES = 255
_UNKNOWN = -1
_MODES = {"L", "P", "1"}
# Grey PNGs of fewer than 8 bits by Pillow's raw mode, and by what it multiplies their values.
_SPREAD = {"L;2": 85, "L;4": 17}
_NAMED = 3
_VALUE_AND_NAME = re.compile(r"(\d{1,3})\s*:\s*(\S.*)")


@dataclass(frozen=True)
class Legend:
    """What the values of a mask's file mean.

    Attributes:
        classes: names, by label.
        values: the value of each class in the file.
        void: values that nobody judges.
        origin: where the names stand, for messages ("classes.txt").
    """

    classes: tuple[str, ...]
    values: tuple[int, ...]
    void: tuple[int, ...]
    origin: str

    @cached_property
    def table(self) -> Int16[np.ndarray, 256]:
        """Label, VOID or -1 (unknown) by value in the file."""
        table = np.full(256, _UNKNOWN, dtype=np.int16)
        table[list(self.values)] = np.arange(len(self.values))
        table[list(self.void)] = VOID
        return table

    def read(self, values: UInt8[np.ndarray, "h w"], name: str) -> UInt8[np.ndarray, "h w"]:
        """Labels, and VOID.

        Raises:
            DataError: a value that is neither a class nor void.
        """
        labels = self.table[values]
        if (labels == _UNKNOWN).any():
            raise DataError(f"{name} has {self.unknown(values)}")
        return labels.astype(np.uint8)

    def unknown(self, values: UInt8[np.ndarray, "h w"]) -> str:
        """What to say of values that mean nothing."""
        odd = np.unique(values[self.table[values] == _UNKNOWN]).tolist()
        void = ",".join(str(value) for value in sorted({*self.void, *odd}))
        said = listed([str(value) for value in odd])
        return (
            f"the value{'s' * (len(odd) > 1)} {said}; {self.origin} names {len(self.classes)} classes"
            f" ({_span(self.values)}) and void is {', '.join(map(str, self.void)) or 'no value'}: name the value there,"
            f" or declare it void with --set data.void=[{void}]"
        )


def _span(values: Sequence[int]) -> str:
    whole = list(values) == list(range(values[0], values[-1] + 1))
    return f"{values[0]} to {values[-1]}" if whole else f"{values[0]}, ..., {values[-1]}"


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def legend_of(lines: Sequence[str], void: Sequence[int], origin: str) -> Legend:
    """Names by value: the first line for 0, or each line with its value before a colon ("255: car"), which is then no
    void one; a line "void" is the name of no class, and its value is void.

    Raises:
        DataError: fewer than two classes, more than fit into 8 bits, or a name or value twice.
    """
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    numbered = _numbered(names, origin)
    by_value = dict(enumerate(names)) if numbered is None else numbered
    spare = {value for value, name in by_value.items() if name.lower() == "void"}
    unjudged = spare | ({*void} if numbered is None else {*void} - {*numbered})
    named = {value: name for value, name in by_value.items() if value not in unjudged}
    _check_names(by_value, named, origin)
    return Legend(tuple(named.values()), tuple(named), tuple(sorted(unjudged)), origin)


def _check_names(by_value: dict[int, str], named: dict[int, str], origin: str) -> None:
    """Raise DataError where names of values, of which some are `named` as classes, make no legend."""
    takes = "one name a line, the first for value 0, or each with its value, as 255: car"
    if not 2 <= len(named) <= MOST_CLASSES:
        raise DataError(f"{origin} names {len(named)} classes; it takes 2 to {MOST_CLASSES}, {takes}")
    if (highest := max(by_value)) > VOID:
        raise DataError(f"{origin} names the value {highest}, and a mask's values are 0 to {VOID}; it takes {takes}")
    if "" in named.values():
        line = next(value for value, name in named.items() if not name) + 1
        raise DataError(f"{origin}: line {line} is empty; write the class's name there, or void")
    if twice := sorted(name for name, count in Counter(named.values()).items() if count > 1):
        raise DataError(f"{origin} names {twice[0]!r} twice; give each class a name of its own")


def _numbered(names: Sequence[str], origin: str) -> dict[int, str] | None:
    """Names by the values that stand before them; None where not every line has one."""
    found = [_VALUE_AND_NAME.fullmatch(name) for name in names if name]
    if not found or None in found:
        return None
    pairs = [(int(line[1]), line[2]) for line in found if line is not None]
    values = [value for value, _ in pairs]
    if twice := sorted({value for value in values if values.count(value) > 1}):
        raise DataError(f"{origin} names the value {twice[0]} twice; give each value one name")
    return dict(sorted(pairs))


class MaskedImages(ImageDataset):
    """Images of which each has a mask: labels by pixel. To pre-training they are images without labels.

    Attributes:
        legend: names of the classes.
        may_lack: images without a mask are left out of segmentation; False = they are a mistake.
    """

    legend: Legend
    may_lack: bool = False

    @abstractmethod
    def load_mask(self, index: int) -> UInt8[np.ndarray, "height width"]:
        """The image's mask, of the image's size: labels from 0 up and VOID.

        Raises:
            DataError: there is none, or it cannot be used.
        """

    @abstractmethod
    def mask_name(self, index: int) -> str | None:
        """What to call the mask in messages; None = this image has none."""

    def mask_size(self, index: int) -> tuple[int, int]:
        """Width and height of the mask; whoever can tell without decoding it should.

        Raises:
            DataError: there is none, or it cannot be used.
        """
        height, width = self.load_mask(index).shape
        return width, height

    def mask_identity(self, index: int) -> bytes:
        """By which the mask is known, as the image is by base.ImageDataset.identity; here its name."""
        return f"{self.mask_name(index)}\0".encode(errors="surrogateescape")


def labels_of(dataset: ImageDataset) -> Literal["classes", "masks"] | None:
    """What there is to judge by."""
    if dataset.labels is not None and (dataset.labels >= 0).any():
        return "classes"
    return "masks" if isinstance(dataset, MaskedImages) else None


class MaskedFiles(MaskedImages):
    """Image files with masks in files.

    Args:
        images: the pictures.
        files: where the masks are.
        masks: for each picture the index of its mask in `files`; -1 = it has none.
        legend: what the masks' values mean.
        notes: what is to be said of how they were found, beside what `images` says.
        may_lack: see MaskedImages.
    """

    def __init__(
        self,
        images: FileImages,
        files: Files,
        masks: Int64[np.ndarray, " n"],
        legend: Legend,
        notes: tuple[str, ...] = (),
        may_lack: bool = False,
    ) -> None:
        self.images, self.legend, self.may_lack = images, legend, may_lack
        self._files, self._masks = files, masks
        self.channels, self.reading = images.channels, images.reading
        self.notes = (*images.notes, *notes)

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> UInt8[np.ndarray, "height width c"]:
        return self.images.load(index)

    def size(self, index: int) -> tuple[int, int]:
        return self.images.size(index)

    def form(self, index: int) -> Form:
        return self.images.form(index)

    def deep_values(self, index: int) -> Values | None:
        return self.images.deep_values(index)

    def name(self, index: int) -> str:
        return self.images.name(index)

    def file_size(self, index: int) -> int | None:
        return self.images.file_size(index)

    def file_bytes(self, index: int) -> bytes | None:
        return self.images.file_bytes(index)

    def encoded(self, index: int) -> bytes | memoryview | None:
        return self.images.encoded(index)

    def fingerprint(self) -> str:
        return self.images.fingerprint()

    def _identity(self, index: int) -> bytes:
        return self.images._identity(index)

    def mask_name(self, index: int) -> str | None:
        found = int(self._masks[index])
        return None if found < 0 else self._files.full_name(found)

    def mask_size(self, index: int) -> tuple[int, int]:
        return self._open(index).size

    def mask_identity(self, index: int) -> bytes:
        found = int(self._masks[index])
        name, size = (None, None) if found < 0 else (self._files.names[found], self._files.file_size(found))
        return f"{name}\0{size}\0".encode(errors="surrogateescape")

    def load_mask(self, index: int) -> UInt8[np.ndarray, "height width"]:
        mask = self._open(index)
        name = self.mask_name(index) or ""
        spread = next((_SPREAD[tile.args] for tile in mask.tile if tile.args in _SPREAD), 1)
        try:
            values = np.asarray(mask).astype(np.uint8) // np.uint8(spread)
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"the mask {name} is damaged: {error}; mend it, or remove it and its image") from error
        return self.legend.read(values, f"the mask {name}")

    def _open(self, index: int) -> ImageFile:
        name = self.mask_name(index)
        if name is None:
            raise DataError(no_mask(1, self.name(index)))
        try:
            content = self._files.read(int(self._masks[index]))
            mask = Image.open(
                io.BytesIO(content if isinstance(content, bytes) else read_within(content, MAX_FILE_BYTES))
            )
        except (OSError, UnreadableImage, Image.DecompressionBombError) as error:
            unknown = isinstance(error, UnidentifiedImageError)  # whose own words hold an address
            why = "it is no PNG, or only part of one" if unknown else str(error)
            raise DataError(f"the mask {name} cannot be read: {why}; mend it, or remove it and its image") from error
        if mask.mode not in _MODES:
            raise DataError(
                f"the mask {name} is a picture of mode {mask.mode}; a mask is a PNG of one channel of 8 bits, or of a"
                " palette, whose values are numbers of classes"
            )
        return mask


def no_mask(count: int, first: str) -> str:
    """What to say of images without masks."""
    some = "an image has no mask" if count == 1 else f"{number_of(count, 'image')} have no mask"
    return (
        f"{some} ({first}): a mask lies in masks/ as its image does in images/, under the same name as .png; add it, or"
        " leave such images out with --set data.without_mask=skip"
    )


def wrong_size(dataset: MaskedImages, index: int) -> str | None:
    """What to say where a mask has another size than its image; None where it has not."""
    mask, image = dataset.mask_size(index), dataset.size(index)
    return None if mask == image else size_fault(dataset, index, image, mask)


def size_fault(dataset: MaskedImages, index: int, image: tuple[int, int], mask: tuple[int, int]) -> str:
    """A mask of another size, in a line."""
    return (
        f"the mask {dataset.mask_name(index)} has {mask[0]}x{mask[1]} px and its image {image[0]}x{image[1]}; make it"
        " again in the image's size"
    )


def paired(images: Sequence[str], masks: Sequence[str]) -> Int64[np.ndarray, " n"]:
    """For each image the index of the mask that is called alike but for the suffix; -1 where there is none.

    Args:
        images, masks: names below their two folders.
    """
    by_stem = {str(Path(name).with_suffix("")): index for index, name in enumerate(masks)}
    return np.array([by_stem.get(str(Path(name).with_suffix("")), -1) for name in images], dtype=np.int64)
