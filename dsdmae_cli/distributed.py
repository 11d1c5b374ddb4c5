"""Several processes under torchrun (or srun, slurm.py): the little that this program needs of torch.distributed.

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

from dsdmae_cli.errors import CheckpointError, DataError, DsdmaeError, PluginError, RunFailed, SettingsError
from dsdmae_cli.signals import stopping

T = TypeVar("T")
# Of a step's exchanges: long enough for rank 0 to judge features while the others wait, short enough to notice one
# that hangs. A process that ended is noticed at once.
_TIMEOUT = timedelta(minutes=10)
# Of preparation: one process unpacks or downloads a dataset while the others wait.
_PREPARATION = timedelta(hours=12)
# The group whose exchanges wait that long; None = the default one.
_patient: dist.ProcessGroup | None = None
# What gloo and NCCL say where a process of the group is gone.
_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out waiting",
    "ncclRemoteError",
    "gloo",
    "NCCL",
)


def launched_by_torchrun() -> bool:
    """Whether torchrun (or another launcher that sets its variables) started this process."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def is_first() -> bool:
    """Whether this process is the first of those that were started together, in a group or not."""
    return not launched_by_torchrun() or int(os.environ["RANK"]) == 0


def rank() -> int:
    """This process's number, 0 outside a group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_processes() -> int:
    """Number of processes on this machine, as far as the launcher says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def launched_by_torchrun_itself() -> bool:
    """Whether it was torchrun, whose processes see all GPUs, and not srun, which may give each its own."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the group that torchrun announced, for the time of the block; nothing to join without torchrun, or within
    a block that has joined already.

    CUDA processes get NCCL for tensors on the device and gloo for those on the host.
    """
    if not launched_by_torchrun() or dist.is_initialized():
        yield
        return
    global _patient
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=_TIMEOUT)
        _patient = dist.new_group(backend="gloo", timeout=_PREPARATION)  # type: ignore[assignment]
    except (ValueError, RuntimeError) as error:
        raise SettingsError(f"cannot join torchrun's process group: {str(error).splitlines()[0]}") from error
    # Until the group is left: where a process died, torchrun's SIGTERM comes while the others clear up.
    with stopping():
        try:
            yield
        finally:
            _patient = None
            # DistributedDataParallel lies in reference cycles and holds the group: one that is left until the
            # interpreter ends takes the process down with gloo's threads now and then (terminate called without an
            # active exception).
            gc.collect()
            dist.destroy_process_group()


@contextmanager
def main_first() -> Iterator[None]:
    """Rank 0 goes through the block first, then the first process of each other machine, then all others: what the
    first downloads or unpacks, on a disk of all or of its machine, they find. Its failure is everyone's (one_fate).
    """
    turn = 0 if rank() == 0 else 1 if local_rank() == 0 else 2
    with one_fate():
        for _ in range(turn):
            _barrier()
        try:
            yield
        finally:  # an error must not leave the others waiting
            for _ in range(2 - turn):
                _barrier()


def _barrier() -> None:
    if world_size() > 1:
        with _all_there():
            dist.barrier(group=_patient)


@contextmanager
def one_fate() -> Iterator[None]:
    """A block that all processes leave alike: where it fails in any of them, all raise, and the first one says why.

    Processes that failed at different places would wait for each other. No exchange may be left open by a failure
    within the block, but for those that are one_fate themselves.
    """
    problem: Exception | None = None
    try:
        yield
    except Exception as error:
        if world_size() == 1:
            raise
        problem = error
    failed = [(number, told) for number, told in enumerate(all_gathered(_told(problem))) if told is not None]
    if not failed:
        return
    if problem is not None and not isinstance(problem, DsdmaeError):
        raise problem  # a bug keeps its traceback
    number, (kind, text) = failed[0]
    if number:
        text = f"in process {number} of {world_size()}: {text}"
    raise _elsewhere(kind(text)) from problem


def _told(problem: Exception | None) -> tuple[type[DsdmaeError], str] | None:
    """An error as it travels; those with more than a text as their plain kind."""
    if problem is None:
        return None
    kinds = (SettingsError, PluginError, DataError, CheckpointError)
    kind = next((kind for kind in kinds if isinstance(problem, kind)), RunFailed)
    return kind, str(problem) if isinstance(problem, DsdmaeError) else f"{type(problem).__name__}: {problem}"


def _elsewhere(error: DsdmaeError) -> DsdmaeError:
    """One error is printed once, by the first process."""
    error.said_elsewhere = rank() != 0
    return error


def all_gathered(value: T) -> list[T]:
    """All processes' values, in the order of ranks.

    Raises:
        RunFailed: a process is gone.
    """
    if world_size() == 1:
        return [value]
    box: list[T] = [value] * world_size()
    with _all_there():
        dist.all_gather_object(box, value, group=_patient)
    return box


@contextmanager
def _all_there() -> Iterator[None]:
    """An exchange of preparation: where a process is gone, one sentence says so."""
    try:
        yield
    except RuntimeError as error:
        raise (lost(error, "the first that ended says why; start all of them again") or error) from error


def lost(error: RuntimeError, advice: str) -> RunFailed | None:
    """What to say where gloo or NCCL miss a process of the group; None of other errors."""
    if world_size() == 1 or not any(sign in str(error) for sign in _LOST):
        return None
    first = str(error).splitlines()[0][:200]
    return RunFailed(f"another process of this run ended or cannot be reached ({first}); {advice}")


def agree(what: str, mine: object, advice: str) -> None:
    """See that all processes have the same.

    Args:
        what: it is, in words.
        mine: this process's, which a person can read.

    Raises:
        DataError: in all processes, where one has another than the first.
    """
    found = all_gathered(mine)
    for number, theirs in enumerate(found):
        if theirs != found[0]:
            raise _elsewhere(
                DataError(
                    f"the processes of this run do not see the same {what}: {found[0]} in the first, {theirs} in"
                    f" process {number}; {advice}"
                )
            )


def from_main(value: T) -> T:
    """Rank 0's value, in every process."""
    if world_size() == 1:
        return value
    box: list[T] = [value]
    with _all_there():
        dist.broadcast_object_list(box, src=0, group=_patient)
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
        raise _elsewhere(problem)
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
