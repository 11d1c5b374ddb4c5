"""Where trials run at the same time: one after another, a worker a GPU, or a worker a core of a CPU."""

from __future__ import annotations

import os

import psutil
import torch

from dsdmae_cli.data.cores import usable_cores
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.report import number_of
from dsdmae_cli.runs.child import Slot

_PROCESS_GIB = 0.8  # of Python with torch, before it holds anything


def make_slots(workers: int | None, parallel: bool, device: str, most: int, gib_each: float) -> list[Slot]:
    """The places of a study.

    Args:
        workers: how many; None = one for each GPU with `parallel`, else one; on a CPU as many as there are cores.
        parallel: use all GPUs there are.
        device: train.device; one that is named ("cuda:1") is not swapped for another.
        most: how many trials there are to run; more workers would stand idle.
        gib_each: memory of a trial, which on a CPU limits how many run beside each other.

    A CPU's cores are shared out, so that all workers together have as many threads as there are cores: small networks
    gain little from a second thread, and nothing from more threads than cores.

    Raises:
        SettingsError: more workers than cores on a CPU.
    """
    check_workers(workers, device)
    gpus, cores, on_cpu = _gpus_for(device), usable_cores(), _on_cpu(device)
    if workers is not None:
        count = workers
    elif on_cpu:
        room = psutil.virtual_memory().available / 2**30 / 2  # half, since others live here too
        count = min(cores, int(room / (gib_each + _PROCESS_GIB)))
    else:
        count = len(gpus) if parallel and gpus else 1
    count = max(1, min(count, most))
    threads = {"OMP_NUM_THREADS": str(_threads(cores, count))}
    if gpus and count > 1:
        used = [gpus[i % len(gpus)] for i in range(count)]
        return [Slot(f"gpu {name}", {**threads, "CUDA_VISIBLE_DEVICES": name}) for name in used]
    return [Slot(f"worker {i + 1}", threads) for i in range(count)]


def check_workers(workers: int | None, device: str) -> None:
    """See that so many may work at a time; arguments are those of make_slots.

    Raises:
        SettingsError: they are more than the cores of a CPU.
    """
    cores = usable_cores()
    if workers is not None and workers > cores and _on_cpu(device):
        of = number_of(cores, "core")
        raise SettingsError(f"--workers {workers} on a CPU with {of} would slow each other down; take {cores}")


def _on_cpu(device: str) -> bool:
    nothing_else = not _gpus_for(device) and not torch.backends.mps.is_available()
    return device == "cpu" or (device == "auto" and nothing_else)


def _gpus_for(device: str) -> list[str]:
    return _gpus() if device in ("auto", "cuda") else []


def _gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls each GPU that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    if visible is None:
        return [str(i) for i in range(count)]
    return [name.strip() for name in visible.split(",")][:count]


def _threads(cores: int, workers: int) -> int:
    share = max(1, cores // workers)
    wished = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(wished)) if wished.isdecimal() and int(wished) else share
