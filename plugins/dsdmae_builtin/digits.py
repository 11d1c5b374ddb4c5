"""The digits that come with scikit-learn, and ArrayImages for every dataset that is one array. No torch here.

8x8 pixels of 0..16 become 16x16 pixels of 0..255: small enough for a first run of seconds, large enough for
patches.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from dsdmae_cli.data.base import ImageDataset
from dsdmae_cli.settings.models import DataSettings

SIDE = 16
NUM_TEST = 397


class ArrayImages(ImageDataset):
    """Decoded images of one size, held in memory.

    Args:
        images: uint8 RGB; a transposed view will do.
        labels: -1 where an image has none.
        classes: names by label.
        what: what to call the whole in messages ("cifar10 train").
    """

    def __init__(
        self,
        images: UInt8[np.ndarray, "n height width 3"],
        labels: Int64[np.ndarray, " n"],
        classes: tuple[str, ...],
        what: str,
    ) -> None:
        self._images = images
        self.labels = labels
        self.classes = classes
        self._what = what

    def __len__(self) -> int:
        return len(self._images)

    def load(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        return self._images[index].copy()

    def name(self, index: int) -> str:
        return f"{self._what} image {index}"

    def arrays(self) -> UInt8[np.ndarray, "n height width 3"]:
        return self._images


def build(settings: DataSettings, split: str) -> ArrayImages:
    """The digits, divided alike in every run; split "train" (or "labelled", the same here) or "test"."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    chosen = train_test_split(
        np.arange(len(digits.target)), test_size=NUM_TEST, stratify=digits.target, random_state=0
    )[split == "test"]
    chosen.sort()
    images = np.stack([_enlarge(digits.images[i]) for i in chosen])
    labels = digits.target[chosen].astype(np.int64)
    return ArrayImages(images, labels, tuple(str(name) for name in digits.target_names), f"digits {split}")


def _enlarge(image: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
    grey = np.round(image * (255 / 16)).astype(np.uint8)
    large = Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.array(large.convert("RGB"))
