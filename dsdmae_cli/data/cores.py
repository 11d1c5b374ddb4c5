"""Which processor this is, and how many of its cores are this process's. No torch here."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from pathlib import Path


def usable_cores() -> int:
    """Cores that this process may use, by its affinity and its container's limit."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            allowed = min(allowed, max(1, int(quota) // int(period)))
    return allowed


def own_cores(processes: int) -> int:
    """This process's share of the usable cores, at least one.

    Args:
        processes: that train on this machine. Where srun says what a task of it has, that is its own already.
    """
    usable, given = usable_cores(), os.environ.get("SLURM_CPUS_PER_TASK", "")
    of_torchrun = "TORCHELASTIC_RUN_ID" in os.environ  # within srun: what its task has is for all that torchrun starts
    if "SLURM_PROCID" in os.environ and not of_torchrun and given.isdigit() and int(given):
        return min(usable, int(given))
    return max(1, usable // processes)


def cpu_name() -> str:
    """What the processor calls itself."""
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or platform.machine()
