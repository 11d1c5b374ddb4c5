"""Pictures of a run: what its method is given and what it predicts, of the same held-out images at a few moments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import UInt8
from torch import Tensor

from dsdmae_cli.data.augment import prepare
from dsdmae_cli.data.source import seeded
from dsdmae_cli.figures.moments import Moments
from dsdmae_cli.runs.observers.base import Observer

if TYPE_CHECKING:
    from dsdmae_cli.runs.run import Run

_PARTS = 4  # a picture after each quarter of the run, and one before it


class Pictures(Observer):
    """Draws Method.show; nothing where a method shows nothing.

    Args:
        images: a few held-out ones, on the device.
        folder: that receives the files.
    """

    def __init__(self, images: UInt8[Tensor, "n c h w"], folder: Path) -> None:
        self.images = images
        self.moments = Moments(folder)

    def begin(self, run: Run) -> None:
        if run.trainer.step == 0:
            self.look(run)

    def stepped(self, run: Run, step: int) -> None:
        total = run.trainer.total_steps
        if step in {round(total * part / _PARTS) for part in range(1, _PARTS + 1)}:
            self.look(run)

    def look(self, run: Run) -> None:
        """A picture of the images as the network sees them now."""
        with run.trainer.gathered(), torch.no_grad():
            self._look(run)

    def _look(self, run: Run) -> None:
        images = prepare(self.images, run.method.encoder().image_size, "bicubic")
        run.method.eval()
        views = run.method.as_views(images)
        shown = run.method.show(views, run.method.corrupt(views, seeded(images.device, 0)))
        run.method.train()
        if shown and run.main:
            with run.report.spared(f"the picture of step {run.trainer.step}"):
                run.pictured(self.moments.add(run.trainer.step, shown, images), run.trainer.step)
