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
    speed = _speed(done, jobs, work, now)
    gflop_left = sum(work(row.point) for row in to_do) - sum(job.share * work(row.point) for row, job in jobs)
    judged = [known for row in done if (known := row.facts.get("judged_seconds")) is not None]
    unknown = judges and not judged
    if not speed or (gflop_left <= 0 and unknown):
        return ""
    left = gflop_left / speed + (_judging(st.mean(judged), len(to_do), jobs, now) if judged else 0)
    at_once = max(1, sum(row.state == "running" for row in rows))
    return f"{duration(left / at_once)} left{' of pre-training' if unknown else ''}"


def _speed(done: list[Row], jobs: list[tuple[Row, Job]], work: Callable[[Point], float], now: float) -> float:
    """GFLOP a second of pre-training so far; 0 while nothing is known. Of runs at work, what this process did of them
    counts, once it is more than their beginning.
    """
    fresh = [(row, job) for row, job in jobs if job.share_here > 0.05 and not job.waits]
    gflop = sum(row.facts["gflop"] for row in done) + sum(job.share_here * work(row.point) for row, job in fresh)
    seconds = sum(row.facts["seconds"] for row in done) + sum((job.judged_since or now) - job.began for _, job in fresh)
    return float(gflop / seconds) if gflop and seconds else 0.0


def _judging(mean: float, number: int, jobs: list[tuple[Row, Job]], now: float) -> float:
    """Seconds for the judging of so many runs, of which some have begun."""
    begun = [now - job.judged_since for _, job in jobs if job.judged_since is not None]
    return mean * number - sum(min(mean, spent) for spent in begun)
