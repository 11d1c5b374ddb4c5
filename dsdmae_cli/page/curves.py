"""A run's figures as charts against epochs; however long it is, they stay small."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dsdmae_cli.evaluation.closing import NEIGHBOURS
from dsdmae_cli.page.chart import MARKS, QUIET, Chart, Mark, Point, Rule, Series

MOST_POINTS = 300
# Shares of right answers, by what the records call them.
ACCURACIES = {
    "knn": f"k-NN (k = {NEIGHBOURS})",
    "validation": "held-out images",
    "accuracy": "training images",
    "mean_iou": "held-out images, mean IoU",
}
_AXES = {"step", "epoch"}
_UNITS = {"lr", "images_per_second", "grad_norm", "skipped", "spread", "rank", *ACCURACIES}
_MOST_MEASURED = 6
# A range of losses above which equal steps of the axis are equal factors.
_WIDE = 10


class Line:
    """Points of one figure, MOST_POINTS at most: means of so many neighbours as that takes, all of one number; what was
    measured before the first step stands for itself."""

    def __init__(self) -> None:
        self.first: Point | None = None
        self.newest: Point | None = None
        self.means: list[Point] = []
        self.each = 1  # how many neighbours a mean is of
        self.waiting: list[Point] = []

    def add(self, point: Point) -> None:
        """One more, in the order of x."""
        self.newest = point
        if point[0] == 0:
            self.first = point
            return
        self.waiting.append(point)
        if len(self.waiting) == self.each:
            self.means.append(_mean(self.waiting))
            self.waiting = []
        if len(self.means) > MOST_POINTS:
            pairs = list(zip(self.means[::2], self.means[1::2], strict=False))
            rest = self.means[2 * len(pairs) :]
            self.waiting = rest * self.each + self.waiting
            self.means, self.each = [_mean(pair) for pair in pairs], 2 * self.each

    @property
    def points(self) -> list[Point]:
        """What is drawn."""
        first = [] if self.first is None else [self.first]
        return [*first, *self.means, *([_mean(self.waiting)] if self.waiting else [])]


def _mean(points: Sequence[Point]) -> Point:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


class Curves:
    """The figures of a run by name."""

    def __init__(self, records: Iterable[Mapping[str, Any]] = ()) -> None:
        self.lines: dict[str, Line] = {}
        self.losses: list[str] = []
        self.measured: list[str] = []
        self.epoch = 0.0
        self.steps_per_epoch: float | None = None
        for record in records:
            self.add(record)

    def add(self, record: Mapping[str, Any]) -> None:
        """A record as metrics.jsonl has it."""
        self.epoch = float(record.get("epoch", self.epoch))
        if self.epoch and record.get("step"):
            self.steps_per_epoch = record["step"] / self.epoch
        kind = self.losses if "loss" in record else self.measured
        for name, value in record.items():
            if name in _AXES or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if name not in _UNITS and name not in kind:
                kind.append(name)
            self.lines.setdefault(name, Line()).add((self.epoch, float(value)))

    def points(self, name: str) -> list[Point]:
        """Of a figure: epoch and value."""
        return self.lines[name].points if name in self.lines else []

    def last(self, name: str) -> float | None:
        """The newest value; None where there is none or it is no number."""
        newest = self.lines[name].newest if name in self.lines else None
        return newest[1] if newest is not None and math.isfinite(newest[1]) else None

    def first(self, name: str) -> float | None:
        """The value before the first step."""
        first = self.lines[name].first if name in self.lines else None
        return first[1] if first is not None and math.isfinite(first[1]) else None

    def charts(self, before: str = "untrained") -> list[Chart]:
        """All that there is to draw, empty figures too.

        Args:
            before: what the network was as it began.
        """
        return [
            self._losses(),
            self._accuracies(before),
            self._one("rank", "rank", "directions in which features vary (effective rank)", mark=True),
            self._one("spread", "spread", "spread of the features (standard deviation)", mark=True),
            *(self._one(f"held-out-{i}", name, f"{name.replace('_', ' ')}, held-out images", mark=True)
              for i, name in enumerate(self.measured[:_MOST_MEASURED])),
            self._one("learning-rate", "lr", "learning rate"),
            self._one("gradient", "grad_norm", "norm of the gradient", log=True),
        ]  # fmt: skip

    def _losses(self) -> Chart:
        series = [
            Series(name if len(self.losses) > 1 else "", self.points(name), colour=number)
            for number, name in enumerate(self.losses)
        ]
        values = [y for s in series for _, y in s.points if math.isfinite(y)]
        wide = bool(values) and min(values) > 0 and max(values) > _WIDE * min(values)
        return Chart("loss", "training loss", "epoch", series, log_y=wide, x_from=0)

    def _accuracies(self, before: str) -> Chart:
        series, rules = [], []
        for number, (name, words) in enumerate(ACCURACIES.items()):
            points = [(x, 100 * y) for x, y in self.points(name)]
            if points:
                mark = "" if name == "accuracy" or len(points) > 60 else MARKS[number]
                series.append(Series(words, points, mark=mark, colour=number))
        first = self.first("knn")
        if first is not None:
            rules.append(Rule(f"{before}: {100 * first:.1f}%", 100 * first, colour=QUIET))
        title = "mean IoU, and share of right pixels, %" if self.points("mean_iou") else "accuracy, %"
        return Chart("accuracy", title, "epoch", series, rules, limits=(0, 100), x_from=0)

    def _one(self, key: str, name: str, title: str, *, mark: bool = False, log: bool = False) -> Chart:
        points = self.points(name)
        values = [y for _, y in points if math.isfinite(y)]
        wide = log and bool(values) and min(values) > 0 and max(values) > _WIDE * min(values)
        marked: Mark = "circle" if mark and len(points) <= 60 else ""
        return Chart(key, title, "epoch", [Series("", points, mark=marked)], log_y=wide, x_from=0)
