"""What a dataset is to this program, and what its author must read. No torch here."""

from __future__ import annotations

import errno
import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from dsdmae_cli.errors import SHORTAGES, DataError, RunFailed
from dsdmae_cli.report import number_of

if TYPE_CHECKING:
    from dsdmae_cli.data.values import Reading, Values


class UnreadableImage(DataError):  # noqa: N818
    """One image cannot be used; the run skips, names and counts it, or stops under --strict-data.

    Args:
        name: what a person would look for: a path, or archive!member.
        reason: a few words ("truncated file").
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"unreadable image {name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnreadableImage], tuple[str, str]]:
        return type(self), (self.name, self.reason)  # it travels from worker processes


class Refused(ValueError):  # noqa: N818
    """An image that is intact but that the policy has no place for."""


MAX_FILE_BYTES = 2**30  # of one image as a file; what is larger is not read whole


def raise_shortage(error: Exception, name: str) -> None:
    """Of an image that could not be read: where this process is short of something, the image is as good as it was, and
    to pass it over would be to learn from others than were asked for.

    Raises:
        RunFailed: so it is.
    """
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        why = (error.strerror or str(error)).lower()
        raise RunFailed(f"{name} cannot be read now: {why}; {SHORTAGES[error.errno]}") from error


@dataclass(frozen=True)
class Form:
    """What the header of an image says.

    Attributes:
        width, height: in pixels, upright.
        bands: as stored, transparency included.
        bits: of a channel; 0 where that is not known.
        floating: the values are floating-point numbers.
        colors: "grey", "RGB", or what else it is, in a word; empty for other bands.
        pages: of the file, where they are a stack of which this is the first.
        nodata: the value that says that nothing was measured, where the file names one.
        signed: the values are integers with a sign, of which 8 bits are no grey values either.
        animated: the pages are frames of an animation.
    """

    width: int
    height: int
    bands: int = 3
    bits: int = 8
    floating: bool = False
    colors: str = "RGB"
    pages: int = 1
    nodata: float | None = None
    signed: bool = False
    animated: bool = False

    @property
    def is_grey(self) -> bool:
        """One band, and transparency perhaps."""
        return self.colors.startswith("grey") or self.colors == "black and white"

    @property
    def is_deep(self) -> bool:
        """More than 8 bits, or other numbers than 0 to 255."""
        return self.bits > 8 or self.signed

    def __str__(self) -> str:
        name = self.colors or f"{self.bands} bands"
        more = " in floating point" if self.floating else " with a sign" if self.signed else ""
        return f"{name} of {number_of(self.bits, 'bit')}{more}"


_COLORS = {1: "grey", 3: "RGB"}
_PIECE = 1024  # images


class ImageDataset(ABC):
    """Images by index, in a fixed order, with labels or without.

    Attributes:
        classes: names of the classes by label, or None without labels.
        labels: [N] int64 label of each image (-1 = this image has none), or None without labels.
        notes: what a person should know of how the images were found, a sentence each; said once a command.
        channels: of the images that `load` gives.
        reading: how pictures of more than 8 bits become those, where there are such.
    """

    channels: int = 3
    reading: Reading | None = None
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    labels: NDArray[np.int64] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of images, unreadable ones included."""

    @abstractmethod
    def load(self, index: int) -> UInt8[np.ndarray, "height width {self.channels}"]:
        """The image, as RGB where `channels` is 3.

        Raises:
            UnreadableImage: this image cannot be decoded.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call the image in messages."""

    def size(self, index: int) -> tuple[int, int]:
        """Width and height in pixels of the image that `load` gives.

        Here it is loaded for that; a dataset of files that say it in their first bytes should ask those.

        Raises:
            UnreadableImage: this image cannot be decoded, as far as can be told.
        """
        height, width = self.load(index).shape[:2]
        return width, height

    def form(self, index: int) -> Form:
        """What kind of picture the image comes from; here 8-bit RGB of its size, which is what `load` gives.

        Raises:
            UnreadableImage: this image cannot be decoded, as far as can be told.
        """
        return Form(*self.size(index), self.channels, colors=_COLORS.get(self.channels, ""))

    def deep_values(self, index: int) -> Values | None:
        """The values of a picture of more than 8 bits, as stored; None for others, and where nobody knows them.

        Raises:
            UnreadableImage: this image cannot be decoded.
        """
        return None

    def file_size(self, index: int) -> int | None:
        """Bytes of the file that the image is read from; None where there is no such file."""
        return None

    def file_bytes(self, index: int) -> bytes | None:
        """What that file holds; None where there is none.

        Raises:
            UnreadableImage: it cannot be read.
        """
        return None

    def encoded(self, index: int) -> bytes | memoryview | None:
        """The bytes of a file of which `load` makes RGB by dsdmae_cli.data.decode and does nothing else; None where it
        does, or where there are no such bytes. Who cuts a part out of an image need not decode all its pixels.

        Raises:
            UnreadableImage: they cannot be read.
        """
        return None

    def arrays(self) -> UInt8[np.ndarray, "n height width c"] | None:
        """All images at once where they are held that way and have one size, else None."""
        return None

    def fingerprint(self) -> str:
        """SHA-256 of what the images show, in order, with labels and classes: features are cached under it.

        Here every pixel is read. A dataset of many files may go by their names, sizes and times instead, which takes
        seconds and not hours, at the price that it takes copied files for new ones and misses a change that keeps both
        size and time.
        """
        digest = hashlib.sha256(json.dumps([len(self), self.classes]).encode())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        arrays = self.arrays()
        for index in range(len(self)):
            digest.update(self._content(index) if arrays is None else _bytes(arrays[index]))
        return digest.hexdigest()

    def identity(self) -> str:
        """SHA-256 of which images these are, in order, wherever they lie: names, sizes of their files and labels, or
        the pixels of those that are in memory. A run is resumed, and its processes train, on images of one identity.

        Nothing is decoded for it, and a copy has the identity of what it was made from; so it misses a file that was
        replaced by another of the same size.
        """
        digest = hashlib.sha256(json.dumps([len(self), self.classes]).encode())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        arrays = self.arrays()
        if arrays is not None:
            digest.update(repr(arrays.shape).encode())
            for start in range(0, len(arrays), _PIECE):  # no second copy of them all
                digest.update(arrays[start : start + _PIECE].tobytes())
            return digest.hexdigest()
        for index in range(len(self)):
            digest.update(self._identity(index))
        return digest.hexdigest()

    def _identity(self, index: int) -> bytes:
        return f"{self.name(index)}\0{self.file_size(index)}\0".encode(errors="surrogateescape")

    def _content(self, index: int) -> bytes:
        try:
            return self.name(index).encode(errors="surrogateescape") + _bytes(self.load(index))
        except UnreadableImage as error:
            return f"{error.name} {error.reason}".encode(errors="surrogateescape")


