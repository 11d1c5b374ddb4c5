"""Several processes under torchrun: the little that this program needs of torch.distributed.

Without torchrun every function here answers for a group of one.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dsdmae_cli.errors import DsdmaeError, SettingsError

T = TypeVar("T")
# Long enough for rank 0 to decode a dataset while the others wait, short enough to notice a dead one.
_TIMEOUT = timedelta(minutes=10)


def launched_by_torchrun() -> bool:
    """Whether torchrun (or another launcher that sets its variables) started this process."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def rank() -> int:
    """This process's number, 0 outside a group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the group that torchrun announced, for the time of the block; nothing to join without torchrun, or within
    a block that has joined already.

    CUDA processes get NCCL for tensors on the device and gloo for those on the host.
    """
    if not launched_by_torchrun() or dist.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=_TIMEOUT)
    except (ValueError, RuntimeError) as error:
        raise SettingsError(f"cannot join torchrun's process group: {str(error).splitlines()[0]}") from error
    try:
        yield
    finally:
        # DistributedDataParallel lies in reference cycles and holds the group: one that is left until the interpreter
        # ends takes the process down with gloo's threads now and then (terminate called without an active exception).
        gc.collect()
        dist.destroy_process_group()


@contextmanager
def main_first() -> Iterator[None]:
    """Rank 0 goes through the block before all others: what it downloads, they find."""
    if world_size() > 1 and rank() != 0:
        dist.barrier()
    try:
        yield
    finally:  # an error of rank 0 must not leave the others waiting
        if world_size() > 1 and rank() == 0:
            dist.barrier()


def from_main(value: T) -> T:
    """Rank 0's value, in every process."""
    if world_size() == 1:
        return value
    box: list[T] = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def main_says(ask: Callable[[], T]) -> T:
    """What rank 0 answers, in every process; an error for people is raised in all of them."""
    answer: tuple[T | None, DsdmaeError | None] = (None, None)
    if rank() == 0:
        try:
            answer = ask(), None
        except DsdmaeError as error:
            answer = None, error
    value, problem = from_main(answer)
    if problem is not None:
        raise problem
    return value  # type: ignore[return-value]


def highest(value: int) -> int:
    """The largest of all processes' numbers; exchanged between hosts, the device is not waited for."""
    if world_size() == 1:
        return value
    box = torch.tensor(value)
    dist.all_reduce(box, op=dist.ReduceOp.MAX)
    return int(box)


def mean_(tensor: Tensor) -> Tensor:
    """Average a tensor over the processes, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
        tensor /= world_size()
    return tensor


def gather(tensor: Tensor) -> Tensor:
    """All processes' tensors, equally long, one after the other in the order of ranks; without a gradient."""
    if world_size() == 1:
        return tensor.detach()
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)


def max_(tensor: Tensor) -> Tensor:
    """Maximum of a tensor over the processes, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor
