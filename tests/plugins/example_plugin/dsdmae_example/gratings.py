"""The dataset: gratings at 0, 45, 90 and 135 degrees, computed from split and index. No files, no torch."""

from __future__ import annotations

from typing import Literal

import numpy as np
from dsdmae_cli.data.base import ImageDataset
from jaxtyping import UInt8
from numpy.typing import NDArray

from dsdmae_example.specs import GRATING_SIZE, GratingsSettings

Split = Literal["train", "test"]
SEEDS: dict[Split, int] = {"train": 0, "test": 1}
ANGLES = (0, 45, 90, 135)


class Gratings(ImageDataset):
    """Waves between two random colours, of random phase and wavelength; the label is the wave's direction.

    Args:
        split: the splits share no image.
        num_images: number of images, spread evenly over the directions.
    """

    classes = tuple(f"{angle} degrees" for angle in ANGLES)
    labels: NDArray[np.int64]

    def __init__(self, split: Split, num_images: int) -> None:
        self.split = split
        self.labels = np.arange(num_images, dtype=np.int64) % len(ANGLES)

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        rng = np.random.default_rng((SEEDS[self.split], index))
        angle = np.deg2rad(ANGLES[self.labels[index]])
        rows, columns = np.mgrid[:GRATING_SIZE, :GRATING_SIZE]
        along = columns * np.cos(angle) + rows * np.sin(angle)
        wave = 0.5 + 0.5 * np.cos(2 * np.pi * along / rng.uniform(5, 12) + rng.uniform(0, 2 * np.pi))
        low, high = rng.uniform(0, 255, (2, 3))
        return (low + (high - low) * wave[..., None]).astype(np.uint8)

    def name(self, index: int) -> str:
        return f"{self.split}/{ANGLES[self.labels[index]]}-degrees-{index:05d}"

    def size(self, index: int) -> tuple[int, int]:
        return GRATING_SIZE, GRATING_SIZE


def build(settings: GratingsSettings, split: Split) -> Gratings:
    """One split of the dataset."""
    num_images = settings.num_images if split == "train" else max(len(ANGLES), settings.num_images // 5)
    return Gratings(split, num_images)
