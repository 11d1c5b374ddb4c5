"""Masks as a run learns from them: those of some images, cut to one size, or cropped as their images are cropped.

A mask's values are names and cannot be averaged: each new pixel takes the one under its middle.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Generator, Tensor

from dsdmae_cli import distributed
from dsdmae_cli.data.augment import Augmentation
from dsdmae_cli.data.base import Subset
from dsdmae_cli.data.cores import own_cores, usable_cores
from dsdmae_cli.data.cutting import crop_box, window_corner
from dsdmae_cli.data.masks import VOID, MaskedImages, size_fault
from dsdmae_cli.data.square import middle
from dsdmae_cli.data.together import Memory, Note, fill_together
from dsdmae_cli.errors import DataError
from dsdmae_cli.settings.size import Size, height_width

Mask = UInt8[np.ndarray, "h w"]


class MaskedSubset(Subset, MaskedImages):
    """Some images of a dataset with their masks.

    Args:
        indices: which; each has a mask.
    """

    def __init__(self, dataset: MaskedImages, indices: Int64[np.ndarray, " m"]) -> None:
        super().__init__(dataset, indices)
        self.masked = dataset
        self.legend, self.may_lack = dataset.legend, dataset.may_lack

    def load_mask(self, index: int) -> Mask:
        return self.masked.load_mask(int(self.indices[index]))

    def mask_name(self, index: int) -> str | None:
        return self.masked.mask_name(int(self.indices[index]))

    def mask_size(self, index: int) -> tuple[int, int]:
        return self.masked.mask_size(int(self.indices[index]))

    def mask_identity(self, index: int) -> bytes:
        return self.masked.mask_identity(int(self.indices[index]))

    def identity(self) -> str:
        """Of the images and their masks, which are what is learned."""
        digest = hashlib.sha256(super().identity().encode() + repr(self.legend).encode())
        for index in range(len(self)):
            digest.update(self.mask_identity(index))
        return digest.hexdigest()


def load_checked(dataset: MaskedImages, index: int) -> Mask:
    """A mask of its image's size, read once.

    Raises:
        DataError: it has another, or cannot be used.
    """
    mask, image = dataset.load_mask(index), dataset.size(index)
    if (mask.shape[1], mask.shape[0]) != image:
        raise DataError(size_fault(dataset, index, image, (mask.shape[1], mask.shape[0])))
    return mask


def mask_square(mask: Mask, size: Size) -> UInt8[np.ndarray, "rows columns"]:
    """What square.to_square is of an image."""
    height, width = mask.shape
    tall, wide = middle(height, width, size)
    return _picked(mask, ((height - tall) / 2, (width - wide) / 2), (tall, wide), size)


def mask_squares(
    dataset: MaskedImages, indices: Sequence[int], size: Size, device: torch.device, note: Note
) -> UInt8[Tensor, "n rows columns"]:
    """Those of images whose squares are resident, on the same device; in the host's memory once a machine.

    Args:
        note: see together.decode_together.

    Raises:
        DataError: one has another size than its image, or cannot be used.
    """
    shape = (len(indices), *height_width(size))

    def fill(part: slice, memories: list[Memory]) -> None:
        room = memories[0].reshape(shape)[part]
        with ThreadPoolExecutor(own_cores(distributed.local_processes())) as pool:
            for place, mask in enumerate(pool.map(lambda index: load_checked(dataset, index), indices[part])):
                room[place] = mask_square(mask, size)

    [memory], _, _ = fill_together([math.prod(shape)], len(indices), fill, note)
    return torch.from_numpy(memory.reshape(shape)).to(device)


def mask_crop(mask: Mask, plan: Augmentation, generator: Generator) -> UInt8[Tensor, "rows columns"]:
    """What cutting.crops makes of the image by a generator of the same seed."""
    if plan.crop_from is not None:
        top, left = window_corner(plan, generator)
        found = mask_square(mask, plan.crop_from)[top : top + plan.height, left : left + plan.width]
    elif plan.crop_scale is None:
        found = mask_square(mask, plan.image_size)
    else:
        box = crop_box(mask.shape[0], mask.shape[1], plan.crop_scale, plan.ratios, generator)
        found = _picked(mask, (box.top, box.left), (box.height, box.width), plan.image_size)
    return torch.from_numpy(np.ascontiguousarray(found))


def _picked(
    mask: Mask, start: tuple[float, float], sides: tuple[float, float], size: Size
) -> UInt8[np.ndarray, "rows columns"]:
    rows, columns = (
        np.floor(first + (np.arange(new) + 0.5) * length / new).astype(np.int64)
        for first, length, new in zip(start, sides, height_width(size), strict=True)
    )
    return mask[rows[:, None], columns]


def pixels_by_class(dataset: MaskedImages) -> Int64[np.ndarray, " c"]:
    """How many pixels of all its masks are of each class, void ones in none.

    Raises:
        DataError: a mask cannot be used, or none has a pixel that is of a class.
    """
    with ThreadPoolExecutor(usable_cores()) as pool:
        counts = pool.map(lambda i: np.bincount(dataset.load_mask(i).ravel(), minlength=256), range(len(dataset)))
        total: Int64[np.ndarray, " c"] = sum(counts, start=np.zeros(256, np.int64))
    total[VOID] = 0
    if not total.any():
        raise DataError("every pixel of the training masks is void: nothing could be learned")
    return total[: len(dataset.legend.classes)]
