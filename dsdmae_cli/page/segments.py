"""What a page says of a probe that labels pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dsdmae_cli.page.blocks import Block, Table

Result = Mapping[str, Any]


def answer(result: Result) -> str:
    """The one thing to know; empty where no pixels were labelled."""
    if result.get("mean_iou") is None:
        return ""
    low, high = result["mean_iou_interval"]
    return (
        f"Mean IoU {result['mean_iou']:.1%} on {result['num_images']:,} test images (95% interval over test images"
        f" {low:.1%} to {high:.1%})."
    )


def facts(result: Result) -> Iterator[tuple[str, str, str]]:
    """The figures that stand out."""
    for title, key in (("mean IoU", "mean_iou"), ("pixels right", "pixel_accuracy")):
        if result.get(key) is not None:
            low, high = result[f"{key}_interval"]
            yield title, f"{result[key]:.1%}", f"{low:.1%} to {high:.1%}"


def sections(result: Result) -> Iterator[tuple[str, Sequence[Block]]]:
    """IoU of each class."""
    if result.get("mean_iou") is None:
        return
    judged = max(1, sum(result["pixels_per_class"]))
    rows = [
        (str(name), "none" if iou is None else f"{iou:.1%}", f"{pixels / judged:.1%}")
        for name, iou, pixels in zip(
            result["classes"], result["per_class_iou"], result["pixels_per_class"], strict=True
        )
    ]
    yield "Classes", [Table(("class", "IoU", "of the judged pixels"), rows, frozenset({0}))]
