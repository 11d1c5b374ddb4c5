"""What a study came to: one summary for each setting, the best, and whether it is better than the next by more than
noise. Tables and figures are drawn from this in report.py and figure.py."""

from __future__ import annotations

import platform
import shlex
import statistics as st
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dsdmae_cli import __version__
from dsdmae_cli.recipes.ablate.definition import Definition
from dsdmae_cli.recipes.ablate.paper import PAPERS, Paper, paper_dataset
from dsdmae_cli.recipes.ablate.run import as_json
from dsdmae_cli.recipes.ablate.statistics import Contrast, Summary, contrast, summarise
from dsdmae_cli.recipes.ablate.study import Row
from dsdmae_cli.settings.describe import tables, to_toml
from dsdmae_cli.settings.sweep import Point, describe


@dataclass(frozen=True)
class Setting:
    """All runs of one point."""

    point: Point
    rows: list[Row]

    @property
    def by_seed(self) -> dict[int, float]:
        """Values of the runs that are done."""
        return {row.seed: row.value for row in sorted(self.rows, key=lambda row: row.seed) if row.value is not None}

    @property
    def values(self) -> list[float]:
        """The same without the seeds, in their order."""
        return list(self.by_seed.values())

    @cached_property
    def summary(self) -> Summary | None:
        """None where no run is done."""
        return summarise(self.values) if self.values else None

    @property
    def remark(self) -> str:
        """What did not come to a value: "1 failed, 2 pruned"."""
        states = [row.state for row in self.rows if row.state != "done"]
        return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))

    def mean_fact(self, name: str) -> float | None:
        """Mean of a fact over the runs that have it."""
        known = [row.facts[name] for row in self.rows if row.facts.get(name) is not None]
        return st.mean(known) if known else None


