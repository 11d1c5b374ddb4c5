"""What each process of a group runs in test_every_method.py: every method trained by `pretrain`, to its end, and again
with a last process that sees other checkpoints or images.

    torchrun ... every_method.py FOLDER DIGITS '{"METHOD": [assignments]}'

FOLDER gets a run METHOD of each, and rankN.json: what process N was told, by method and case.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import train
from torch import Generator, Tensor

from dsdmae_cli import checkpoint, distributed
from dsdmae_cli.data import open as data
from dsdmae_cli.data.base import Subset
from dsdmae_cli.data.source import MicroBatch
from dsdmae_cli.engine import Trainer
from dsdmae_cli.errors import DsdmaeError
from dsdmae_cli.recipes import pretrain
from dsdmae_cli.runs.rundir import RunDir

BATCH = 8
OTHERS = ("nothing", "an older one", "other images")  # what the last process sees


# -- one process that draws as several


def joined(parts: list[Any], images: int) -> Any:
    """The corruption of a batch out of those of its parts; what is not an image's each is the same in all of them.

    Args:
        images: of a part.
    """
    first = parts[0]
    if isinstance(first, tuple):
        return type(first)(*(joined(list(values), images) for values in zip(*parts, strict=True)))
    return torch.cat(parts) if isinstance(first, Tensor) and len(first) == images else first


@contextmanager
def drawing_as(world: int) -> Iterator[None]:
    """In it one process has its batch whole, each part of it augmented and corrupted by the seed of the process that
    would have it."""
    init, step, corrupt = Trainer.__init__, Trainer._step, Trainer._corrupt
    parts: list[MicroBatch] = []

    def in_parts(self: Trainer, *given: Any) -> None:
        init(self, *given)
        self.source.recut(BATCH // world)

    def at_once(self: Trainer, micro_batches: Iterator[MicroBatch]) -> None:
        parts[:] = micro_batches
        assert len(parts) == world
        step(self, iter([MicroBatch(torch.cat([part.images for part in parts]), parts[0].seed)]))

    def part_by_part(self: Trainer, batch: MicroBatch, generator: Generator) -> Any:
        def each() -> list[Any]:
            return [corrupt(self, part, generator.manual_seed(part.seed)) for part in parts]

        # What processes average of their draws is known when each has drawn.
        drawn: list[Tensor] = []

        def kept(tensor: Tensor) -> Tensor:
            drawn.append(tensor.clone())
            return tensor

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(distributed, "mean_", kept)
            each()
            patched.setattr(distributed, "mean_", lambda tensor: torch.stack(drawn).mean(dim=0))
            return joined(each(), BATCH // world)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "__init__", in_parts)
        patched.setattr(Trainer, "_step", at_once)
        patched.setattr(Trainer, "_corrupt", part_by_part)
        yield


# -- several processes


@contextmanager
def seeing(case: str, checkpoints: Path, kept: Path) -> Iterator[None]:
    """In it this process sees fewer images than the others, or no checkpoint of theirs, or none but an older one."""
    with pytest.MonkeyPatch.context() as patched:
        if case == "other images":
            open_all = data.open_all

            def fewer(settings: Any) -> Any:
                whole = open_all(settings)
                return Subset(whole, np.arange(len(whole) - 1))

            patched.setattr(pretrain, "open_all", fewer)
        else:
            _, older = checkpoint.newest_first(checkpoints)
            kept.mkdir()
            if case == "an older one":
                (kept / older.name).symlink_to(older)
            init = RunDir.__init__

            def elsewhere(self: RunDir, path: Path) -> None:
                init(self, path)
                self.checkpoints = kept

            patched.setattr(RunDir, "__init__", elsewhere)
        yield


def told(case: str, run: Path, digits: Path, given: list[str]) -> str:
    """What this process is told where the last one sees something else; nothing where all goes well."""
    last = distributed.rank() == distributed.world_size() - 1
    resume = case != "other images"
    out = run if resume else run.with_name(f"{run.name} on other images")
    kept = run.with_name(f"{run.name} {case}")
    with seeing(case, run / "checkpoints", kept) if last else nullcontext():
        try:
            train(digits, out, *given, method=run.name, resume=resume)
        except DsdmaeError as error:
            return f"{type(error).__name__}: {error}"
    return ""


def main(folder: Path, digits: Path, methods: dict[str, list[str]]) -> None:
    found: dict[str, dict[str, str]] = {}
    for name, given in methods.items():
        run = folder / name
        train(digits, run, *given, method=name)
        if distributed.rank() == 0:
            (run / "result.json").unlink()  # as if it had been stopped before its end
        distributed.from_main(None)
        found[name] = {case: told(case, run, digits, given) for case in OTHERS}
    (folder / f"rank{distributed.rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    with distributed.process_group(torch.device("cpu")):
        main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
