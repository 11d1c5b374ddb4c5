"""Pictures of a run: what its method is given and what it predicts, of the same held-out images at a few moments; and
the features of their patches as colours.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dsdmae_cli.data.augment import prepare
from dsdmae_cli.data.source import seeded
from dsdmae_cli.evaluation.patches import colours, following
from dsdmae_cli.figures.moments import Moments
from dsdmae_cli.figures.sheet import PATCHES, moments, strips, tiles
from dsdmae_cli.runs.observers.base import Observer
from dsdmae_cli.runtime import autocast

if TYPE_CHECKING:
    from dsdmae_cli.runs.run import Run

_PARTS = 4  # a picture after each quarter of the run, and one before it
_FEWEST = 4  # rows and columns of patches; the colours of fewer show no shape
_ROW = "patches"


class Pictures(Observer):
    """Draws Method.show, nothing where a method shows nothing; and patches, where features are what it learns.

    Args:
        images: a few held-out ones, on the device.
        folder: that receives the files.
    """

    def __init__(self, images: UInt8[Tensor, "n c h w"], folder: Path) -> None:
        self.images = images
        self.moments = Moments(folder)
        self.patches = Moments(folder, PATCHES)

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
        tokens = self._tokens(run, images)
        run.method.train()
        if not run.main:
            return
        step = run.trainer.step
        with run.report.spared(f"the picture of step {step}"):
            if shown:
                run.pictured(self.moments.add(step, shown, images), step)
            if tokens is not None and bool(tokens.isfinite().all()):
                rows = {_ROW: self._coloured(tokens, images, step)}
                run.pictured(self.patches.add(step, rows, images), step)

    def _tokens(self, run: Run, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b rows columns d"] | None:
        encoder = run.method.encoder()
        if not run.method.learns_features or min(encoder.grid) < _FEWEST:
            return None
        with autocast(images.device, run.runtime.precision):
            return encoder(images).float().unflatten(1, encoder.grid)

    def _coloured(
        self, tokens: Float[Tensor, "b rows columns d"], images: Float[Tensor, "b c h w"], step: int
    ) -> Float[Tensor, "b 3 h w"]:
        """Their components, in the colours of the moment before as far as they are the same."""
        rgb = colours(tokens.cpu().numpy()).rgb
        # Of the file, not of memory: a run that was resumed has no other, and draws the same.
        if earlier := [file for at, file in moments(self.patches.folder, patches=True) if at < step]:
            rgb = following(rgb, _read(earlier[-1], rgb.shape[:3]))
        pixels = torch.from_numpy(rgb).permute(0, 3, 1, 2) * 2 - 1
        return F.interpolate(pixels, images.shape[-2:], mode="nearest-exact")


def _read(file: Path, shape: tuple[int, ...]) -> Float[np.ndarray, "n rows columns 3"]:
    """The colours of a moment's patches, from the middle of each."""
    n, rows, columns = shape
    [strip] = [image for name, image in strips(file) if name == _ROW]
    small = [np.asarray(tile.resize((columns, rows), Image.Resampling.NEAREST)) for tile in tiles(strip, n)]
    return np.stack(small).astype(np.float32) / 255