@dataclass(frozen=True)
class Results:
    """A study's outcome, at its end or on the way."""

    definition: Definition
    rows: list[Row]
    folder: str
    command: str

    @cached_property
    def settings(self) -> list[Setting]:
        """By point, in the order of the sweep; of a search, in the order drawn."""
        order = {describe(point): i for i, point in enumerate(self.definition.points)}
        names = dict.fromkeys(describe(row.point) for row in self.rows)
        found = [
            Setting(rows[0].point, rows) for n in names if (rows := [r for r in self.rows if describe(r.point) == n])
        ]
        return sorted(found, key=lambda s: order.get(describe(s.point), len(order)))

    @cached_property
    def ranked(self) -> list[Setting]:
        """Those with a value, best first."""
        sign = -1 if self.definition.metric.higher_is_better else 1
        known = [s for s in self.settings if s.summary]
        return sorted(known, key=lambda s: sign * s.summary.mean if s.summary else 0.0)

    @cached_property
    def contrast(self) -> Contrast | None:
        """The best against the next; None where there are not two."""
        if len(self.ranked) < 2:
            return None
        best, other = self.ranked[:2]
        return contrast(best.by_seed, other.by_seed, self.definition.metric.higher_is_better)

    @property
    def unfinished(self) -> int:
        """Trials that wait, run or were stopped."""
        return sum(row.state in ("waiting", "running", "stopped") for row in self.rows)

    @property
    def failed(self) -> list[Row]:
        """Trials that failed."""
        return [row for row in self.rows if row.state == "failed"]

    @property
    def seconds(self) -> float:
        """Of all runs together, one after another."""
        return sum(row.facts.get("seconds", 0) + (row.facts.get("judged_seconds") or 0) for row in self.rows)

    @property
    def gflop(self) -> float:
        """Of pre-training, all runs together."""
        return sum(row.facts.get("gflop", 0) for row in self.rows)

    @property
    def paper(self) -> Paper | None:
        """The paper's figure or table that this is."""
        return PAPERS[self.definition.paper] if self.definition.paper else None

    @cached_property
    def paper_points(self) -> dict[str, float]:
        """What the paper measured, by value, on this dataset; empty where it prints nothing of it."""
        dataset = paper_dataset(self.definition.common())
        return self.paper.points.get(dataset, {}) if self.paper and dataset else {}

    @property
    def draws_paper(self) -> bool:
        """Whether the paper's figures may stand on our axis: the same dataset, and the same metric where it has one."""
        if self.paper is None or paper_dataset(self.definition.common()) is None:
            return False
        return self.paper.best is not None or self.paper.points_metric == self.definition.metric.name

    # -- in words

    @property
    def title(self) -> str:
        """What was done: "mask-ratio on digits"."""
        what = self.paper.title if self.paper else " and ".join(axis.key for axis in self.definition.axes)
        return f"{what} on {self.definition.common().data.dataset}"

    def verdict(self) -> str:
        """The best setting, and what may be said of it."""
        if not self.ranked:
            return "No run is done yet." if self.unfinished else "No run came to a value."
        best, metric = self.ranked[0], self.definition.metric
        text = f"Best: {describe(best.point)}, {metric.label} {interval(best, self.definition)}"
        if self.contrast is None:
            return f"{text}."
        other, c = self.ranked[1], self.contrast
        gap = f"{100 * c.difference:.2f} points" if metric.is_share else f"{c.difference:.4f}"
        text += f". The next, {describe(other.point)}, is {gap} worse"
        if c.p is None:
            return f"{text}; without two seeds of both nothing can be said of the noise between runs (--seeds 3)."
        said = "larger" if c.larger_than_noise else "not larger"
        text += f": {said} than the noise between seeds (t-test paired by seed, p = {c.p:.2g})."
        if c.larger_than_noise and len(self.ranked) > 2:
            text += f" The best was picked from {len(self.ranked)} settings after the fact, so p flatters it."
        return text

    def caveats(self) -> list[str]:
        """What a reader must know before quoting the figures."""
        metric, seeds = self.definition.metric, self.definition.seeds
        found = []
        if seeds > 1:
            found.append(
                "± is the 95% interval of the mean over seeds (Student's t); it says nothing of other test images."
            )
        if metric.name == "loss":
            found.append(
                "The loss is the training loss of the last logged steps. Settings that change what is computed (λ, mask"
                " ratio, noise, method) change its meaning: compare it only where they are equal."
            )
        if self.definition.search != "grid":
            found.append(
                f"Settings were drawn by {self.definition.search}, guided by the very values reported: the best one's"
                " value is optimistic. Repeat it with fresh seeds before quoting it."
            )
        if self.unfinished:
            found.append(f"{self.unfinished} of {len(self.rows)} trials are not done; the same command goes on.")
        return found

    def base_toml(self) -> str:
        """The settings that all trials share."""
        return to_toml(tables(self.definition.common()))

    def machine(self) -> str:
        """Where it ran."""
        hosts = len({row.facts["host"] for row in self.rows if "host" in row.facts})
        on = f" on {hosts} machines" if hosts > 1 else ""
        return f"dsdmae {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}{on}"

    def json(self) -> dict[str, Any]:
        """The result for scripts."""

        def row(s: Setting) -> dict[str, Any]:
            assert s.summary is not None
            mean, half = s.summary.mean, s.summary.half
            return {
                "settings": s.point,
                "runs": s.summary.count,
                "mean": mean,
                "interval": None if half is None else [mean - half, mean + half],
                "values": s.by_seed,
            }

        c = self.contrast
        return {
            "study": self.folder,
            "metric": self.definition.metric.name,
            "complete": self.unfinished == 0,
            "best": row(self.ranked[0]) if self.ranked else None,
            "difference_to_next": c.difference if c else None,
            "p": c.p if c else None,
            "larger_than_noise": c.larger_than_noise if c else None,
            "settings": [row(s) for s in self.settings if s.summary],
            "failed": len(self.failed),
            "trials": [as_json(r) for r in self.rows],
            "seconds": round(self.seconds, 1),
            "gflop": self.gflop,
            "report": f"{self.folder}/report.html",
            "command": self.command,
        }


def interval(setting: Setting, definition: Definition) -> str:
    """ "88.30% ± 1.20" of a setting's runs, "88.30%" of a single one."""
    s, metric = setting.summary, definition.metric
    if s is None:
        return "-"
    if s.half is None:
        return f"{metric.show(s.mean)} (one run)"
    half = f"{100 * s.half:.2f}" if metric.is_share else f"{s.half:.4f}"
    return f"{metric.show(s.mean)} ± {half} ({s.count} runs)"


def repeat_command() -> str:
    """The command line that this process was started with."""
    return shlex.join(["dsdmae", *sys.argv[1:]])
