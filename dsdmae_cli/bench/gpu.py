"""`dsdmae bench gpu`: the programme of gpu.toml, on a CUDA device or, tried on tiny sizes, on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from dsdmae_cli.bench.feed import photographs as jpegs
from dsdmae_cli.bench.gpu_parts import OnDevice
from dsdmae_cli.bench.gpu_runs import Runs
from dsdmae_cli.bench.machine import described
from dsdmae_cli.bench.programme import Kept, chosen, go_through, read_programme
from dsdmae_cli.bench.turns import Finding
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.runtime import choose_device


def bench_gpu(
    out: Path,
    *,
    device: str = "cuda",
    only: tuple[str, ...] = (),
    minutes: float = 22.0,
    photographs: Path | None = None,
    said: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Do what is left of the programme and fits the time; names of the parts that are left over or failed.

    Args:
        out: folder of bench.json and report.md; one with both goes on.
        only: names of parts; empty = all.
        minutes: for all parts of this call.
        photographs: folder of JPEGs for the part about decoding.

    Raises:
        SettingsError: there is no such device or part, no photographs where they are said to be, or the folder is
            another machine's.
    """
    where = choose_device(device)
    if where.type not in ("cuda", "cpu"):
        raise SettingsError(f"--device {device}: the programme is for cuda, and can be tried on cpu with tiny sizes")
    programme = read_programme(rehearsal=where.type == "cpu")
    parts = chosen(programme, only)
    if photographs is not None:  # whose turn comes after a quarter of an hour
        jpegs(photographs, most=1)
    kept = Kept(out, described(where))
    ours, runs = OnDevice(where, programme, said), Runs(where, programme, said)
    functions: dict[str, Callable[..., list[Finding]]] = {
        "waits": ours.waits,
        "runs": runs.runs,
        "memory": ours.memory,
        "attention": ours.attention,
        "step": ours.step,
        "profile": ours.profile,
        "denoise": ours.denoise,
        "feed": partial(ours.feed, photographs),
        "processes": runs.processes,
    }
    return go_through(parts, functions, kept, minutes, said)
