"""Curves of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsdmae_cli.figures.page import blank, plain, save

# Shares of right answers, by what the records call them; they are drawn in percent beside the losses.
_ACCURACIES = {"accuracy": "training", "validation": "held-out", "knn": "k-NN"}
_NO_LOSS = {"step", "epoch", "lr", "images_per_second", "grad_norm", "skipped", "spread", "rank", *_ACCURACIES}


def curves(records: list[dict[str, Any]], path: Path) -> None:
    """Losses over steps, and beside them accuracies where they were measured, else the learning rate."""
    train = [r for r in records if "loss" in r]
    if not train:
        return
    figure = blank(9, 3.4)
    left, right = figure.subplots(1, 2)
    for name in [k for k in train[0] if k not in _NO_LOSS]:
        known = [r for r in train if name in r]
        left.plot([r["step"] for r in known], [r[name] for r in known], label=name, linewidth=1.3)
    left.set(xlabel="step", title="loss", yscale="log")
    left.legend(frameon=False)
    scored = {name: [r for r in records if name in r] for name in _ACCURACIES}
    scored = {name: known for name, known in scored.items() if known}
    for name, known in scored.items():
        marker = None if name == "accuracy" else "o"  # of every record, not of a few moments
        values = [100 * r[name] for r in known]
        right.plot([r["step"] for r in known], values, marker=marker, markersize=3, label=_ACCURACIES[name])
    if scored:
        only = next(iter(scored)) if len(scored) == 1 else ""
        right.set(xlabel="step", title=f"{_ACCURACIES[only]} accuracy, %" if only else "accuracy, %")
        if not only:
            right.legend(frameon=False)
    else:
        right.plot([r["step"] for r in train], [r["lr"] for r in train])
        right.set(xlabel="step", title="learning rate")
    for axes in (left, right):
        plain(axes)
    save(figure, path)
