"""How results are said, wherever they are: on pages, in summaries, in cards. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Of the k-NN score that a run has on the way and at its end (evaluation/knn.py); a k-NN probe chooses among several.
NEIGHBOURS = 20


def per_class_words(result: Mapping[str, Any]) -> str | None:
    """Mean accuracy of the classes, where it is another than top-1 to the digit shown; None where it is not."""
    mean, top1 = result.get("mean_per_class"), result.get("top1")
    if mean is None or top1 is None or f"{mean:.1%}" == f"{top1:.1%}":
        return None
    return f"{mean:.1%}"


def top5_words(result: Mapping[str, Any]) -> str | None:
    """Share of images whose class is among the five most likely; None where there are five classes or fewer, of which
    that says little or nothing."""
    if result.get("top5") is None or len(result.get("per_class") or ()) <= result.get("top5_k", 5):
        return None
    return f"{result['top5']:.1%}"
