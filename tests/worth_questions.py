"""A question of `dsdmae worth`, and results as its tasks leave them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsdmae_cli.config.compose import compose
from dsdmae_cli.config.schema import WORTH
from dsdmae_cli.worth.tasks import Contender, Question, Task

SCRATCH, RUN = Contender("scratch", "without pre-training", "scratch"), Contender("run", "pre-trained (r)", "runs/r")


def question(**changes: Any) -> Question:
    loaded = compose(WORTH, environ={}, base=({"data": {"dataset": "digits"}, "finetune": {"start": "runs/r"}}, "r"))
    plain = Question((SCRATCH, RUN), (0.1, 1.0), (140, 1400), 3, 60, "data", loaded.settings)
    return replace(plain, **changes)


def leave(
    folder: Path, task: Task, top1: float, held_out: float | None, shares: tuple[float, ...] = (0.1, 1.0)
) -> None:
    """A result as probe and finetune leave it; a linear probe's grows with the share."""
    result: dict[str, Any] = {"top1": top1, "num_images": 397, "seconds": 10.0, "flops": 1e12,
                              "pretrain_seconds": 60.0, "pretrain_flops": 5e12}  # fmt: skip
    if task.way == "linear":
        result["few_shot"] = [
            {"share": share, "images": 1400 * share, "top1": top1 * share**0.1, "values": [top1 * share**0.1],
             "held_out": [held_out]}
            for share in shares
        ]  # fmt: skip
    elif task.way == "ep":
        result["held_out"] = {} if held_out is None else {"0.5": 0.0, "2.0": held_out}
    else:
        result["validation"] = None if held_out is None else {"epoch": 3, "accuracy": held_out}
    path = folder / task.name
    path.mkdir(parents=True)
    (path / "result.json").write_text(json.dumps(result))
