"""What a study came to: one summary for each setting, the best, and whether it is better than the next by more than
noise. Tables and figures are drawn from this in report.py and figure.py."""

from __future__ import annotations

import platform
import shlex
import statistics as st
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dsdmae_cli import __version__
from dsdmae_cli.ablation.definition import Definition, Metric
from dsdmae_cli.ablation.paper import PAPERS, Paper, paper_dataset
from dsdmae_cli.ablation.run import as_json
from dsdmae_cli.ablation.study import Row, Study
from dsdmae_cli.ablation.sweep import Point, describe
from dsdmae_cli.config.describe import tables, to_toml
from dsdmae_cli.evaluation.statistics import Contrast, Summary, contrast, summarise
from dsdmae_cli.report import without_password


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

    @property
    def is_pruned(self) -> bool:
        """Whether a run of it was stopped because others were better."""
        return any(row.state == "pruned" for row in self.rows)

    @cached_property
    def summary(self) -> Summary | None:
        """None where no run is done."""
        return summarise(self.values) if self.values else None

    def also(self, metric: Metric) -> Summary | None:
        """What else was measured, over the runs that have it."""
        known = [row.facts.get("also", {}).get(metric.name) for row in self.rows if row.state == "done"]
        values = [value for value in known if value is not None]
        return summarise(values) if values else None

    @property
    def remark(self) -> str:
        """What did not come to a value: "1 failed, 2 pruned at 30%, 40%"."""
        states = [row.state for row in self.rows if row.state != "done"]
        pruned = [f"{row.facts['share']:.0%}" for row in self.rows if "share" in row.facts]
        at = {"pruned": f" at {', '.join(pruned)}" if pruned else ""}
        return ", ".join(f"{states.count(state)} {state}{at.get(state, '')}" for state in dict.fromkeys(states))

    @property
    def untrained(self) -> dict[int, float]:
        """k-NN accuracy of the network before training, by seed."""
        known = {row.seed: row.facts.get("knn_untrained") for row in self.rows}
        return {seed: value for seed, value in sorted(known.items()) if value is not None}

    def mean_fact(self, name: str) -> float | None:
        """Mean of a fact over the runs that are done and have it."""
        known = [row.facts[name] for row in self.rows if row.state == "done" and row.facts.get(name) is not None]
        return st.mean(known) if known else None

    @property
    def gflop_to_budget(self) -> float | None:
        """Work of a run as a multiple of what --equal compute allows; None with equal epochs."""
        work, budget = self.mean_fact("gflop"), self.mean_fact("budget_gflop")
        return work / budget if work is not None and budget else None


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
        # Run before the grid grew by the value that it is the same as: with both there would be no best.
        names = dict.fromkeys(n for n in names if self.definition.twins.get(n) not in names)
        found = [
            Setting(rows[0].point, rows) for n in names if (rows := [r for r in self.rows if describe(r.point) == n])
        ]
        return sorted(found, key=lambda s: order.get(describe(s.point), len(order)))

    @cached_property
    def ranked(self) -> list[Setting]:
        """Those with a value, best first: by the mean over the seeds that all of them have, and settings with a pruned
        run, which others were better than, below the others."""
        sign = -1 if self.definition.metric.higher_is_better else 1
        return sorted(
            (s for s in self.settings if s.values), key=lambda s: (s.is_pruned, sign * self._over_shared_seeds(s))
        )

    @cached_property
    def shared_seeds(self) -> set[int]:
        """Seeds that all settings with a value and without a pruned run have; empty where there is none."""
        known = [s for s in self.settings if s.values]
        runs = [set(s.by_seed) for s in known if not s.is_pruned] or [set(s.by_seed) for s in known]
        return set.intersection(*runs) if runs else set()

    def _over_shared_seeds(self, setting: Setting) -> float:
        shared = [value for seed, value in setting.by_seed.items() if seed in self.shared_seeds]
        return st.mean(shared or setting.values)

    @cached_property
    def contrast(self) -> Contrast | None:
        """The best against the next, by the seeds that settings are ranked by; None where there are not two."""
        if len(self.ranked) < 2 or self.incomparable:
            return None
        best, other = (
            {seed: value for seed, value in s.by_seed.items() if seed in self.shared_seeds} or s.by_seed
            for s in self.ranked[:2]
        )
        return contrast(best, other, self.definition.metric.higher_is_better)

    @cached_property
    def untrained(self) -> list[Setting]:
        """The settings whose network was judged before training by the study's own metric: only k-NN can be."""
        return [s for s in self.settings if s.untrained] if self.definition.metric.name == "knn" else []

    @cached_property
    def baseline(self) -> Summary | None:
        """The untrained network over seeds; None where it is not known, or settings start from different ones."""
        by_seed: dict[int, float] = {}
        for setting in self.untrained:
            for seed, value in setting.untrained.items():
                if by_seed.setdefault(seed, value) != value:
                    return None
        return summarise(list(by_seed.values())) if by_seed else None

    @cached_property
    def alike(self) -> list[list[Setting]]:
        """Settings whose runs agree in the last digit of their losses: different words for one computation."""
        groups: dict[tuple[Any, ...], list[Setting]] = {}
        for setting in self.settings:
            runs = sorted((row.seed, row.value, row.facts.get("loss")) for row in setting.rows if row.state == "done")
            if runs and all(loss is not None for _, _, loss in runs):
                groups.setdefault(tuple(runs), []).append(setting)
        return [group for group in groups.values() if len(group) > 1]

    @property
    def best(self) -> Setting | None:
        """The first of `ranked`, where values can be compared and no other is equal to it."""
        return self.first[0] if len(self.first) == 1 and not self.incomparable else None

    @property
    def is_uneven(self) -> bool:
        """Whether settings are compared by fewer seeds than one of them has."""
        return bool(self.shared_seeds) and any(set(s.by_seed) - self.shared_seeds for s in self.ranked)

    @property
    def first(self) -> list[Setting]:
        """Those of `ranked` that are as good as the first."""
        means = [(setting.is_pruned, self._over_shared_seeds(setting)) for setting in self.ranked]
        return self.ranked[: means.count(means[0])] if means else []

    @property
    def incomparable(self) -> list[str]:
        """What was swept that changes what the metric means, so that no value is better than another: what is computed,
        or of which images and patches, of the pre-training loss; nothing of an accuracy."""
        return self.definition.loss_differs if self.definition.metric.name == "loss" else []

    @property
    def unfinished(self) -> int:
        """Trials that wait, run or were stopped."""
        return sum(row.state in ("waiting", "running", "stopped") for row in self.rows)

    @property
    def total(self) -> int:
        """Trials of the whole study; a search draws its own one after another."""
        return max(len(self.rows), (self.definition.trials or 0) * self.definition.seeds)

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
        *keys, last = [axis.key for axis in self.definition.axes]
        swept = f"{', '.join(keys)} and {last}" if keys else last
        what = self.paper.title if self.paper else swept
        return f"{what} on {self.definition.common().data.dataset}"

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
                "untrained": s.untrained,
                **{name: s.mean_fact(name) for name in ("epochs", "gflop", "seconds")},
                "gflop_to_budget": s.gflop_to_budget,
                "also": {
                    metric.name: None if (found := s.also(metric)) is None else found.mean
                    for metric in self.definition.also
                },
            }

        c = self.contrast
        return {
            "study": self.folder,
            "metric": self.definition.metric.name,
            "equal": self.definition.equal,
            "complete": self.unfinished == 0,
            "incomparable": self.incomparable,
            "best": row(self.best) if self.best else None,
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


def results_of(study: Study, folder: Path) -> Results:
    """As the study stands now, with this very command as the one that goes on."""
    return Results(study.definition, study.rows(), str(folder), repeat_command())


def repeat_command() -> str:
    """The command line that this process was started with, without the passwords in its addresses."""
    return shlex.join(["dsdmae", *(without_password(word) for word in sys.argv[1:])])
