"""The denoiser that ships with the program: where it is and what it is called. No torch here."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable

from dsdmae_cli.errors import CheckpointError

PACKAGED = "denoiser.safetensors"
# How a command line names it where a run or a file may stand.
WORD = "packaged"
ORIGIN = "the packaged denoiser"
# Of its tensors, as checkpoint.weights_sha256 computes it.
SHA256 = "c2487318a52824416ab9656bdb6151a5a653278147097741cbab6227cec98c0b"


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
