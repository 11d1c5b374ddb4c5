"""A whole dataset decoded once and kept on the device as uint8; batches are cut and augmented there."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from dsdmae_cli.data.augment import Augmentation
from dsdmae_cli.data.base import ImageDataset, UnreadableImage
from dsdmae_cli.data.source import Batching, MicroBatch, Source, Unreadable
from dsdmae_cli.errors import DataError


def to_square(rgb: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Resize the shorter side to `size` pixels (bicubic, antialiased) and cut the middle square out."""
    height, width = rgb.shape[:2]
    if (height, width) == (size, size):
        return rgb
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    image = Image.fromarray(rgb)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)))


def decode_square(
    dataset: ImageDataset, indices: list[int], size: int, unreadable: Unreadable, may_be_empty: bool = False
) -> tuple[UInt8[np.ndarray, "n size size 3"], list[int]]:
    """Decode images into one array, with the indices of those that could be read.

    Raises:
        DataError: too many are unreadable, or all of them are and the answer may not be empty.
    """

    def one(index: int) -> UInt8[np.ndarray, "s s 3"] | UnreadableImage:
        try:
            return to_square(dataset.load(index), size)
        except UnreadableImage as error:
            return error

    out = np.empty((len(indices), size, size, 3), dtype=np.uint8)
    kept: list[int] = []
    with ThreadPoolExecutor(cpu_count()) as pool:  # PIL decodes outside the interpreter's lock
        for index, image in zip(indices, pool.map(one, indices), strict=True):
            if isinstance(image, UnreadableImage):
                unreadable.add(image.name, image.reason)
                continue
            out[len(kept)] = image
            kept.append(index)
    if not kept and not may_be_empty:
        raise DataError(f"none of {len(indices)} images can be read (first: {unreadable.lines(1)[0]})")
    return out[: len(kept)], kept


def to_tensor(arrays: UInt8[np.ndarray, "n h w 3"], device: torch.device) -> UInt8[Tensor, "n 3 h w"]:
    """Channels first, on the device."""
    return torch.from_numpy(np.ascontiguousarray(arrays.transpose(0, 3, 1, 2))).to(device)


class ResidentSource(Source):
    """Batches out of one tensor on the device, with labels where they are given.

    Args:
        num_views: how many views of each image there are in a batch (Method.num_views).
    """

    def __init__(
        self,
        images: UInt8[Tensor, "n 3 h w"],
        batching: Batching,
        plan: Augmentation,
        labels: Int64[Tensor, " n"] | None = None,
        num_views: int = 1,
    ) -> None:
        self.images = images
        self.labels = labels
        self.batching = batching
        self.plan = plan
        self.num_views = num_views

    def steps(self, epoch: int, first_step: int = 0) -> Iterator[Iterator[MicroBatch]]:
        order = self.batching.order(epoch)
        for step in range(first_step, self.batching.steps_per_epoch):
            yield self._step(epoch, step, self.batching.micro_batches(order, step))

    def _step(self, epoch: int, step: int, chunks: list[Int64[Tensor, " m"]]) -> Iterator[MicroBatch]:
        device = self.images.device
        for index, ids in enumerate(chunks):
            chosen = ids.to(device, non_blocking=True)
            views = self.images[chosen].unsqueeze(1).expand(-1, self.num_views, -1, -1, -1)
            images = self.augmented(views, self.plan, epoch, step, index)
            labels = None if self.labels is None else self.labels[chosen]
            yield MicroBatch(images, self.micro_seed("corrupt", epoch, step, index), labels)
