"""All images of a pre-training run, opened once: what it learns from, and what is looked at on the way.

Each image is decoded once. Where the training images are resident at the size that features are taken at, the labelled
ones of k-NN are rows of the same tensor; otherwise they are cut from the same decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from dsdmae_cli import plugins
from dsdmae_cli.data.account import take_account
from dsdmae_cli.data.base import ImageDataset
from dsdmae_cli.data.open import choose, open_dataset, open_source, place
from dsdmae_cli.data.resident import ResidentSource, to_tensor
from dsdmae_cli.data.source import Batching, Source, Unreadable
from dsdmae_cli.data.square import Squares, require_some
from dsdmae_cli.data.together import Note, decode_together
from dsdmae_cli.report import number_of
from dsdmae_cli.settings.resolved import ResolvedData
from dsdmae_cli.settings.size import Size, height_width

_PICTURES = 8
_WATCHED = 512


class Rows:
    """Some of the images in a tensor, batch by batch, so that there is no second copy of them all.

    Args:
        images: the tensor.
        rows: which of them, on the same device.
    """

    def __init__(self, images: UInt8[Tensor, "n c s t"], rows: Int64[Tensor, " m"]) -> None:
        self.images = images
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def split(self, size: int) -> Iterator[UInt8[Tensor, "b c s t"]]:
        """As a tensor's: batches of at most `size` images, in order."""
        return (self.images[rows] for rows in self.rows.split(size))


@dataclass(frozen=True)
class Labelled:
    """Images and their labels, on the device."""

    images: UInt8[Tensor, "n c s t"] | Rows
    labels: Int64[Tensor, " n"]


@dataclass(frozen=True)
class RunData:
    """Images of a run, on the device.

    Attributes:
        source: the training batches.
        unreadable: of the training and the labelled images so far; a streaming source adds to it.
        held_out_unreadable: of the test images.
        pictures: at most 8 test images, fixed, at data.image_size.
        bank, queries: labelled training and test images, at data.image_size; None where there are no labels.
        watched: test images whose features are watched for collapse: those of `queries`, or at most 512 where there are
            no labels.
    """

    source: Source
    unreadable: Unreadable
    held_out_unreadable: Unreadable
    pictures: UInt8[Tensor, "n c s t"]
    bank: Labelled | None = None
    queries: Labelled | None = None
    watched: UInt8[Tensor, "n c s t"] | None = None


def open_run_data(
    train: ImageDataset,
    settings: ResolvedData,
    batching: Batching,
    device: torch.device,
    *,
    num_views: int,
    most: int | None,
    note: Note,
    account: Callable[[Mapping[str, str]], None],
) -> RunData:
    """Open the test split beside the training images, and decode what is to be resident or looked at, each image once
    a machine; all processes of a run do.

    Args:
        train: the training split.
        batching: of all of its images; it shrinks by what could not be read.
        num_views: how many crops of each image a batch holds (Method.num_views).
        most: labelled images in the bank, and test images whose features are taken; None = features are not looked at.
        note: is told what takes a while.
        account: is told what images there are.

    Raises:
        DataError: the test images are not there, too many images are unreadable, or none can be read.
    """
    test = open_dataset(settings, "test")
    account(take_account({"training": train, "held-out": test}, settings.range).rows())
    unreadable, size = Unreadable(len(train), settings, "training"), settings.image_size
    labelled, chosen = train, list[int]()
    if most is not None:
        split = plugins.find("dataset", settings.dataset).spec.labelled_split
        labelled = train if split == "train" else open_dataset(settings, split)
        chosen = labelled_indices(labelled, most)
    placement = place(train, settings, device)
    if train.arrays() is None and placement.size:
        note(f"decoding {number_of(len(train), 'image')}")
    squares = Squares(chosen, size, labelled.channels)
    also = [squares] if labelled is train and placement.size != size else []
    source = open_source(
        train, settings, placement, batching, device, unreadable, num_views=num_views, also=also, note=note
    )
    bank = None
    own = isinstance(source, ResidentSource) and source.images.shape[2:] == height_width(size)
    if chosen and labelled is train and own:
        assert isinstance(source, ResidentSource)
        bank = _rows_of(source, train, chosen, unreadable)
    elif chosen:
        if not squares.kept:  # no training images were decoded, or others
            decode_together(labelled, chosen, [squares], unreadable, note)
        squares.require(unreadable)
        bank = _labelled(to_tensor(squares.pixels, device), labelled, squares.kept)
    held_out_unreadable = Unreadable(len(test), settings, "held-out")
    queries, watched, pictures = _held_out(test, size, device, most, bank is not None, held_out_unreadable, note)
    return RunData(source, unreadable, held_out_unreadable, pictures, bank, queries, watched)


def labelled_indices(dataset: ImageDataset, most: int) -> list[int]:
    """A fixed random choice of at most `most` images that have a label, ascending; empty where there are none.

    The choice does not depend on the run's seed, so that scores of different seeds judge the same images.
    """
    if dataset.labels is None:
        return []
    candidates = np.flatnonzero(dataset.labels >= 0)
    return [int(candidates[i]) for i in choose(len(candidates), most, 0, "labelled")]


def _labelled(
    images: UInt8[Tensor, "n c s t"] | Rows, dataset: ImageDataset, indices: list[int] | NDArray[np.int64]
) -> Labelled:
    assert dataset.labels is not None
    device = images.images.device if isinstance(images, Rows) else images.device
    return Labelled(images, torch.from_numpy(dataset.labels[indices]).to(device))


def _rows_of(source: ResidentSource, dataset: ImageDataset, chosen: list[int], unreadable: Unreadable) -> Labelled:
    """Those of the chosen images that could be read, where they lie."""
    if source.kept is None:
        there = rows = np.array(chosen)
    else:
        there = np.intersect1d(chosen, source.kept)
        rows = np.searchsorted(source.kept, there)
    require_some(len(there), len(chosen), unreadable)
    if len(rows) == len(source.images):
        return _labelled(source.images, dataset, there)
    return _labelled(Rows(source.images, torch.from_numpy(rows).to(source.images.device)), dataset, there)


def _held_out(
    test: ImageDataset,
    size: Size,
    device: torch.device,
    most: int | None,
    labelled: bool,
    unreadable: Unreadable,
    note: Note,
) -> tuple[Labelled | None, UInt8[Tensor, "n c s t"] | None, UInt8[Tensor, "m c s t"]]:
    """(queries, watched, pictures), out of one decoding of the test images."""
    asked = queried = labelled_indices(test, most) if labelled and most is not None else []
    if most is not None and not queried:
        asked = choose(len(test), min(most, _WATCHED), 0, "watched")
    shown = choose(len(test), _PICTURES, 0, "pictures")
    # What is watched comes first and is a view of the whole; the few pictures are copied.
    every = [*asked, *sorted(set(shown).difference(asked))]
    squares = Squares(every, size, test.channels)
    decode_together(test, every, [squares], unreadable, note)
    squares.require(unreadable)
    images, kept = to_tensor(squares.pixels, device), squares.kept
    rows = [kept.index(index) for index in shown if index in kept]
    require_some(len(rows), len(shown), unreadable)
    pictures = images[rows]
    if not asked:
        return None, None, pictures
    num_watched = len(set(asked).intersection(kept))
    require_some(num_watched, len(asked), unreadable)
    watched = images[:num_watched]
    return _labelled(watched, test, kept[:num_watched]) if queried else None, watched, pictures
