"""Where trials run at the same time: one after another, a worker a GPU, or a worker a core of a CPU."""

from __future__ import annotations

import os

import psutil
import torch

from dsdmae_cli.data.cores import usable_cores
from dsdmae_cli.errors import SettingsError
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
    gpus = _gpus() if device in ("auto", "cuda") else []
    cores = usable_cores()
    on_cpu = device == "cpu" or (device == "auto" and not gpus and not torch.backends.mps.is_available())
    if on_cpu and workers is not None and workers > cores:
        raise SettingsError(f"--workers {workers} on a CPU with {cores} cores would slow each other down; take {cores}")
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
