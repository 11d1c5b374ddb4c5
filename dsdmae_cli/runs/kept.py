"""What a checkpoint keeps of a run beside tensors, and which images the run learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dsdmae_cli import distributed
from dsdmae_cli.data.base import ImageDataset
from dsdmae_cli.data.source import Source
from dsdmae_cli.errors import CheckpointError


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
    micro_batch: int | None = Field(None, gt=0)  # these two of versions that did not write them
    data: Images | None = None


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
