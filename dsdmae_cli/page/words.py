"""How results are said, wherever they are: on pages and in summaries. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dsdmae_cli.config.describe import short
from dsdmae_cli.page import PAGE
from dsdmae_cli.report import number_of

# What each picture of a run's figures/ shows, in the order of its page.
FIGURES = {
    "segmentation": "test images, their masks, and what was answered",
    "confusion": "confusion matrix: true classes in rows, predicted ones in columns",
    "classes": "the score of each class",
    "mistakes": "the most confident mistakes: what was said, what it is",
    "choice": "what was chosen on held-out training images",
    "curves": "every head that was tried, by epoch",
    "pca": "features of test images, first two principal components",
    "tsne": "features of test images, t-SNE",
}


def page_line(folder: str | Path) -> list[str]:
    """The line for people that says where a run's page is; none where it could not be written."""
    page = Path(folder) / PAGE
    return [f"page           {page}"] if page.is_file() else []


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


def scored_words(result: Mapping[str, Any]) -> str:
    """The sentence that answers how good a judged network is; empty where there is nothing to say yet."""
    if rows := result.get("few_shot"):
        row = rows[-1]
        return (
            f"Top-1 accuracy {row['top1']:.1%} on {number_of(result['num_images'], 'test image')}, mean over"
            f" {number_of(row['draws'], 'draw')} of {number_of(row['images'], 'label')} ({100 * row['share']:.3g}%)."
        )
    for key, name in (("top1", "Top-1 accuracy"), ("mean_iou", "Mean IoU")):
        if result.get(key) is not None:
            low, high = result[f"{key}_interval"]
            return (
                f"{name} {result[key]:.1%} on {number_of(result['num_images'], 'test image')} (95% interval over test"
                f" images {low:.1%} to {high:.1%})."
            )
    return ""


def score_facts(result: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, value and what else of each score of a judged network; with few labels, of each number of them."""
    if rows := result.get("few_shot"):
        for row in rows:
            yield f"top-1, {number_of(row['images'], 'label')}", f"{row['top1']:.1%}", number_of(row["draws"], "draw")
        return
    for key, name in (("top1", "top-1"), ("mean_iou", "mean IoU"), ("pixel_accuracy", "pixels right")):
        if result.get(key) is not None:
            low, high = result[f"{key}_interval"]
            yield name, f"{result[key]:.1%}", f"{low:.1%} to {high:.1%}"
    if mean := per_class_words(result):
        yield "mean of the classes", mean, "each class counts the same"
    if top5 := top5_words(result):
        yield "top-5", top5, ""


def more_lines(result: Mapping[str, Any]) -> list[str]:
    """Lines of a summary, below top-1: what else is worth saying of how often the network is right."""
    found = {"mean per class": per_class_words(result), "top-5": top5_words(result)}
    return [f"{name:<14} {words}" for name, words in found.items() if words is not None]


def value_words(value: Any) -> str:
    """The value of a setting in a table."""
    return value if isinstance(value, str) else json.dumps(short(value), ensure_ascii=False)
