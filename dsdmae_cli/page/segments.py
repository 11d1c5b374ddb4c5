"""What a page says, beside its scores (words.py), of a network that labels pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dsdmae_cli.page.blocks import Block, Table

Result = Mapping[str, Any]


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
