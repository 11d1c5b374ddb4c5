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
from dsdmae_cli.ablation.plans import FAR_BEYOND
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
        if len(self.ranked) < 2 or self.incomparable:
            return None
        best, other = self.ranked[:2]
        return contrast(best.by_seed, other.by_seed, self.definition.metric.higher_is_better)

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
    def first(self) -> list[Setting]:
        """Those of `ranked` that are as good as the first."""
        means = [setting.summary.mean for setting in self.ranked if setting.summary]
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

    def verdict(self) -> str:
        """The best setting, and what may be said of it."""
        if not self.ranked:
            return "No run is done yet." if self.unfinished else "No run came to a value."
        if self.unfinished:
            done = sum(row.state == "done" for row in self.rows)
            return f"So far, with {done} of {self.total} runs done. {self._verdict()}"
        return self._verdict()

    def _verdict(self) -> str:
        if self.incomparable:
            return (
                f"No verdict: the pre-training loss of one {' and '.join(self.incomparable)} is not that of another, so"
                " that a lower one is not better. Judge by --metric knn, or by a probe."
            )
        best, metric = self.ranked[0], self.definition.metric
        value = f"{metric.label} {interval(best.summary, metric)}"
        if len(self.first) > 1:
            *names, last = [describe(one.point) for one in self.first]
            return f"No best: {', '.join(names)} and {last} came out equal, {value}."
        text = f"Best: {describe(best.point)}, {value}"
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
        costs = "Epochs, work" if self.definition.equal == "compute" else "Work"
        found.append(f"{costs} and time are those of pre-training, for one run.")
        if self.definition.equal == "compute":
            found.append(self._equal_compute())
        found += [f"{said}." for said in self.definition.said_of_twins()]
        for group in self.alike:
            *names, last = [describe(s.point) for s in group]
            found.append(
                f"{', '.join(names)} and {last} gave the same runs to the last digit: here they are one setting, as"
                " where a share of few patches is rounded to whole ones."
            )
        if metric.name == "loss":
            found.append(
                "The loss is the training loss of the last logged steps; of what features are worth it says nothing."
            )
        if any(row.state == "pruned" for row in self.rows):
            watched = "training loss" if metric.name == "loss" else "k-NN accuracy"
            found.append(
                f"Pruned runs were stopped where their best {watched} so far was worse than the median of the finished"
                " runs at the same share of the run."
            )
        if self.definition.search != "grid":
            found.append(
                f"Settings were drawn by {self.definition.search}, guided by the very values reported: the best one's"
                " value is optimistic. Repeat it with fresh seeds before quoting it."
            )
        if self.unfinished:
            found.append(f"{self.unfinished} of {len(self.rows)} trials are not done; the same command goes on.")
        return found

    def _equal_compute(self) -> str:
        common = self.definition.common()
        text = (
            f"Equal compute: every setting was given the epochs whose pre-training work, counted in FLOP, comes nearest"
            f" to that of the shared settings ({common.method.name}, {common.train.epochs} epochs)."
        )
        shares = [share for s in self.settings if (share := s.gflop_to_budget) is not None]
        if shares:
            text += f" Since epochs are whole, it is {min(shares):.2f} to {max(shares):.2f} of that."
        beyond = [describe(s.point) for s in self.settings if (s.gflop_to_budget or 0) > FAR_BEYOND]
        if beyond:
            text += f" Not at equal compute, since a single epoch takes more: {', '.join(beyond)}."
        return f"{text} Neither the metric nor what a method needs trained beforehand is in it."

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


def interval(s: Summary | None, metric: Metric) -> str:
    """ "88.30% ± 1.20 (3 runs)", "88.30% (one run)", "-" of none."""
    if s is None:
        return "-"
    if s.half is None:
        return f"{metric.show(s.mean)} (one run)"
    half = f"{100 * s.half:.2f}" if metric.is_share else f"{s.half:.4f}"
    return f"{metric.show(s.mean)} ± {half} ({s.count} runs)"


def flop(gflop: float) -> str:
    """12.3 TFLOP, 4.56 PFLOP."""
    for unit, size in (("EFLOP", 1e9), ("PFLOP", 1e6), ("TFLOP", 1e3)):
        if gflop >= size:
            return f"{gflop / size:.3g} {unit}"
    return f"{gflop:.3g} GFLOP"


def repeat_command() -> str:
    """The command line that this process was started with, without the passwords in its addresses."""
    return shlex.join(["dsdmae", *(without_password(word) for word in sys.argv[1:])])
