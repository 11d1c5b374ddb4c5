"""The denoiser that ships with the program: where it is and what it is called. No torch here."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable

from dsdmae_cli.errors import CheckpointError

PACKAGED = "denoiser.safetensors"
# How a command line names it where a run or a file may stand.
WORD = "packaged"
ORIGIN = "the packaged denoiser"


def find() -> Traversable:
    """Its file.

    Raises:
        CheckpointError: this installation has none.
    """
    file = files("dsdmae_cli") / "weights" / PACKAGED
    if not file.is_file():
        raise CheckpointError(
            "this installation has no packaged denoiser; give --run DIR or --weights FILE, or install dsdmae again"
        )
    return file


def read() -> bytes:
    """What it holds.

    Raises:
        CheckpointError: this installation has none.
    """
    return find().read_bytes()
