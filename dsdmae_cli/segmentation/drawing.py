"""Pictures of segmentation: image, mask and answer side by side, in the colours of the classes."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from dsdmae_cli.data.masks import VOID
from dsdmae_cli.evaluation.segmentation import SegmentationScores
from dsdmae_cli.figures import scores as figures
from dsdmae_cli.figures.moments import visible
from dsdmae_cli.figures.page import blank, save
from dsdmae_cli.figures.scores import shortened
from dsdmae_cli.report import Report

# The golden ratio's turn gives neighbours in the list hues far apart.
_TURN = 0.618034
_VOID_COLOUR = (255, 255, 255)
_MOST_NAMED = 40


class Shown(NamedTuple):
    """A test image, its mask, and what was answered."""

    image: UInt8[np.ndarray, "h w c"]
    mask: UInt8[np.ndarray, "h w"]
    predicted: UInt8[np.ndarray, "h w"]


def class_colours(num_classes: int) -> UInt8[np.ndarray, "256 3"]:
    """A colour for each label, told apart by hue and lightness, the same wherever there are as many classes or more;
    white for VOID.
    """
    colours = np.zeros((256, 3), dtype=np.uint8)
    for label in range(num_classes):
        hue, level = (0.58 + label * _TURN) % 1.0, (0.5, 0.36, 0.66)[label % 3]
        colours[label] = [round(255 * part) for part in colorsys.hls_to_rgb(hue, level, 0.62)]
    colours[VOID] = _VOID_COLOUR
    return colours


def draw_segmentation(shown: Sequence[Shown], classes: Sequence[str], path: Path) -> None:
    """Rows of image, mask and prediction, void white in the mask and where it is nobody's to judge.

    Args:
        shown: one or more.
    """
    from matplotlib.patches import Patch

    colours = class_colours(len(classes))
    tallest = max(one.mask.shape[0] / one.mask.shape[1] for one in shown)
    figure = blank(9.6, len(shown) * 2.6 * tallest + 0.5)
    axes = figure.subplots(len(shown), 3, squeeze=False)
    for row, one in zip(axes, shown, strict=True):
        image = visible(one.image.transpose(2, 0, 1)).transpose(1, 2, 0)
        answered = np.where(one.mask == VOID, VOID, one.predicted)
        for place, picture in zip(row, (image, colours[one.mask], colours[answered]), strict=True):
            place.imshow(picture, interpolation="nearest" if picture.shape[1] <= 256 else "antialiased")
            place.set(xticks=[], yticks=[])
            place.spines[:].set_color("#cccccc")
    for place, name in zip(axes[0], ("image", "mask", "answer"), strict=True):
        place.set_title(name, fontsize=11)
    if len(classes) <= _MOST_NAMED:
        named = [Patch(color=colours[label] / 255, label=shortened(name)) for label, name in enumerate(classes)]
        figure.legend(handles=named, loc="outside right center", frameon=False, fontsize=9)
    save(figure, path)


def draw_scores(
    folder: Path, classes: Sequence[str], shown: Sequence[Shown], scores: SegmentationScores, report: Report
) -> None:
    """The figures of a result; one that cannot be drawn is a warning."""
    with report.spared("the picture of the test images"):
        draw_segmentation(shown, classes, folder / "segmentation.png")
    with report.spared("the picture of the confusion matrix"):
        figures.confusion(scores.confusion, classes, folder / "confusion.png", of="pixel")
    with report.spared("the picture of the classes"):
        figures.per_class(scores.per_class_iou, classes, folder / "classes.png", what="IoU")
