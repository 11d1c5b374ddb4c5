"""How much workers decode ahead of the step: in pieces of some tens of images, within bounds of bytes.

An item of a worker is a piece of a micro-batch. Were it a whole one, the first step would wait for one process to
decode all of it, and what lies ready would grow with the batch instead of with what is needed.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import psutil

from dsdmae_cli.distributed import local_processes
from dsdmae_cli.errors import RunFailed

# A piece: large enough that handing it over costs nothing beside decoding it, small enough to be soon there.
_MOST_IMAGES, _LEAST_IMAGES = 64, 32
# Pieces a worker may have ready or in work: with one it would wait for the next order; more even out slow pictures.
_MOST_PIECES, _LEAST_PIECES = 4, 2
# Ready images of all processes of a machine may take such a share of the memory that is free, and of /dev/shm.
_SHARE_OF_MEMORY, _SHARE_OF_SHARED = 0.25, 0.8
_SHARED_MEMORY = Path("/dev/shm")


class Ahead(NamedTuple):
    """What is decoded ahead.

    Attributes:
        piece: most images of a worker's item.
        pieces: items of a worker that may be ready or in work; 0 = there are no workers.
    """

    piece: int
    pieces: int


def pieces(images: int, most: int) -> int:
    """The size of the pieces that a micro-batch of `images` is decoded in: as even as can be, none above `most`."""
    return -(-images // -(-images // most))


def look_ahead(workers: int, micro_batch: int, image_bytes: int) -> Ahead:
    """As many pieces, and as large ones, as the memory bears.

    Args:
        workers: of this process, at least one.
        micro_batch: images of one.
        image_bytes: of an image as workers hand it over, all its views.

    Raises:
        RunFailed: not even the least fits the memory that processes share.
    """
    room = psutil.virtual_memory().available * _SHARE_OF_MEMORY
    shared = _shared_room()
    if shared is not None:
        room = min(room, shared * _SHARE_OF_SHARED)
    room /= local_processes()
    choices = [(n, k) for n in (_MOST_IMAGES, _LEAST_IMAGES) for k in range(_MOST_PIECES, _LEAST_PIECES - 1, -1)]
    for most, number in choices:
        piece = pieces(micro_batch, most)
        if workers * number * piece * image_bytes <= room:
            return Ahead(piece, number)
    need = workers * _LEAST_PIECES * pieces(micro_batch, _LEAST_IMAGES) * image_bytes
    if shared is not None and need * local_processes() > shared * _SHARE_OF_SHARED:
        raise RunFailed(
            f"{workers} processes that decode images want {need / 2**20:.0f} MiB of shared memory for what they have"
            f" ready, and {_SHARED_MEMORY} has {shared / 2**20:.0f} MiB free; give a container more of it"
            f" (docker run --shm-size=8g), or lower --set data.workers"
        )
    return Ahead(pieces(micro_batch, _LEAST_IMAGES), _LEAST_PIECES)


def _shared_room() -> int | None:
    """Bytes free where Linux has the memory that processes share; None elsewhere, where it is no place of its own."""
    if os.name != "posix" or not _SHARED_MEMORY.is_dir():
        return None
    return shutil.disk_usage(_SHARED_MEMORY).free
