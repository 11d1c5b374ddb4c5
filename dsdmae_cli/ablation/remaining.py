"""How long a study will take yet, in words."""

from __future__ import annotations

import statistics as st
import time
from collections.abc import Callable

from dsdmae_cli.ablation.study import Row
from dsdmae_cli.ablation.sweep import Point
from dsdmae_cli.ablation.trial import Job
from dsdmae_cli.report import duration


def time_left(rows: list[Row], jobs: list[tuple[Row, Job]], work: Callable[[Point], float], judges: bool) -> str:
    """ "3 min 04 s left"; "... left of pre-training" while no probe has shown its length; "" while nothing is known.

    Args:
        rows: all trials, those included that a search has not drawn yet.
        jobs: those at work in this process.
        work: GFLOP of a point's run: pre-training goes by the speed so far, each run weighed by its work.
        judges: whether runs are probed or fine-tuned afterwards: each as long as the mean of those that were.
    """
    now = time.monotonic()
    done = [row for row in rows if row.state == "done"]
    to_do = [row for row in rows if row.state in ("waiting", "running")]
    fresh = [(row, job) for row, job in jobs if job.share_here > 0.05 and not job.waits]
    gflop = sum(row.facts["gflop"] for row in done) + sum(job.share_here * work(row.point) for row, job in fresh)
    seconds = sum(row.facts["seconds"] for row in done) + sum((job.judged_since or now) - job.began for _, job in fresh)
    gflop_left = sum(work(row.point) for row in to_do) - sum(job.share * work(row.point) for row, job in jobs)
    judged = [known for row in done if (known := row.facts.get("judged_seconds")) is not None]
    if not gflop or (gflop_left <= 0 and judges and not judged):
        return ""
    left = gflop_left * seconds / gflop
    if judged:
        mean = st.mean(judged)
        begun = [now - job.judged_since for _, job in jobs if job.judged_since is not None]
        left += mean * len(to_do) - sum(min(mean, spent) for spent in begun)
    at_once = max(1, sum(row.state == "running" for row in rows))
    return f"{duration(left / at_once)} left{' of pre-training' if judges and not judged else ''}"
