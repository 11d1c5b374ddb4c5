"""A dataset that does not fit: worker processes decode and crop ahead of the step, the device does the rest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dsdmae_cli.data.augment import Augmentation
from dsdmae_cli.data.base import ImageDataset, UnreadableImage
from dsdmae_cli.data.source import Batching, MicroBatch, Source, Unreadable, derive_seed, of_view, seeded
from dsdmae_cli.data.square import resized, to_square
from dsdmae_cli.errors import DataError, RunFailed
from dsdmae_cli.signals import end_with, unheard_children

# A PIL image and a seed to a PIL image of the same size; it runs in the workers.
Transform = Callable[[Image.Image, int], Image.Image]

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_WORKER_SECONDS = 300
# How many neighbours of an unreadable image are tried in its place before the dataset is called unusable.
_SUBSTITUTES = 20

Faults = list[tuple[str, str]]
Key = tuple[int, int]  # (epoch, index of the image)


class _Sample(NamedTuple):
    """Crops of a decoded image (none if nothing could be read), its label (-1 = none), and what was unreadable."""

    crops: UInt8[Tensor, "v c s t"]
    label: int
    faults: Faults


class _Batch(NamedTuple):
    """Images and labels of a micro-batch; images are None where there were none to be had."""

    images: UInt8[Tensor, "b v c s t"] | None
    labels: Int64[Tensor, " b"]
    faults: Faults


class _Crops(Dataset[_Sample]):
    """uint8 crops of decoded images by (epoch, index). An unreadable image is replaced by its next neighbour."""

    def __init__(
        self, dataset: ImageDataset, plan: Augmentation, seed: int, num_views: int, transform: Transform | None
    ) -> None:
        self.dataset = dataset
        self.plan = plan
        self.seed = seed
        self.num_views = num_views
        self.transform = transform

    def __getitem__(self, key: Key) -> _Sample:
        epoch, index = key
        faults: Faults = []
        # Faults travel as data: DataLoader cannot carry an exception of ours out of a worker whole.
        for number in range(index, index + _SUBSTITUTES):
            candidate = number % len(self.dataset)
            try:
                pixels = self.dataset.load(candidate)
            except UnreadableImage as error:
                faults.append((error.name, error.reason))
                continue
            label = -1 if self.dataset.labels is None else int(self.dataset.labels[candidate])
            views = np.stack([self._view(pixels, epoch, index, view) for view in range(self.num_views)])
            return _Sample(torch.from_numpy(views.transpose(0, 3, 1, 2).copy()), label, faults)
        plan = self.plan
        return _Sample(torch.empty(0, self.dataset.channels, plan.height, plan.width, dtype=torch.uint8), -1, faults)

    def _view(
        self, pixels: UInt8[np.ndarray, "h w c"], epoch: int, index: int, view: int
    ) -> UInt8[np.ndarray, "s t c"]:
        cropped = self._crop(pixels, derive_seed(self.seed, of_view("crop", view), epoch, index))
        if self.transform is None:
            return cropped
        seed = derive_seed(self.seed, of_view("transform", view), epoch, index)
        return np.asarray(self.transform(Image.fromarray(cropped), seed))

    def _crop(self, pixels: UInt8[np.ndarray, "h w c"], seed: int) -> UInt8[np.ndarray, "s t c"]:
        plan, generator = self.plan, seeded(torch.device("cpu"), seed)
        if plan.crop_from is not None:
            # The window is cut in here: a whole square would be many times as much to send.
            square = to_square(pixels, plan.crop_from)
            top, left = (
                int(torch.randint(0, plan.crop_from - side + 1, (), generator=generator))
                for side in (plan.height, plan.width)
            )
            return square[top : top + plan.height, left : left + plan.width]
        if plan.crop_scale is None:
            return to_square(pixels, plan.image_size)
        height, width = pixels.shape[:2]
        boxes = plan.boxes(1, height, width, generator)
        top, left, height, width = (int(n) for n in boxes)
        # Cut first, as torchvision does: a resize with a box would look beyond the crop's edge.
        crop = pixels[top : top + height, left : left + width]
        return resized(crop, plan.image_size, _RESAMPLING[plan.interpolation])


def _collate(samples: list[_Sample]) -> _Batch:
    faults = [fault for sample in samples for fault in sample.faults]
    images = [sample.crops for sample in samples if len(sample.crops)]
    labels = torch.tensor([sample.label for sample in samples])
    return _Batch(torch.stack(images) if len(images) == len(samples) else None, labels, faults)


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
    """Batches decoded by `workers` processes (0 = in this one).

    Args:
        labelled: micro-batches carry the images' labels.
        transform: what workers do to each crop, beside cutting it.
        num_views: crops of each image (Method.num_views).
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batching: Batching,
        plan: Augmentation,
        device: torch.device,
        workers: int,
        unreadable: Unreadable,
        labelled: bool = False,
        transform: Transform | None = None,
        num_views: int = 1,
    ) -> None:
        self.batching = batching
        self.device = device
        self.workers = workers
        self.unreadable = unreadable
        self.labelled = labelled
        self.crops = _Crops(dataset, plan, batching.seed, num_views, transform)
        self.on_device = replace(plan, crop_scale=None, crop_from=None)
        self._stream: Iterator[_Batch] | None = None
        self._next: tuple[int, int] = (-1, -1)

    def steps(self, epoch: int, first_step: int = 0) -> Iterator[Iterator[MicroBatch]]:
        if self._stream is None or self._next != (epoch, first_step):
            self._stream = self._open(epoch, first_step)
        for step in range(first_step, self.batching.steps_per_epoch):
            yield self._step(epoch, step)
        self._next = (epoch + 1, 0)

    def _open(self, epoch: int, first_step: int) -> Iterator[_Batch]:
        loader = DataLoader(
            self.crops,
            batch_sampler=_Keys(self.batching, epoch, first_step),
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=4 if self.workers else None,
            timeout=_WORKER_SECONDS if self.workers else 0,
            worker_init_fn=partial(end_with, os.getpid()) if self.workers else None,
        )
        try:
            return iter(loader)
        except OSError as error:
            raise RunFailed(
                f"{self.workers} processes that decode images cannot be started ({error.strerror or error}); lower"
                " --set data.workers, or raise the limit that was reached (ulimit -n, ulimit -u)"
            ) from error

    def _step(self, epoch: int, step: int) -> Iterator[MicroBatch]:
        for index in range(-(-self.batching.local_batch // self.batching.micro_batch)):
            crops, labels = self._receive()
            crops = crops.to(self.device, non_blocking=True)
            images = self.augmented(crops, self.on_device, epoch, step, index)
            there = labels.to(self.device, non_blocking=True) if self.labelled else None
            yield MicroBatch(images, self.micro_seed("corrupt", epoch, step, index), there)

    def _receive(self) -> tuple[UInt8[Tensor, "b v c s t"], Int64[Tensor, " b"]]:
        assert self._stream is not None
        try:
            images, labels, faults = next(self._stream)
        except (ConnectionError, EOFError) as error:  # a worker died while its tensors were being handed over
            raise RuntimeError(f"DataLoader worker hung up: {error or type(error).__name__}") from error
        for name, reason in faults:
            self.unreadable.add(name, reason)
        if images is None:
            raise DataError(f"{_SUBSTITUTES} images in a row cannot be read (last: {': '.join(faults[-1])})")
        return images, labels

    def close(self) -> None:
        """End the workers, those too that an exception on its way still holds; what becomes of them is told no more."""
        stream, self._stream = self._stream, None
        with unheard_children():
            if self.workers and stream is not None:
                stream._shutdown_workers()  # type: ignore[attr-defined]
