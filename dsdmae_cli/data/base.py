"""What a dataset is to this program, and what its author must read. No torch here."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from dsdmae_cli.errors import DataError


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


class ImageDataset(ABC):
    """Images by index, in a fixed order, with labels or without.

    Attributes:
        classes: names of the classes by label, or None without labels.
        labels: [N] int64 label of each image (-1 = this image has none), or None without labels.
    """

    classes: tuple[str, ...] | None = None
    labels: NDArray[np.int64] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of images, unreadable ones included."""

    @abstractmethod
    def load(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        """The image as RGB.

        Raises:
            UnreadableImage: this image cannot be decoded.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call the image in messages."""

    def arrays(self) -> UInt8[np.ndarray, "n height width 3"] | None:
        """All images at once where they are held that way and have one size, else None."""
        return None
