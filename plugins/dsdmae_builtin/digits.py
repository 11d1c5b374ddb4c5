"""The digits that come with scikit-learn. No torch here.

8x8 pixels of 0..16 become 16x16 pixels of 0..255: small enough for a first run of seconds, large enough for
patches.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dsdmae_cli.data.arrays import ArrayImages
from dsdmae_cli.settings.models import DataSettings

SIDE = 16
NUM_TEST = 397


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
