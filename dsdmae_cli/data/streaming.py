"""A dataset that does not fit: worker processes decode and crop ahead of the step, the device does the rest."""

from __future__ import annotations

import math
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dsdmae_cli.data.augment import Augmentation
from dsdmae_cli.data.base import ImageDataset, UnreadableImage
from dsdmae_cli.data.cutting import Picture, crops
from dsdmae_cli.data.look_ahead import Ahead, look_ahead, pieces
from dsdmae_cli.data.mask_views import load_checked, mask_crop
from dsdmae_cli.data.masks import MaskedImages
from dsdmae_cli.data.source import Batching, MicroBatch, Source, Unreadable, derive_seed, of_view, seeded
from dsdmae_cli.errors import DataError, RunFailed
from dsdmae_cli.signals import serve, unheard_children
from dsdmae_cli.transfer import sent

# A PIL image and a seed to a PIL image of the same size; it runs in the workers.
Transform = Callable[[Image.Image, int], Image.Image]

_WORKER_SECONDS = 300
# How many neighbours of an unreadable image are tried in its place before the dataset is called unusable.
_SUBSTITUTES = 20

Faults = list[tuple[str, str]]
Key = tuple[int, int]  # (epoch, index of the image)


class _Piece(NamedTuple):
    """Images and labels (masks, where pixels have them) of a part of a micro-batch; images are None where there were
    none to be had.

    Channels come last, as decoders and the resampling have them; the device turns them about.

    Attributes:
        refused: why the run cannot go on: a mask that cannot be used.
        short: why it cannot for the moment: what the system is short of.
    """

    images: UInt8[Tensor, "b v s t c"] | None
    labels: Int64[Tensor, " b"] | UInt8[Tensor, "b s t"]
    faults: Faults
    refused: str = ""
    short: str = ""


class _Crops(Dataset[_Piece]):
    """uint8 crops of decoded images by (epoch, index). An unreadable image is replaced by its next neighbour."""

    def __init__(
        self,
        dataset: ImageDataset,
        plan: Augmentation,
        seed: int,
        num_views: int,
        transform: Transform | None,
        masked: MaskedImages | None,
    ) -> None:
        self.dataset = dataset
        self.masked = masked
        self.plan = plan
        self.seed = seed
        self.num_views = num_views
        self.transform = transform

    def __getitems__(self, keys: list[Key]) -> _Piece:
        plan = self.plan
        images = _room((len(keys), self.num_views, plan.height, plan.width, self.dataset.channels))
        labels = torch.full((len(keys),), -1, dtype=torch.int64)
        masks = _room((len(keys), plan.height, plan.width)) if self.masked is not None else labels
        # Faults travel as data: DataLoader cannot carry an exception of ours out of a worker whole.
        faults: Faults = []
        for place, (epoch, index) in enumerate(keys):
            try:
                found = self._fill(images[place], epoch, index, faults)
            except RunFailed as error:
                return _Piece(None, labels, faults, short=str(error))
            if found is None:
                return _Piece(None, labels, faults)
            if self.masked is not None:
                try:
                    mask = load_checked(self.masked, found)
                except DataError as error:
                    return _Piece(None, labels, faults, str(error))
                masks[place] = mask_crop(mask, plan, self._generators(epoch, index)[0])
            elif self.dataset.labels is not None:
                labels[place] = int(self.dataset.labels[found])
        return _Piece(images, masks, faults)

    def __getitem__(self, key: Key) -> _Piece:
        return self.__getitems__([key])

    def _fill(self, room: UInt8[Tensor, "v s t c"], epoch: int, index: int, faults: Faults) -> int | None:
        """Put an image's views into the room; which image it was, or None where so many in a row are unreadable."""
        for number in range(index, index + _SUBSTITUTES):
            candidate = number % len(self.dataset)
            try:
                views = crops(Picture(self.dataset, candidate), self.plan, self._generators(epoch, index))
            except UnreadableImage as error:
                faults.append((error.name, error.reason))
                continue
            for view, cropped in enumerate(views):
                room[view].copy_(cropped if self.transform is None else self._transformed(cropped, epoch, index, view))
            return candidate
        return None

    def _generators(self, epoch: int, index: int) -> list[torch.Generator]:
        seeds = (derive_seed(self.seed, of_view("crop", view), epoch, index) for view in range(self.num_views))
        return [seeded(torch.device("cpu"), seed) for seed in seeds]

    def _transformed(
        self, cropped: UInt8[Tensor, "s t c"], epoch: int, index: int, view: int
    ) -> UInt8[Tensor, "s t c"]:
        assert self.transform is not None
        seed = derive_seed(self.seed, of_view("transform", view), epoch, index)
        return torch.from_numpy(np.array(self.transform(Image.fromarray(cropped.numpy()), seed)))


def _room(shape: tuple[int, ...]) -> UInt8[Tensor, "*shape"]:
    """Memory for a piece; in a worker it is shared from the first, or all would be copied to where it is."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape)  # type: ignore[call-overload]


def _as_it_is(piece: Any) -> Any:
    return piece


class _Keys:
    """The pieces of the rest of the run, so that workers decode across the epochs' borders too."""

    def __init__(self, batching: Batching, epoch: int, first_step: int, most: int) -> None:
        self.batching, self.epoch, self.first_step, self.most = batching, epoch, first_step, most

    def __iter__(self) -> Iterator[list[Key]]:
        for epoch in count(self.epoch):
            order = self.batching.order(epoch)
            for step in range(self.first_step if epoch == self.epoch else 0, self.batching.steps_per_epoch):
                for ids in self.batching.micro_batches(order, step):
                    for piece in ids.split(pieces(len(ids), self.most)):
                        yield [(epoch, index) for index in piece.tolist()]


