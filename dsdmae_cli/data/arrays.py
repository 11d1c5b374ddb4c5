"""A dataset that is one array in memory. No torch here; images in files are files.py."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, UInt8

from dsdmae_cli.data.base import ImageDataset


class ArrayImages(ImageDataset):
    """Decoded images of one size, held in memory.

    Args:
        images: uint8, RGB or of other channels; a transposed view will do.
        labels: -1 where an image has none.
        classes: names by label.
        what: what to call the whole in messages ("cifar10 train").

    Attributes:
        is_common: the pixels lie in memory that all processes of the machine have in common (together.py).
    """

    def __init__(
        self,
        images: UInt8[np.ndarray, "n height width c"],
        labels: Int64[np.ndarray, " n"],
        classes: tuple[str, ...],
        what: str,
    ) -> None:
        self._images = images
        self.is_common = False
        self.channels = images.shape[3]
        self.labels = labels
        self.classes = classes
        self._what = what

    def __len__(self) -> int:
        return len(self._images)

    def load(self, index: int) -> UInt8[np.ndarray, "height width c"]:
        return self._images[index].copy()

    def size(self, index: int) -> tuple[int, int]:
        height, width = self._images.shape[1:3]
        return width, height

    def name(self, index: int) -> str:
        return f"{self._what} image {index}"

    def arrays(self) -> UInt8[np.ndarray, "n height width 3"]:
        return self._images

    def lie_in(self, images: UInt8[np.ndarray, "n height width c"]) -> None:
        """Have the same pixels in common memory, and let go of one's own."""
        self._images = images
        self.is_common = True
