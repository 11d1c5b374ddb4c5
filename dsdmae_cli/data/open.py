"""Open a dataset and make training batches of it; what else a run looks at is run_data.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import psutil
import torch

from dsdmae_cli import distributed, plugins
from dsdmae_cli.data.arrays import ArrayImages
from dsdmae_cli.data.augment import Augmentation
from dsdmae_cli.data.base import ImageDataset
from dsdmae_cli.data.channels import in_channels
from dsdmae_cli.data.cores import own_cores
from dsdmae_cli.data.mask_views import mask_squares
from dsdmae_cli.data.masks import MaskedImages
from dsdmae_cli.data.resident import ResidentSource, to_tensor
from dsdmae_cli.data.source import Batching, Source, Unreadable, derive_seed
from dsdmae_cli.data.square import Squares, common_size
from dsdmae_cli.data.streaming import StreamingSource, Transform
from dsdmae_cli.data.together import Note, array_together, decode_together
from dsdmae_cli.errors import DataError
from dsdmae_cli.settings.models import DataSettings
from dsdmae_cli.settings.resolved import ResolvedData
from dsdmae_cli.settings.size import Size, height_width, size_words


def open_dataset(settings: DataSettings, split: str) -> ImageDataset:
    """A split of the dataset that the settings name.

    Raises:
        DataError: it is not there, damaged, or empty.
    """
    spec = plugins.find("dataset", settings.dataset).spec
    dataset = plugins.made_by(spec.build, ImageDataset, settings, split)  # type: ignore[type-abstract]
    if not len(dataset):
        held_out = "; give two images or more, of which one is held out" if split == "test" else "; name another"
        raise DataError(f"dataset {settings.dataset} has no images in its {split} split{held_out}")
    return dataset if settings.channels == "auto" else in_channels(dataset, settings.channels, settings.dataset)


def open_all(settings: DataSettings) -> ImageDataset:
    """The training split. The others that a run looks at are opened too, and let go: what has to be downloaded or
    unpacked for any of them is there afterwards.

    Raises:
        DataError: one of them is not there, damaged, or empty.
    """
    dataset = open_dataset(settings, "train")
    for split in {"test", plugins.find("dataset", settings.dataset).spec.labelled_split} - {"train"}:
        if distributed.world_size() > 1:
            open_dataset(settings, split)
    return dataset


def augmentation(settings: ResolvedData) -> Augmentation:
    """The augmentation of resolved settings."""
    return Augmentation(
        image_size=settings.image_size,
        crop_scale=settings.crop_scale,
        crop_ratio=settings.crop_ratio,
        interpolation=settings.interpolation,
        flip=settings.flip,
        shift=settings.shift,
        crop_from=settings.crop_from,
    )


@dataclass(frozen=True)
class Placement:
    """Where the training images will live.

    Attributes:
        size: of the resident images, or None for streaming.
        num_bytes: what they take on the device (0 when streaming).
    """

    size: Size | None
    num_bytes: int

    @property
    def word(self) -> str:
        """resident or streaming."""
        return "resident" if self.size else "streaming"


def place(dataset: ImageDataset, settings: ResolvedData, device: torch.device, *, masked: bool = False) -> Placement:
    """Decide where the images live: images of one size, and of the shape of
    data.image_size, that fit are resident, all others are streamed. In all processes of a run alike.

    Args:
        masked: their masks live beside them.

    Raises:
        DataError: data.placement demands resident images that do not fit.
    """
    with distributed.one_fate():
        found = _place(dataset, settings, device, masked)
    alike = all(place.size is not None for place in distributed.all_gathered(found))  # memory may differ
    return found if alike else Placement(None, 0)


def _place(dataset: ImageDataset, settings: ResolvedData, device: torch.device, masked: bool) -> Placement:
    if settings.placement == "streaming":
        return Placement(None, 0)
    size = settings.crop_from or _common(dataset, settings.image_size)
    if size is None and settings.placement == "resident":
        size = settings.image_size
    if size is None:
        return Placement(None, 0)
    height, width = height_width(size)
    num_bytes = len(dataset) * height * width * (dataset.channels + masked)
    room, where = _room(device)
    if num_bytes <= room:
        return Placement(size, num_bytes)
    if settings.placement == "resident":
        raise DataError(
            f"{len(dataset)} images of {size_words(size)} take {num_bytes / 2**30:.1f} GiB, more than the"
            f" {room / 2**30:.1f} GiB to spare {where}; use --set data.placement=streaming"
        )
    return Placement(None, 0)


def _common(dataset: ImageDataset, wanted: Size) -> Size | None:
    """The size that all images have, if nothing has to be cut off to make them of the wanted one."""
    size = common_size(dataset)
    if size is None:
        return None
    (height, width), (rows, columns) = height_width(size), height_width(wanted)
    return size if height * columns == width * rows else None


def _room(device: torch.device) -> tuple[int, str]:
    """Bytes to spare, and where that is: half of what is free, the other half is the training's.

    Also for a GPU the images are decoded in the host's memory, where all processes of the machine have them in common.
    """
    processes = distributed.local_processes()
    host = int(psutil.virtual_memory().available // 2)
    rooms = [(host, f"in the memory that {processes} processes have in common" if processes > 1 else f"on {device}")]
    if device.type == "cuda":
        rooms = [(host, "in the machine's memory, where they are decoded")]
        rooms.append((torch.cuda.mem_get_info(device)[0] // 2, f"on {device}"))
    return min(rooms)


def in_common(device: torch.device) -> bool:
    """Whether resident images are one memory of several processes."""
    return distributed.local_processes() > 1 and device.type == "cpu"


def open_source(
    dataset: ImageDataset,
    settings: ResolvedData,
    placement: Placement,
    batching: Batching,
    device: torch.device,
    unreadable: Unreadable,
    labelled: bool = False,
    transform: Transform | None = None,
    num_views: int = 1,
    also: Sequence[Squares] = (),
    masked: MaskedImages | None = None,
    note: Note = lambda text: None,
) -> Source:
    """Training batches of a dataset; all processes of a run ask for them.

    A resident dataset is decoded here, once a machine; `batching.num_images` shrinks by what could not be read.

    Args:
        labelled: the batches carry labels.
        transform: what is done to each image beside cropping, by processes that decode ahead; with one, nothing is
            resident.
        num_views: how many crops of each image a batch holds; with more than one, images are [b, v, c, height, width].
        also: filled from the same decoding, if there is one.
        masked: the dataset itself, where its masks are the labels that the batches carry.
        note: see together.decode_together.

    Raises:
        DataError: too many images cannot be read, or none of them can.
    """
    plan = augmentation(settings)
    if placement.size is None or transform is not None:
        workers = num_workers(settings)
        return StreamingSource(
            dataset, batching, plan, device, workers, unreadable, labelled, transform, num_views, masked
        )
    array_together(dataset, unreadable, note)
    # Of several processes only such an array is taken as it is that lies in memory they have in common.
    alone = distributed.world_size() == 1
    arrays = dataset.arrays() if alone or (isinstance(dataset, ArrayImages) and dataset.is_common) else None
    kept = None
    if arrays is None or arrays.shape[1:3] != height_width(placement.size):
        every = range(len(dataset))
        squares = Squares(every, placement.size, dataset.channels)
        decode_together(dataset, every, [squares, *also], unreadable, note)
        squares.require(unreadable)
        arrays = squares.pixels
        kept = np.array(squares.kept) if len(squares.kept) < len(dataset) else None
    labels = None
    if labelled:
        assert dataset.labels is not None
        labels = torch.from_numpy(dataset.labels if kept is None else dataset.labels[kept]).to(device)
    masks = None
    if masked is not None:
        masks = mask_squares(
            masked, range(len(dataset)) if kept is None else kept.tolist(), placement.size, device, note
        )
    batching = replace(batching, num_images=len(arrays))
    return ResidentSource(to_tensor(arrays, device), batching, plan, labels, num_views, kept, masks)


def num_workers(settings: DataSettings) -> int:
    """Decoding processes of this one: one for each of its cores but one, unless the settings say."""
    if settings.workers != "auto":
        return settings.workers
    return max(1, own_cores(distributed.local_processes()) - 1)


def choose(total: int, most: int, seed: int, purpose: str) -> list[int]:
    """At most `most` indices of `total`, a fixed random choice, ascending."""
    if total <= most:
        return list(range(total))
    generator = torch.Generator().manual_seed(derive_seed(seed, purpose))
    return sorted(torch.randperm(total, generator=generator)[:most].tolist())