class StreamingSource(Source):
    """Batches decoded by `workers` processes (0 = in this one).

    Args:
        labelled: micro-batches carry the images' labels.
        masked: they carry masks instead, those of this dataset, which is `dataset` itself; of one view alone.
        transform: what workers do to each crop, beside cutting it.
        num_views: crops of each image (Method.num_views).

    Raises:
        RunFailed: what workers have ready would not fit the memory that they share with this process.
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
        masked: MaskedImages | None = None,
    ) -> None:
        assert masked is None or (num_views == 1 and transform is None)
        self.batching = batching
        self.device = device
        self.workers = workers
        self.unreadable = unreadable
        self.labelled, self.masked = labelled, masked is not None
        self.crops = _Crops(dataset, plan, batching.seed, num_views, transform, masked)
        image_bytes = (num_views * dataset.channels + self.masked) * plan.height * plan.width
        largest = min(batching.micro_batch, batching.local_batch)
        self.ahead = look_ahead(workers, largest, image_bytes) if workers else Ahead(largest, 0)
        self.on_device = replace(plan, crop_scale=None, crop_from=None)
        self._stream: Iterator[_Piece] | None = None
        self._next: tuple[int, int] = (-1, -1)

    def steps(self, epoch: int, first_step: int = 0) -> Iterator[Iterator[MicroBatch]]:
        if self._stream is None or self._next != (epoch, first_step):
            self._stream = self._open(epoch, first_step)
        for step in range(first_step, self.batching.steps_per_epoch):
            yield self._step(epoch, step)
        self._next = (epoch + 1, 0)

    def _open(self, epoch: int, first_step: int) -> Iterator[_Piece]:
        loader = DataLoader(
            self.crops,
            batch_sampler=_Keys(self.batching, epoch, first_step, self.ahead.piece),
            num_workers=self.workers,
            collate_fn=_as_it_is,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=self.ahead.pieces or None,
            timeout=_WORKER_SECONDS if self.workers else 0,
            worker_init_fn=partial(serve, os.getpid()) if self.workers else None,
        )
        before = set(multiprocessing.active_children())
        try:
            return iter(loader)
        except BaseException as error:
            # Those that could be started wait for work and are deaf to the SIGTERM by which Python would end them: the
            # program would never end. What the frames hold are their pipes, which clearing up may have need of.
            for started in set(multiprocessing.active_children()) - before:
                started.kill()
            traceback.clear_frames(error.__traceback__)
            if not isinstance(error, OSError):
                raise
            raise RunFailed(
                f"{self.workers} processes that decode images cannot be started ({error.strerror or error}); lower"
                " --set data.workers, or raise the limit that was reached (ulimit -n, ulimit -u)"
            ) from error

    def _step(self, epoch: int, step: int) -> Iterator[MicroBatch]:
        sizes = [len(ids) for ids in torch.empty(self.batching.local_batch).split(self.batching.micro_batch)]
        for index, size in enumerate(sizes):
            received = [self._receive() for _ in range(-(-size // pieces(size, self.ahead.piece)))]
            # Piece by piece, so that the device may copy one while the next is waited for.
            arrived = [images.to(self.device, non_blocking=True) for images, _ in received]
            crops = (arrived[0] if len(arrived) == 1 else torch.cat(arrived)).permute(0, 1, 4, 2, 3)
            wanted = self.labelled or self.masked
            there = sent(torch.cat([labels for _, labels in received]), self.device) if wanted else None
            if self.masked:
                assert there is not None
                images, there = self.augmented_with_masks(crops[:, 0], there, self.on_device, epoch, step, index)
            else:
                images = self.augmented(crops, self.on_device, epoch, step, index)
            yield MicroBatch(images, self.micro_seed("corrupt", epoch, step, index), there)

    def _receive(self) -> tuple[UInt8[Tensor, "b v s t c"], Tensor]:
        assert self._stream is not None
        try:
            images, labels, faults, refused, short = next(self._stream)
        except (ConnectionError, EOFError) as error:  # a worker died while its tensors were being handed over
            raise RuntimeError(f"DataLoader worker hung up: {error or type(error).__name__}") from error
        for name, reason in faults:
            self.unreadable.add(name, reason)
        if refused:
            raise DataError(refused)
        if short:
            raise RunFailed(short)
        if images is None:
            raise DataError(f"{_SUBSTITUTES} images in a row cannot be read (last: {': '.join(faults[-1])})")
        return images, labels

    def recut(self, micro_batch: int) -> None:
        self.close()
        super().recut(micro_batch)

    def close(self) -> None:
        """End the workers, those too that an exception on its way still holds; what becomes of them is told no more."""
        stream, self._stream = self._stream, None
        with unheard_children():
            if self.workers and stream is not None:
                stream._shutdown_workers()  # type: ignore[attr-defined]
                for worker in stream._workers:  # type: ignore[attr-defined]
                    worker.kill()  # torch asks by SIGTERM, which they do not hear
