"""The encoder's features of held-out images, computed now and then and judged by several watchers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dsdmae_cli import distributed
from dsdmae_cli.data.augment import prepare
from dsdmae_cli.data.run_data import Rows
from dsdmae_cli.evaluation.features import mean_features
from dsdmae_cli.runs.observers.base import Observer

if TYPE_CHECKING:
    from dsdmae_cli.runs.run import Run

# How many held-out images a method measures itself on, at most.
MOST_MEASURED = 512


class Watcher(Protocol):
    """What one makes of the features."""

    def measure(self, run: Run, features: Float[Tensor, "n d"]) -> dict[str, float]:
        """Entries of the record."""

    def judge(self, run: Run, record: dict[str, float]) -> None:
        """After the record was logged; in the first process alone."""


class Features(Observer):
    """Runs the encoder over held-out images before the first step, then every few epochs and after the last.

    Args:
        images: at the run's image size, on the device.
        every: epochs.
        watchers: what is measured; their entries make one record.
    """

    def __init__(self, images: UInt8[Tensor, "n c h w"], every: int, watchers: Sequence[Watcher]) -> None:
        self.images, self.every, self.watchers = images, every, watchers

    def begin(self, run: Run) -> None:
        if run.trainer.step == 0:
            self.look(run)

    def epoch_ended(self, run: Run, epoch: int, last: bool) -> None:
        if last or epoch % self.every == 0:
            self.look(run)

    def look(self, run: Run) -> None:
        """Log what the features are worth now."""
        with run.trainer.gathered():
            self._look(run)

    def _look(self, run: Run) -> None:
        step = run.trainer.step
        record: dict[str, float] = {"step": step, "epoch": step / run.trainer.steps_per_epoch}
        features = features_of(run, self.images)
        if not bool(features.isfinite().all()):
            if run.main:
                run.report.warn(f"epoch {record['epoch']:.4g}: the features are not finite, and are not judged")
            return
        first, *others = [watcher.measure(run, features) for watcher in self.watchers]
        record |= first | _measured(run, self.images)
        for measured in others:
            record |= measured
        run.log(record)
        if run.main:
            for watcher in self.watchers:
                watcher.judge(run, record)


def features_of(run: Run, images: UInt8[Tensor, "n c s s"] | Rows) -> Float[Tensor, "n d"]:
    """Mean tokens of clean images, in the run's precision; each process computes its share of them, and all get all."""
    encoder, runtime, count, world = run.method.encoder(), run.runtime, len(images), distributed.world_size()
    mine = images
    if world > 1:
        # Shares of one length, as an exchange wants them: the last ones repeat the last image.
        length = -(-count // world)
        first = distributed.rank() * length
        rows = torch.arange(first, first + length, device=runtime.device).clamp(max=count - 1)
        mine = Rows(images.images, images.rows[rows]) if isinstance(images, Rows) else Rows(images, rows)
    return distributed.gather(mean_features(encoder, mine, max(runtime.micro_batch, 64), runtime.precision))[:count]


@torch.no_grad()
def _measured(run: Run, images: UInt8[Tensor, "n c h w"]) -> dict[str, float]:
    """What the method says of itself on held-out images."""
    run.method.eval()
    measured = run.method.measure(prepare(images[:MOST_MEASURED], run.method.encoder().image_size, "bicubic"))
    run.method.train()
    return measured
