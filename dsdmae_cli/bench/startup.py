"""How long the program takes to start: each `--help` against a bare Typer application, `denoise` against torch alone.

Whole processes, as a shell starts them, by turns; ratios are of medians. Processor time (user and system) stands beside
the clock's, which a busy machine stretches. The bare application has thirty options and a line of help for each, about
what one command of this program has.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from dsdmae_cli.bench.turns import Finding, Spread, by_turns
from dsdmae_cli.errors import RunFailed

# What docs/design/performance.md asks for: of a bare application, and of `import torch`.
HELP_LIMIT, DENOISE_LIMIT = 1.3, 1.6
_BARE_NAME, _TORCH = "a bare Typer application", "import torch"
_NUM_OPTIONS = 30
_BARE = '''
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def main(
OPTIONS
) -> None:
    """Do nothing."""
'''


class Took(NamedTuple):
    """Seconds of one process."""

    clock: float
    processor: float


def bare_application(folder: Path) -> None:
    """A Typer application of thirty options, as a module: that is compiled once, as ours is, and a script each time."""
    options = "\n".join(
        f'    option_{n}: Annotated[str, typer.Option("--option-{n}", help="What option {n} of it means")] = "",'
        for n in range(_NUM_OPTIONS)
    )
    (folder / "bare.py").write_text(_BARE.replace("OPTIONS", options))


def run(command: list[str], environ: dict[str, str]) -> Took:
    """Run a process to its end.

    Raises:
        RunFailed: it failed.
    """
    began = time.perf_counter()
    with subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = process.stderr.read().decode(errors="replace")
        if hasattr(os, "wait4"):
            _, status, usage = os.wait4(process.pid, 0)
            used = usage.ru_utime + usage.ru_stime
            process.returncode = status
        else:  # Windows says nothing of a process that has ended
            status, used = process.wait(), float("nan")
    took = Took(time.perf_counter() - began, used)
    if status:
        raise RunFailed(f"{' '.join(command[2:])} failed: {said.strip().splitlines()[-1] if said.strip() else status}")
    return took


def bench_startup(
    commands: Sequence[tuple[str, ...]],
    picture: Path | None,
    rounds: int,
    said: Callable[[str], None] = lambda text: None,
) -> Finding:
    """Seconds of whole processes: help of each command, and denoising one picture by each engine.

    Args:
        commands: the words of each; none = the program itself.
        picture: what is denoised; None = noise of 256x256 pixels.

    Raises:
        DataError: the picture cannot be read.
        RunFailed: a process failed.
    """
    import torch

    from dsdmae_cli.bench.machine import described
    from dsdmae_cli.pictures.picture import read

    if picture is not None:
        read(picture, f"--picture {picture}")  # before a minute of other processes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bare_application(folder)
        path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        environ = {**os.environ, "PYTHONPATH": path}
        ours = [sys.executable, "-c", "from dsdmae_cli.__main__ import main; main()"]
        helps = {_BARE_NAME: [sys.executable, "-c", "from bare import app; app()", "--help"]}
        for words in commands:
            helps[" ".join(["dsdmae", *words, "--help"])] = [*ours, *words, "--help"]
        took = by_turns(_runs(helps, environ), rounds, said)
        # Else the round before the first would make the file that onnxruntime reads in the user's own cache.
        apart = environ | {"XDG_CACHE_HOME": str(folder)}
        denoised = by_turns(_runs(_denoise(ours, folder, picture), apart), rounds, said)
    rows, notes = [], []
    for found, base, limit in ((took, _BARE_NAME, HELP_LIMIT), (denoised, _TORCH, DENOISE_LIMIT)):
        rows += [_row(name, found, base) for name in found]
        worst = max((n for n in found if n != base), key=lambda n: _middle(found[n]))
        ratio = _middle(found[worst]) / _middle(found[base])
        notes.append(f"Slowest: {worst}, {ratio:.2f} x {base} in processor time; the limit is {limit}.")
    data = {name: [second._asdict() for second in seconds] for name, seconds in {**took, **denoised}.items()}
    return Finding(
        "Starting, whole processes",
        ["process", "clock, s", "processor, s", "ratio of the clock", "ratio of the processor"],
        rows,
        {"rounds": str(rounds), **described(torch.device("cpu"))},
        {"processes": data},
        notes,
    )


def _runs(commands: dict[str, list[str]], environ: dict[str, str]) -> dict[str, Callable[[], Took]]:
    return {name: partial(run, command, environ) for name, command in commands.items()}


def _denoise(ours: list[str], folder: Path, picture: Path | None) -> dict[str, list[str]]:
    import numpy as np
    from PIL import Image

    if picture is None:
        picture = folder / "noise.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)).save(picture)
    command = [*ours, "denoise", str(picture), "--out", str(folder / "out.png"), "--force", "--device", "cpu"]
    engines = ["torch", *(["onnx"] if find_spec("onnxruntime") else [])]
    by_engine = {f"dsdmae denoise, --engine {engine}": [*command, "--engine", engine] for engine in engines}
    return {_TORCH: [sys.executable, "-c", "import torch"], **by_engine}


def _middle(seconds: list[Took], field: int = 1) -> float:
    value = statistics.median(one[field] for one in seconds)
    return value if value == value else statistics.median(one.clock for one in seconds)


def _row(name: str, found: dict[str, list[Took]], base: str) -> list[str]:
    spreads = [Spread.of([one[field] for one in found[name]]).text() for field in (0, 1)]
    ratios = [f"{_middle(found[name], field) / _middle(found[base], field):.2f}" for field in (0, 1)]
    return [name, *spreads, *ratios]
