"""Labels of every pixel of test images, whoever gives them: counted, named, some kept for pictures; and in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dsdmae_cli.data.masks import MaskedImages
from dsdmae_cli.data.open import choose
from dsdmae_cli.data.source import Unreadable
from dsdmae_cli.errors import DataError
from dsdmae_cli.evaluation.dense_features import Lens, Sees, cuts, seen
from dsdmae_cli.evaluation.segmentation import Counts
from dsdmae_cli.evaluation.windows import labels_of
from dsdmae_cli.files import aside
from dsdmae_cli.report import Report, number_of
from dsdmae_cli.segmentation.drawing import Shown

# Test images that are drawn beside their masks.
PICTURES = 6


@dataclass(frozen=True)
class Answers:
    """Of the images that could be read.

    Attributes:
        all_pixels: of their masks, void ones too.
        names: of the images, in the order of `counts`.
        windows: that the network saw.
        shown: some of them.
    """

    counts: Counts
    all_pixels: int
    names: list[str]
    windows: int
    shown: list[Shown]

    def save(self, path: Path) -> None:
        """Of every image, so that two results can be compared on the same ones (docs/segmentation.md)."""
        advice = "the result is whole; give the command again with another --out"
        with aside(path, advice) as partial, partial.open("wb") as file:
            np.savez_compressed(file, counts=self.counts.images, images=np.array(self.names, dtype=np.str_))


@torch.no_grad()
def answer(
    dataset: MaskedImages,
    indices: Sequence[int],
    network: Sees,
    lens: Lens,
    scores_of: Callable[[Float[Tensor, "n t d"]], Float[Tensor, "n t c"]],
    unreadable: Unreadable,
    report: Report,
    *,
    device: torch.device,
    precision: str,
    batch_size: int,
    grid: tuple[int, int],
    pictures: int = 0,
) -> Answers:
    """Labels of every pixel, in its mask's own size, by the largest of the scores of the windows' patches.

    Args:
        network: in eval mode, on the device.
        scores_of: scores of classes from what the network gives.
        report: shows how far it is.
        grid: rows and columns of a window's patches.
        pictures: how many images to keep for pictures.

    Raises:
        DataError: no image can be read; and see dense_features.cuts.
        RunFailed: see dense_features.seen.
    """
    to_show = {indices[i] for i in choose(len(indices), pictures, 0, "pictures")} if pictures else set()
    counts = Counts.none(len(dataset.legend.classes))
    all_pixels, windows, names, shown = 0, 0, [], []
    coming = seen(network, cuts(dataset, indices, lens, unreadable), device, precision, batch_size)
    for cut, tokens in report.watched(coming, "labels of", f"{len(indices):,} images", len(indices)):
        grids = scores_of(tokens).unflatten(1, grid)
        size = (cut.mask.shape[0], cut.mask.shape[1])
        predicted = labels_of(grids, cut.frame, size)[None]
        mask = torch.from_numpy(cut.mask)[None].to(predicted.device)
        counts, all_pixels = counts.with_images(predicted, mask), all_pixels + cut.mask.size
        windows += len(cut.windows)
        names.append(dataset.name(cut.index))
        if cut.index in to_show:
            shown.append(Shown(dataset.load(cut.index), cut.mask, predicted[0].cpu().numpy()))
    if not names:
        raise DataError(f"none of {number_of(len(indices), 'image')} can be read (first: {unreadable.first})")
    return Answers(counts, all_pixels, names, windows, shown)


def score_lines(result: dict[str, Any]) -> list[str]:
    """The lines of a summary: mean IoU, pixels right, and IoU class by class."""
    (low, high), (low_right, high_right) = result["mean_iou_interval"], result["pixel_accuracy_interval"]
    named = zip(result["classes"], result["per_class_iou"], result["pixels_per_class"], strict=True)
    judged = max(1, sum(result["pixels_per_class"]))
    widest = max(map(len, result["classes"]))
    right = f"{result['pixel_accuracy']:.1%} ({low_right:.1%} to {high_right:.1%})"
    return [
        f"mean IoU       {result['mean_iou']:.1%} (95% interval over test images {low:.1%} to {high:.1%})",
        f"pixels right   {right}, void {result['void_share']:.1%} left out",
        *(f"  {name:<{widest}}  IoU {'none ' if iou is None else f'{iou:5.1%}'}   {pixels / judged:6.1%} of the pixels"
          for name, iou, pixels in named),
    ]  # fmt: skip
