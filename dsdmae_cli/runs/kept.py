"""Which checkpoint a run goes on from, what it keeps beside tensors, and which images the run learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dsdmae_cli import checkpoint, distributed
from dsdmae_cli.checkpoint import Checkpoint
from dsdmae_cli.data.base import ImageDataset
from dsdmae_cli.data.source import Source
from dsdmae_cli.errors import CheckpointError
from dsdmae_cli.report import Report
from dsdmae_cli.runs.rundir import RunDir


class Images(BaseModel):
    """Which images a run learns from, as its checkpoints keep it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    images: int
    identity: str

    def __str__(self) -> str:
        return f"{self.images} images ({self.identity[:12]})"


class Kept(BaseModel):
    """What a checkpoint keeps of a run beside tensors; its observers add their own."""

    model_config = ConfigDict(extra="allow", strict=True)

    seconds: float = Field(ge=0, allow_inf_nan=False)
    unreadable: dict[str, str]
    window_steps: int = Field(ge=0)
    scaler: dict[str, Any]
    micro_batch: int | None = Field(None, gt=0)  # these of versions that did not write them
    data: Images | None = None
    epoch_unseen: bool = False  # an error came before all observers had seen the end of an epoch


def chosen(directory: RunDir, report: Report) -> Checkpoint | None:
    """The newest whole checkpoint of a run as the first process finds it, which all of them read.

    Raises:
        CheckpointError: in all processes, where none is whole or one of them cannot read that very one.
    """
    folder = directory.checkpoints
    found: Checkpoint | None = None

    def choose() -> tuple[str, str] | None:
        nonlocal found
        found, complaints = checkpoint.load_newest(folder)
        for complaint in complaints:
            report.warn(f"{complaint}; going back to the one before")
        if found is None and complaints:
            raise CheckpointError(
                f"no checkpoint of {directory.path} is whole ({complaints[0]}); start a new run with --out"
            )
        return None if found is None else checkpoint.told_apart(folder, found.step)

    name_and_digest = distributed.main_says(choose)
    with distributed.one_fate():
        if name_and_digest is not None and distributed.rank():
            found = checkpoint.load_chosen(folder, *name_and_digest)
    return found


def read_kept(state: dict[str, Any], directory: Path) -> Kept:
    """What a checkpoint of the run in `directory` keeps.

    Raises:
        CheckpointError: an entry is missing or no such thing.
    """
    try:
        return Kept.model_validate(state)
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(
            f"the newest checkpoint of {directory} is damaged: {'.'.join(map(str, first['loc']))}:"
            f" {first['msg'].lower()}; remove its folder to use the one before"
        ) from error


def other_images(kept: Kept, now: Images, directory: Path, dataset: str) -> str | None:
    """What to say where a checkpoint is of a run on other images than these; None where it is not."""
    if kept.data is None or kept.data == now:
        return None
    return f"the images of {dataset} are not those that {directory} learned from: {kept.data} then, {now} now"


def agreed(dataset: ImageDataset, source: Source) -> Images:
    """Which images the run learns from. Processes that see others would train on them, each to its own end.

    Raises:
        DataError: in all processes, where they do not see the same.
    """
    advice = "give all machines the same copy of the dataset"
    found = Images(images=len(dataset), identity=dataset.identity())
    distributed.agree("images", str(found), advice)
    readable = source.batching.num_images
    distributed.agree("readable images", f"{readable} of {found.images}", advice)
    return found
