"""A dataset that does not fit: worker processes decode and crop ahead of the step, the device does the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dsdmae_cli.data.augment import Augmentation, augment, crop_boxes
from dsdmae_cli.data.base import ImageDataset, UnreadableImage
from dsdmae_cli.data.resident import to_square
from dsdmae_cli.data.source import Batching, MicroBatch, Source, Unreadable, derive_seed, seeded
from dsdmae_cli.errors import DataError

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_WORKER_SECONDS = 300
# How many neighbours of an unreadable image are tried in its place before the dataset is called unusable.
_SUBSTITUTES = 20

Faults = list[tuple[str, str]]
Key = tuple[int, int]  # (epoch, index of the image)


class _Crops(Dataset[tuple[UInt8[Tensor, "3 s s"], Faults]]):
    """Decoded, cropped uint8 images by (epoch, index). An unreadable one is replaced by its next neighbour."""

    def __init__(self, dataset: ImageDataset, plan: Augmentation, seed: int) -> None:
        self.dataset = dataset
        self.plan = plan
        self.seed = seed

    def __getitem__(self, key: Key) -> tuple[UInt8[Tensor, "3 s s"], Faults]:
        epoch, index = key
        faults: Faults = []
        # Faults travel as data: DataLoader cannot carry an exception of ours out of a worker whole.
        for candidate in range(index, index + _SUBSTITUTES):
            try:
                rgb = self.dataset.load(candidate % len(self.dataset))
            except UnreadableImage as error:
                faults.append((error.name, error.reason))
                continue
            return torch.from_numpy(self._crop(rgb, epoch, index).transpose(2, 0, 1).copy()), faults
        size = self.plan.image_size
        return torch.empty(0, size, size, dtype=torch.uint8), faults

    def _crop(self, rgb: UInt8[np.ndarray, "h w 3"], epoch: int, index: int) -> UInt8[np.ndarray, "s s 3"]:
        plan = self.plan
        if plan.crop_scale is None:
            return to_square(rgb, plan.image_size)
        generator = seeded(torch.device("cpu"), derive_seed(self.seed, "crop", epoch, index))
        height, width = rgb.shape[:2]
        boxes = crop_boxes(1, height, width, plan.crop_scale, plan.crop_ratio, generator)
        top, left, height, width = (int(n) for n in boxes)
        # Cut first, as torchvision does: a resize with a box would look beyond the crop's edge.
        crop = Image.fromarray(rgb[top : top + height, left : left + width])
        return np.asarray(crop.resize((plan.image_size, plan.image_size), _RESAMPLING[plan.interpolation]))


def _collate(samples: list[tuple[Tensor, Faults]]) -> tuple[Tensor | None, Faults]:
    faults = [fault for _, found in samples for fault in found]
    images = [image for image, _ in samples if len(image)]
    return (torch.stack(images) if len(images) == len(samples) else None), faults


class _Keys:
    """The micro-batches of the rest of the run, so that workers decode across the epochs' borders too."""

    def __init__(self, batching: Batching, epoch: int, first_step: int) -> None:
        self.batching, self.epoch, self.first_step = batching, epoch, first_step

    def __iter__(self) -> Iterator[list[Key]]:
        for epoch in count(self.epoch):
            order = self.batching.order(epoch)
            for step in range(self.first_step if epoch == self.epoch else 0, self.batching.steps_per_epoch):
                for ids in self.batching.micro_batches(order, step):
                    yield [(epoch, index) for index in ids.tolist()]


class StreamingSource(Source):
    """Batches decoded by `workers` processes (0 = in this one)."""

    def __init__(
        self,
        dataset: ImageDataset,
        batching: Batching,
        plan: Augmentation,
        device: torch.device,
        workers: int,
        unreadable: Unreadable,
    ) -> None:
        self.batching = batching
        self.device = device
        self.workers = workers
        self.unreadable = unreadable
        self.crops = _Crops(dataset, plan, batching.seed)
        self.on_device = replace(plan, crop_scale=None)
        self._stream: Iterator[tuple[Tensor | None, Faults]] | None = None
        self._next: tuple[int, int] = (-1, -1)

    def steps(self, epoch: int, first_step: int = 0) -> Iterator[Iterator[MicroBatch]]:
        if self._stream is None or self._next != (epoch, first_step):
            self._stream = self._open(epoch, first_step)
        for step in range(first_step, self.batching.steps_per_epoch):
            yield self._step(epoch, step)
        self._next = (epoch + 1, 0)

    def _open(self, epoch: int, first_step: int) -> Iterator[tuple[Tensor | None, Faults]]:
        loader = DataLoader(
            self.crops,
            batch_sampler=_Keys(self.batching, epoch, first_step),
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=4 if self.workers else None,
            timeout=_WORKER_SECONDS if self.workers else 0,
        )
        return iter(loader)

    def _step(self, epoch: int, step: int) -> Iterator[MicroBatch]:
        for index in range(-(-self.batching.local_batch // self.batching.micro_batch)):
            images = self._receive().to(self.device, non_blocking=True)
            generator = seeded(self.device, self.micro_seed("augment", epoch, step, index))
            yield MicroBatch(augment(images, self.on_device, generator), self.micro_seed("corrupt", epoch, step, index))

    def _receive(self) -> UInt8[Tensor, "b 3 s s"]:
        assert self._stream is not None
        images, faults = next(self._stream)
        for name, reason in faults:
            self.unreadable.add(name, reason)
        if images is None:
            raise DataError(f"{_SUBSTITUTES} images in a row cannot be read (last: {': '.join(faults[-1])})")
        return images

    def close(self) -> None:
        self._stream = None
