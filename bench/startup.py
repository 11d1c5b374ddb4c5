"""How long the program takes to start: each `--help` against a bare Typer application, `denoise` against torch alone.

Whole processes, as a shell starts them, by turns, so that other work on the machine hits all alike; ratios are of
medians. Processor time (user and system) stands beside the clock's, which a busy machine stretches. The bare
application has thirty options and a line of help for each, about what one command of this program has.

    python bench/startup.py [--rounds 7] [--only denoise] [--picture FILE]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import typer
from PIL import Image

from dsdmae_cli.cli import app

HELP_LIMIT, DENOISE_LIMIT = 1.3, 1.6
NUM_OPTIONS = 30
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


def bare_application(folder: Path) -> Path:
    """A Typer application of thirty options, as a module: that is compiled once, as ours is, and a script each time."""
    options = "\n".join(
        f'    option_{n}: Annotated[str, typer.Option("--option-{n}", help="What option {n} of it means")] = "",'
        for n in range(NUM_OPTIONS)
    )
    module = folder / "bare.py"
    module.write_text(_BARE.replace("OPTIONS", options))
    return module


def every_command(command: object, words: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The words of each command, groups and the program itself among them."""
    below: dict[str, object] = getattr(command, "commands", {})
    return [words, *(found for name in below for found in every_command(below[name], (*words, name)))]


def run(command: list[str], environ: dict[str, str]) -> Took:
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    took = Took(time.perf_counter() - began, usage.ru_utime + usage.ru_stime)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return took


def by_turns(commands: dict[str, list[str]], rounds: int, environ: dict[str, str]) -> dict[str, list[Took]]:
    """Seconds of each command in each round, after one that fills the caches."""
    took: dict[str, list[Took]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            seconds = run(command, environ)
            if number:
                took[name].append(seconds)
    return took


def table(took: dict[str, list[Took]], base: str, limit: float) -> str:
    """Markdown: median (min, max) of the clock's and the processor's seconds, and their ratios to `base`."""

    def median(name: str, field: int) -> float:
        return statistics.median(seconds[field] for seconds in took[name])

    lines = [f"| | clock, s | processor, s | clock / {base} | processor / {base} |", "|---" * 5 + "|"]
    for name, all_seconds in took.items():
        cells = []
        for field in (0, 1):
            values = [seconds[field] for seconds in all_seconds]
            cells.append(f"{median(name, field):.2f} ({min(values):.2f}, {max(values):.2f})")
        cells += [f"{median(name, field) / median(base, field):.2f}" for field in (0, 1)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    worst = max((name for name in took if name != base), key=lambda name: median(name, 1))
    ratio = median(worst, 1) / median(base, 1)
    lines.append(f"\nslowest: {worst}, {ratio:.2f} x {base} in processor time; the limit is {limit}\n")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=["help", "denoise"], help="half of it")
    parser.add_argument("--picture", type=Path, help="what is denoised; by default noise of 256x256 pixels")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environ = {**os.environ, "PYTHONPATH": str(bare_application(folder).parent)}
        ours = [sys.executable, "-c", "from dsdmae_cli.__main__ import main; main()"]
        helps = {"a bare application": [sys.executable, "-c", "from bare import app; app()", "--help"]}
        for words in every_command(typer.main.get_command(app)):
            helps[" ".join(["dsdmae", *words, "--help"])] = [*ours, *words, "--help"]
        if arguments.only != "denoise":
            print(table(by_turns(helps, arguments.rounds, environ), "a bare application", HELP_LIMIT))
        if arguments.only == "help":
            return
        picture = arguments.picture
        if picture is None:
            picture = folder / "noise.png"
            Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)).save(picture)
        denoise = [*ours, "denoise", str(picture), "--out", str(folder / "out.png"), "--force", "--device", "cpu"]
        commands = {
            "import torch": [sys.executable, "-c", "import torch"],
            "dsdmae denoise PICTURE --engine torch": [*denoise, "--engine", "torch"],
            "dsdmae denoise PICTURE --engine onnx": [*denoise, "--engine", "onnx"],
        }
        # The round before the first makes the file that onnxruntime reads.
        environ["XDG_CACHE_HOME"] = str(folder / "cache")
        print(table(by_turns(commands, arguments.rounds, environ), "import torch", DENOISE_LIMIT))


if __name__ == "__main__":
    main()