def _bytes(image: UInt8[np.ndarray, "height width c"]) -> bytes:
    return repr(image.shape).encode() + image.tobytes()


class Subset(ImageDataset):
    """Some images of a dataset, in the order given.

    Args:
        indices: [m] which.
    """

    def __init__(self, dataset: ImageDataset, indices: NDArray[np.int64]) -> None:
        self.dataset = dataset
        self.indices = indices
        self.classes, self.notes, self.channels = dataset.classes, dataset.notes, dataset.channels
        self.reading = dataset.reading
        self.labels = None if dataset.labels is None else dataset.labels[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int) -> UInt8[np.ndarray, "height width c"]:
        return self.dataset.load(int(self.indices[index]))

    def size(self, index: int) -> tuple[int, int]:
        return self.dataset.size(int(self.indices[index]))

    def form(self, index: int) -> Form:
        return self.dataset.form(int(self.indices[index]))

    def deep_values(self, index: int) -> Values | None:
        return self.dataset.deep_values(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.dataset.name(int(self.indices[index]))

    def file_size(self, index: int) -> int | None:
        return self.dataset.file_size(int(self.indices[index]))

    def file_bytes(self, index: int) -> bytes | None:
        return self.dataset.file_bytes(int(self.indices[index]))

    def encoded(self, index: int) -> bytes | memoryview | None:
        return self.dataset.encoded(int(self.indices[index]))

    def arrays(self) -> UInt8[np.ndarray, "n height width c"] | None:
        whole = self.dataset.arrays()
        return None if whole is None else whole[self.indices]

    def identity(self) -> str:
        return hashlib.sha256(self.dataset.identity().encode() + self.indices.tobytes()).hexdigest()

    def fingerprint(self) -> str:
        return hashlib.sha256(self.dataset.fingerprint().encode() + self.indices.tobytes()).hexdigest()
