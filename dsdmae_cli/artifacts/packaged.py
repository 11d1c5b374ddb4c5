"""The denoisers that ship with the program: where they are and what they are called. No torch here.

Two of one architecture: white noise and what happens to photographs want different things of a small network
(docs/results/denoiser-cpu.md), and which of them a picture carries can be told (pictures/traces.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

from dsdmae_cli.errors import CheckpointError


@dataclass(frozen=True)
class Packaged:
    """Weights that ship.

    Attributes:
        file: its name.
        word: how a command line names it where a run or a file may stand.
        origin: for messages.
        sha256: of its tensors, as checkpoint.weights_sha256 computes it.
    """

    file: str
    word: str
    origin: str
    sha256: str

    def find(self) -> Traversable:
        """The file.

        Raises:
            CheckpointError: this installation has none.
        """
        file = files("dsdmae_cli") / "weights" / self.file
        if not file.is_file():
            raise CheckpointError(
                f"this installation has no {self.origin.removeprefix('the ')}; give --run DIR or --weights FILE, or"
                " install dsdmae again"
            )
        return file

    def read(self) -> bytes:
        """What it holds.

        Raises:
            CheckpointError: this installation has none.
        """
        return self.find().read_bytes()


PHOTOGRAPHS = Packaged(
    "denoiser.safetensors",
    "packaged",
    "the packaged denoiser",
    "c2487318a52824416ab9656bdb6151a5a653278147097741cbab6227cec98c0b",
)
WHITE_NOISE = Packaged(
    "white-noise.safetensors",
    "packaged-white-noise",
    "the packaged denoiser of white noise",
    "e9641e93bd6df7962cefd309766f0cfa537285fcf3a0c842f9ab1d7b675cf19f",
)
ALL = (PHOTOGRAPHS, WHITE_NOISE)
