"""What the tasks came to: scores by network, number of labels and way of judging, and what pre-training gained.

At each number of labels a network is judged the way that is best for it on held-out training images, averaged over the
seeds; the test images have no say. Gains are paired by seed: one seed gives both networks the same labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dsdmae_cli.evaluation.probes import best_of
from dsdmae_cli.evaluation.statistics import Summary, summarise
from dsdmae_cli.runs.rundir import RESULT, RunDir
from dsdmae_cli.worth.tasks import Contender, Question, Task, Way


@dataclass
class Scores:
    """Of one network, one number of labels and one way of judging, by seed.

    Attributes:
        top1: on the test images, from 0 to 1.
        held_out: on held-out training images; without it a way cannot be chosen.
        seconds, flops: of all seeds together.
    """

    top1: dict[int, float] = field(default_factory=dict)
    held_out: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    flops: float = 0.0

    @property
    def summary(self) -> Summary:
        """Mean and 95% interval over the seeds."""
        return summarise(list(self.top1.values()))


@dataclass(frozen=True)
class Gain:
    """What one network has over another with so many labels, each judged its best way.

    Attributes:
        mean: difference of test accuracies, from -1 to 1.
        interval: 95%, the wider of two: over the seeds, paired, and of so many test images, as if the two networks were
            judged by different ones (wider than the truth); None for a single seed.
    """

    labels: int
    share: float
    mean: float
    interval: tuple[float, float] | None

    @property
    def sign(self) -> int:
        """1 or -1 where the interval excludes no difference; 0 where it does not, or there is none."""
        if self.interval is None:
            return 0
        return (self.interval[0] > 0) - (self.interval[1] < 0)


@dataclass(frozen=True)
class Findings:
    """Everything that was found.

    Attributes:
        scores: by (contender's key, share, way).
        before: by contender's key: what a result says of its pre-training.
        chance: accuracy of one who always names the largest class of the test images.
        notes: what a reader has to know.
    """

    question: Question
    scores: dict[tuple[str, float, Way], Scores]
    before: dict[str, dict[str, Any]]
    test_images: int
    chance: float = 0.0
    notes: tuple[str, ...] = ()

    def of(self, contender: Contender, share: float) -> dict[Way, Scores]:
        """By way of judging."""
        return {way: s for (key, part, way), s in self.scores.items() if (key, part) == (contender.key, share)}

    def best_way(self, contender: Contender, share: float) -> Way | None:
        """The way with all seeds that is best on held-out images; where none were held out, the linear probe."""
        ways = self.of(contender, share)
        if not ways:
            return None
        # A way that the budget left without some seeds cannot be compared with one that has them all.
        most = max(len(s.top1) for s in ways.values())
        ways = {way: s for way, s in ways.items() if len(s.top1) == most}
        known = {way: float(np.mean(list(s.held_out.values()))) for way, s in ways.items() if s.held_out}
        if not known:
            return next(iter(ways))
        best: Way = best_of(known)
        return best

    def best(self, contender: Contender, share: float) -> Scores | None:
        """The scores of that way."""
        way = self.best_way(contender, share)
        return None if way is None else self.scores[contender.key, share, way]

    def gains(self, of: Contender, over: Contender) -> list[Gain]:
        """With every number of labels for which both have a score."""
        found = []
        for share, labels in zip(self.question.shares, self.question.labels, strict=True):
            one, other = self.best(of, share), self.best(over, share)
            if one is None or other is None:
                continue
            seeds = sorted(one.top1.keys() & other.top1.keys())
            gain = summarise([one.top1[seed] - other.top1[seed] for seed in seeds])
            half = None if gain.half is None else max(gain.half, self._half_of_images(one, other))
            interval = None if half is None else (gain.mean - half, gain.mean + half)
            found.append(Gain(labels, share, gain.mean, interval))
        return found

    def _half_of_images(self, one: Scores, other: Scores) -> float:
        if not self.test_images:
            return 0.0
        p, q = (float(np.mean(list(scores.top1.values()))) for scores in (one, other))
        return 1.96 * math.sqrt((p * (1 - p) + q * (1 - q)) / self.test_images)


def read(question: Question, judged: Path, notes: Iterable[str] = (), chance: float = 0.0) -> Findings:
    """The findings of the tasks whose results are there."""
    scores: dict[tuple[str, float, Way], Scores] = {}
    before: dict[str, dict[str, Any]] = {}
    test_images = 0
    seeds = question.seed_numbers
    for task in [*question.probes("linear", seeds), *question.probes("ep", seeds), *question.finetunings()]:
        result = RunDir(judged / task.name).read_json(RESULT)
        if not result:
            continue
        before.setdefault(task.contender.key, {k: v for k, v in result.items() if k.startswith("pretrain_")})
        test_images = result["num_images"]
        for share, top1, held_out in _rows(task, question, result):
            cell = scores.setdefault((task.contender.key, share, task.way), Scores())
            cell.top1[task.seed] = top1
            if held_out is not None:
                cell.held_out[task.seed] = held_out
        # A linear probe's rows share one process: its cost stands with all labels.
        cost = scores[task.contender.key, task.share, task.way]
        cost.seconds += result["seconds"]
        cost.flops += result["flops"]
    return Findings(question, scores, before, test_images, chance, tuple(notes))


def _rows(task: Task, question: Question, result: dict[str, Any]) -> list[tuple[float, float, float | None]]:
    """(share, test accuracy, held-out accuracy) of a result."""
    if task.way == "linear":
        rows = zip(question.shares, result["few_shot"], strict=True)
        return [(share, row["values"][0], row["held_out"][0]) for share, row in rows]
    if task.way == "ep":
        return [(1.0, result["top1"], max(result["held_out"].values(), default=None))]
    return [(task.share, result["top1"], (result["validation"] or {}).get("accuracy"))]
