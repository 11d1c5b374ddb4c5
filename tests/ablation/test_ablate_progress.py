"""What is seen of a study while it runs: a table that keeps its columns at any width."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
from rich.console import Console

from dsdmae_cli.ablation.definition import find_metric
from dsdmae_cli.ablation.progress import RichProgress, View
from dsdmae_cli.ablation.study import Row

REASON = "the last 24 steps had a non-finite loss or gradient and were skipped; lower --lr, or set optim.clip_grad"


class AtWork:
    """What the table asks of a job."""

    waits, doing, share = False, "pretrain", 0.34
    shown = {"loss": 0.1234, "knn": 0.5}  # noqa: RUF012
    began = time.monotonic() - 100


def drawn(width: int, rows: list[Row], jobs: dict[int, Any]) -> list[str]:
    progress = RichProgress.__new__(RichProgress)  # without the live display, which needs a terminal
    progress.metric, progress.console = find_metric("knn"), Console(width=width, height=20, file=io.StringIO())
    progress.console.print(progress._table(View(rows, jobs, left="3 min 04 s left")))
    return progress.console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_a_long_reason_takes_no_column_from_the_others(width: int) -> None:
    """At 80 columns one failed trial left 'progress' alone, beside a cut name of the last setting."""
    point = {"mask-ratio": "0.75", "optim.weight_decay": "0.05"}
    rows = [
        Row(0, point, 0, "done", 0.512, {"seconds": 100.0}),
        Row(1, point, 1, "failed", reason=REASON),
        Row(2, point, 2, "running", mine=True),
        Row(3, point, 3, "waiting"),
    ]
    head, done, failed, running, waiting, *caption = drawn(width, rows, {2: AtWork()})
    assert max(map(len, (head, done, failed, running, waiting, *caption))) <= width
    assert head.split()[0] == ("mask-ratio" if width > 80 else "mask…tio")
    assert head.split()[-1] == "progress"
    assert done.split() == ["0.75", "0.05", "0", "done", "51.20%", "1", "min", "40", "s"]
    assert failed.split()[:5] == ["0.75", "0.05", "1", "failed", "the"]
    assert (REASON in failed) == (width == 200)
    assert running.split()[:5] == ["0.75", "0.05", "2", "pretrain", "34%"]
    assert waiting.split() == ["0.75", "0.05", "3", "waiting"]
    assert "1 done, 1 running, 1 waiting, 1 failed" in " ".join(caption)


def test_what_the_screen_does_not_hold_is_counted() -> None:
    rows = [Row(i, {"lr": f"0.{i}"}, 0, "waiting") for i in range(40)]
    lines = drawn(80, rows, {})
    assert len(lines) <= 20
    assert "25 not shown" in " ".join(" ".join(lines).split())
