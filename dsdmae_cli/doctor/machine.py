"""The machine: devices, what is fast on them, threads, memory, disk and shared memory."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dsdmae_cli.data.cores import cpu_name, usable_cores
from dsdmae_cli.doctor import Check
from dsdmae_cli.report import number_of

_GIB = 2**30
# Below these a common run does not fit: ViT-Tiny on small images takes 1 GiB, a checkpoint of ViT-Base 1.3 GB and there
# are three at a time, eight workers pass some 100 MB of decoded images through shared memory.
_LITTLE_MEMORY, _LITTLE_DISK, _LITTLE_SHM = 2 * _GIB, 5 * _GIB, 512 * 2**20
# Of the matrices that are multiplied.
_SIDE = 1024


def devices() -> Iterator[Check]:
    import torch

    yield Check(
        "cpu", "ok", f"{cpu_name()}, {usable_cores()} of {number_of(os.cpu_count() or 1, 'core')} for this process"
    )
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        name = f"{torch.cuda.get_device_name(index)}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
        few = free < _LITTLE_MEMORY
        yield Check(
            f"cuda:{index}",
            "warning" if few else "ok",
            name,
            "something else uses it; --device takes another one" if few else "",
        )
    if not torch.cuda.is_available():
        if _driver():
            build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
            yield Check(
                "cuda",
                "warning",
                f"a driver of NVIDIA's is here, but torch ({build}) cannot use a GPU",
                "see what `nvidia-smi` says; a newer driver, or the build of torch that fits it"
                " (https://pytorch.org/get-started/locally)",
            )
        else:
            yield Check("cuda", "note", "none", "training is on the CPU; large networks want a GPU")
    if torch.backends.mps.is_available():
        yield Check("mps", "ok", "Apple's GPU")


def _driver() -> bool:
    return Path("/dev/nvidiactl").exists() or Path("/proc/driver/nvidia/version").exists()


def precision() -> Iterator[Check]:
    from dsdmae_cli.runtime import choose_device, choose_precision, cpu_multiplies_bf16

    device = choose_device("auto")
    chosen = choose_precision("auto", device)
    if device.type != "cpu":
        yield Check("precision", "ok", f"{chosen} on {device} (--precision auto)")
        return
    times = faster_in_bf16()
    measured = (
        f"a matrix product in bf16 is {times:.3g} times as fast as in fp32"
        if times >= 1
        else (f"a matrix product in bf16 takes {1 / times:.3g} times as long as in fp32")
    )
    if cpu_multiplies_bf16():
        slow = times < 1
        yield Check(
            "precision",
            "warning" if slow else "ok",
            f"{chosen} (--precision auto): this CPU multiplies bf16, {measured}",
            "try --precision fp32, or free the CPU of other work and look again" if slow else "",
        )
    else:
        yield Check(
            "precision",
            "note",
            f"{chosen} (--precision auto): this CPU has neither AMX nor AVX512_BF16 ({measured})",
            "leave --precision at auto; a CPU that has them trains several times faster",
        )


def faster_in_bf16() -> float:
    """How many times as fast a matrix product is in bf16, with the threads of this process."""
    import torch

    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones(_SIDE, _SIDE, dtype=dtype)
        taken = []
        for _ in range(4):  # the first one prepares
            began = time.perf_counter()
            a @ a
            taken.append(time.perf_counter() - began)
        return min(taken[1:])

    return seconds(torch.float32) / seconds(torch.bfloat16)


def threads() -> Iterator[Check]:
    import torch

    number, cores = torch.get_num_threads(), usable_cores()
    by = f" (OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']})" if "OMP_NUM_THREADS" in os.environ else ""
    if number > cores:
        yield Check(
            "threads",
            "warning",
            f"{number} for {number_of(cores, 'core')}{by}: they wait for each other",
            f"export OMP_NUM_THREADS={cores}",
        )
    elif number < max(1, cores // 2):
        yield Check(
            "threads",
            "note",
            f"{number} for {number_of(cores, 'core')}{by}",
            f"export OMP_NUM_THREADS={cores} uses them all",
        )
    else:
        yield Check("threads", "ok", f"{number} for {number_of(cores, 'core')}{by}")


def memory() -> Iterator[Check]:
    import psutil

    found = psutil.virtual_memory()
    free, total = found.available, found.total
    with suppress(OSError, ValueError):  # "max" is no number
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free = min(free, max(limit - int(Path("/sys/fs/cgroup/memory.current").read_text()), 0))
        total = min(total, limit)
    few = free < _LITTLE_MEMORY
    yield Check(
        "memory",
        "warning" if few else "ok",
        f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free",
        "close other programs, or lower --batch-size and use --set data.placement=streaming" if few else "",
    )


def disk() -> Iterator[Check]:
    from platformdirs import user_cache_path, user_data_path

    for name, path, instead in (
        (
            "runs",
            user_data_path("dsdmae") / "runs",
            "--out DIR puts a run elsewhere; `dsdmae runs rm` deletes old ones",
        ),
        (
            "cache",
            user_cache_path("dsdmae"),
            "`dsdmae cache clear` deletes what is made anew; XDG_CACHE_HOME puts it elsewhere",
        ),
        ("temporary", Path(tempfile.gettempdir()), "TMPDIR puts it elsewhere"),
    ):
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        free = shutil.disk_usage(there).free
        problem = _unwritable(there)
        if problem:
            yield Check(name, "wrong", f"{path} cannot be written ({problem})", instead)
        elif free < _LITTLE_DISK:
            yield Check(name, "warning", f"{path}: {free / _GIB:.1f} GiB free", f"make room; {instead}")
        else:
            yield Check(name, "ok", f"{path}: {free / _GIB:.0f} GiB free")


def _unwritable(folder: Path) -> str:
    """Why nothing can be written there; empty where it can."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"dsdmae")
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def shm() -> Iterator[Check]:
    mounted = Path("/dev/shm")
    if not mounted.is_dir():
        if sys.platform.startswith("linux"):
            yield Check(
                "/dev/shm",
                "warning",
                "missing: processes that decode images cannot pass them on",
                "mount it, or use --set data.workers=0",
            )
        return
    free = shutil.disk_usage(mounted).free
    few = free < _LITTLE_SHM
    yield Check(
        "/dev/shm",
        "warning" if few else "ok",
        f"{free / _GIB:.2f} GiB free",
        "docker run --shm-size 8g, or --set data.workers=0 where images are streamed" if few else "",
    )
