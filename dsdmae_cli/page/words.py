"""How results are said, wherever they are: on pages and in summaries. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What each picture of a run's figures/ shows, in the order of its page.
FIGURES = {
    "segmentation": "test images: the picture, its mask, what the probe says",
    "confusion": "confusion matrix: true classes in rows, predicted ones in columns",
    "classes": "each class: accuracy, or overlap (IoU) of labelled pixels",
    "mistakes": "the most confident mistakes: what was said, what it is",
    "choice": "what was chosen on held-out training images",
    "curves": "every head that was tried, by epoch",
    "pca": "features of test images, first two principal components",
    "tsne": "features of test images, t-SNE",
    "patches": "features of patches of held-out images: their first three principal components as colours",
}


def per_class_words(result: Mapping[str, Any]) -> str | None:
    """Mean accuracy of the classes, where it is another than top-1 to the digit shown; None where it is not."""
    mean, top1 = result.get("mean_per_class"), result.get("top1")
    if mean is None or top1 is None or f"{mean:.1%}" == f"{top1:.1%}":
        return None
    return f"{mean:.1%}"


def top5_words(result: Mapping[str, Any]) -> str | None:
    """Share of images whose class is among the five most likely; None where there are five classes or fewer, of which
    that says little or nothing."""
    classes = len(result.get("per_class") or range(100))
    if result.get("top5") is None or result.get("top5_k", 5) < 5 or classes <= 5:
        return None
    return f"{result['top5']:.1%}"


def more_lines(result: Mapping[str, Any]) -> list[str]:
    """Lines of a summary, below top-1: what else is worth saying of how often the network is right."""
    found = {"mean per class": per_class_words(result), "top-5": top5_words(result)}
    return [f"{name:<14} {words}" for name, words in found.items() if words is not None]
