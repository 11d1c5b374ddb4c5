"""Images of a dataset that knows one number of channels alone, for a network that sees another. No torch here.

A dataset of files makes of a file what data.channels says (decode.py).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from dsdmae_cli.data.base import Form, ImageDataset
from dsdmae_cli.data.values import luma
from dsdmae_cli.errors import DataError

RGB = 3
_PIECE = 1024  # images


def in_channels(dataset: ImageDataset, channels: int, name: str) -> ImageDataset:
    """The dataset with images of so many channels.

    Args:
        name: of the dataset, for messages.

    Raises:
        DataError: RGB made grey is all that there is.
    """
    if dataset.channels == channels:
        return dataset
    if (dataset.channels, channels) == (RGB, 1):
        return Grey(dataset)
    raise DataError(
        f"dataset {name} has images of {dataset.channels} channels, and {channels} are asked for (data.channels or"
        " data.bands); give images of so many bands, or leave that out"
    )


class Grey(ImageDataset):
    """An RGB dataset by its luma."""

    channels = 1

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset
        self._grey: UInt8[np.ndarray, "n height width 1"] | None = None
        self.classes, self.labels, self.notes = dataset.classes, dataset.labels, dataset.notes

    def __len__(self) -> int:
        return len(self.dataset)

    def load(self, index: int) -> UInt8[np.ndarray, "height width 1"]:
        return luma(self.dataset.load(index))

    def name(self, index: int) -> str:
        return self.dataset.name(index)

    def size(self, index: int) -> tuple[int, int]:
        return self.dataset.size(index)

    def form(self, index: int) -> Form:
        return self.dataset.form(index)

    def file_size(self, index: int) -> int | None:
        return self.dataset.file_size(index)

    def file_bytes(self, index: int) -> bytes | None:
        return self.dataset.file_bytes(index)

    def arrays(self) -> UInt8[np.ndarray, "n height width 1"] | None:
        whole = self.dataset.arrays()
        if whole is None:
            return None
        if self._grey is None:  # once, and by pieces: the sums are of 32 bits, twelve bytes a pixel
            self._grey = np.empty((*whole.shape[:3], 1), dtype=np.uint8)
            for start in range(0, len(whole), _PIECE):
                self._grey[start : start + _PIECE] = luma(whole[start : start + _PIECE])
        return self._grey

    def fingerprint(self) -> str:
        return f"{self.dataset.fingerprint()}-grey"
