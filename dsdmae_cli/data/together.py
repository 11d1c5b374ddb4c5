"""Images in the host's memory once a machine: the processes of a run that share a machine decode a part each, into
memory that all of them have in common.

The memory is a file without a name (memfd_create): nothing is left of it however its processes end, and it is bounded
by the machine's memory, not by what a container allows /dev/shm. A process opens the first one's by way of /proc; where
that cannot be, each has images of its own, which is said.

All processes of a run call these functions, in the same order. Without a group they do what there is to do for one.
"""

from __future__ import annotations

import mmap
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import psutil
from jaxtyping import UInt8

from dsdmae_cli import distributed
from dsdmae_cli.data.arrays import ArrayImages
from dsdmae_cli.data.base import ImageDataset, Subset, UnreadableImage
from dsdmae_cli.data.channels import Grey
from dsdmae_cli.data.cores import own_cores
from dsdmae_cli.data.source import Unreadable
from dsdmae_cli.data.square import Squares, decode_each, decode_into
from dsdmae_cli.errors import DataError
from dsdmae_cli.settings.size import as_size

T = TypeVar("T")
Memory = UInt8[np.ndarray, " num_bytes"]
Note = Callable[[str], None]

SAME_COPY = "give all machines the same copy of the dataset"
_NAME = "dsdmae-images"
_PAGE = 4096


class Filled(NamedTuple, Generic[T]):
    """Memory that was filled.

    Attributes:
        memories: as many as were asked for.
        told: what filling each part of it said, in the order of the parts.
        is_first: this process is the one to change it further.
    """

    memories: list[Memory]
    told: list[T]
    is_first: bool


def decode_together(
    dataset: ImageDataset, indices: Sequence[int], rooms: Sequence[Squares], unreadable: Unreadable, note: Note
) -> None:
    """square.decode_into, each image once a machine.

    Args:
        note: is told where processes of a machine cannot have memory in common.

    Raises:
        DataError: too many are unreadable; processes see other images, or have no room for their own.
    """
    if distributed.world_size() == 1:
        decode_into(dataset, indices, rooms, unreadable)
        return
    distributed.agree("images", f"{len(dataset)} images", SAME_COPY)

    def fill(part: slice, memories: list[Memory]) -> dict[int, UnreadableImage]:
        for room, memory in zip(rooms, memories, strict=True):
            room.lie_in(memory)
        own = Unreadable(unreadable.total, unreadable.settings)
        return decode_each(dataset, indices[part], rooms, own, own_cores(distributed.local_processes()))

    filled = fill_together([room.num_bytes for room in rooms], len(indices), fill, note)
    with distributed.one_fate():
        missing = {index: error for part in filled.told for index, error in part.items()}
        for error in missing.values():
            unreadable.add(error.name, error.reason)
        for room in rooms:
            room.close_up(missing, move=filled.is_first)


def array_together(dataset: ImageDataset, unreadable: Unreadable, note: Note) -> None:
    """Have a dataset that is one array in memory, whole or in part, lie there once a machine.

    Raises:
        DataError: see decode_together.
    """
    while isinstance(dataset, Subset | Grey):
        dataset = dataset.dataset
    if distributed.world_size() == 1 or not isinstance(dataset, ArrayImages) or dataset.is_common:
        return
    every = range(len(dataset))
    width, height = dataset.size(0)
    squares = Squares(every, as_size(height, width), dataset.channels)
    decode_together(dataset, every, [squares], unreadable, note)
    dataset.lie_in(squares.pixels)


def fill_together(sizes: Sequence[int], count: int, fill: Callable[[slice, list[Memory]], T], note: Note) -> Filled[T]:
    """Memories of so many bytes, the same in all processes of this machine, each of which fills a part of them.

    Args:
        count: of the items that they hold.
        fill: puts a part of the items where they belong.

    Raises:
        DataError: processes of this machine have no memory in common and no room for their own, or want other sizes.
        Whatever `fill` raises in one of them, in all.
    """
    starts = np.cumsum([0, *(-(-size // _PAGE) * _PAGE for size in sizes)]).tolist()
    crew, memory = [distributed.rank()], None
    if distributed.world_size() > 1:
        distributed.agree("images", f"{starts[-1]} bytes of images", SAME_COPY)
        crew, memory = _in_common(starts[-1], note)
    with distributed.one_fate():
        whole = np.empty(starts[-1], dtype=np.uint8) if memory is None else memory
        parts = [whole[start : start + size] for start, size in zip(starts, sizes, strict=False)]
        number = crew.index(distributed.rank())
        part = slice(count * number // len(crew), count * (number + 1) // len(crew))
        mine = fill(part, parts)
    everyones = distributed.all_gathered(mine)
    return Filled(parts, [everyones[rank] for rank in crew], number == 0)


class _Offer(NamedTuple):
    """The first process's file, for the others of its machine."""

    path: str
    inode: tuple[int, int]


def _in_common(num_bytes: int, note: Note) -> tuple[list[int], Memory | None]:
    """Ranks of the processes that have memory in common, this one among them, and the memory; alone and without any
    where there is no other on this machine, or they cannot.
    """
    rank, machines = distributed.rank(), distributed.all_gathered(_machine())
    crew = [r for r, machine in enumerate(machines) if machine == machines[rank]]
    own, problem = -1, ""
    offer: _Offer | None = None
    mapped: mmap.mmap | None = None
    try:
        if rank == crew[0] and len(crew) > 1:
            own = os.memfd_create(_NAME)
            os.posix_fallocate(own, 0, max(1, num_bytes))  # or it would turn out later, by a signal that kills
            offer = _Offer(f"/proc/{os.getpid()}/fd/{own}", _inode(own))
    except (AttributeError, OSError) as error:  # no Linux, or no room
        problem = str(error)
    offer = distributed.all_gathered(offer)[crew[0]]
    if offer is not None:
        try:
            mapped = _mapped(offer, max(1, num_bytes))
        except OSError as error:
            problem = str(error)
    problems = distributed.all_gathered(problem)
    if own >= 0:
        os.close(own)
    if said := next(filter(None, problems), ""):
        note(f"processes of one machine have images of their own each, not in common: {said}")
    if any(problems[r] for r in crew):
        mapped = None
    with distributed.one_fate():
        if mapped is None:
            _require_room(num_bytes, len(crew))
    return ([rank], None) if mapped is None else (crew, np.frombuffer(mapped, dtype=np.uint8)[:num_bytes])


def _require_room(num_bytes: int, processes: int) -> None:
    """That for images of their own each."""
    room = psutil.virtual_memory().available // 2
    if processes > 1 and processes * num_bytes > room:
        raise DataError(
            f"{processes} processes of this machine cannot have their images in common, and {processes} times"
            f" {num_bytes / 2**30:.1f} GiB are more than the {room / 2**30:.1f} GiB of its memory to spare; use --set"
            " data.placement=streaming"
        )


def _machine() -> str:
    """What processes have in common that see each other's files in /proc."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').stat().st_ino}"
    return platform.node()


def _inode(file: int) -> tuple[int, int]:
    found = os.fstat(file)
    return found.st_dev, found.st_ino


def _mapped(offer: _Offer, num_bytes: int) -> mmap.mmap:
    file = os.open(offer.path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if _inode(file) != offer.inode:
            raise OSError(f"{offer.path} is another file here")
        return mmap.mmap(file, num_bytes)
    finally:
        os.close(file)
