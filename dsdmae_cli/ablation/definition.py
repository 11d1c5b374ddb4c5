"""What a study is: which settings, how often, judged by what. No torch here, and nothing is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from platformdirs import user_data_path

from dsdmae_cli import plugins
from dsdmae_cli.ablation.sweep import Axis, Base, Point, describe, grid
from dsdmae_cli.config.compose import from_tables
from dsdmae_cli.config.describe import tables
from dsdmae_cli.config.own_images import remarks
from dsdmae_cli.config.schema import ABLATE, SCHEMAS, SECTIONS, Loaded
from dsdmae_cli.errors import SettingsError, nearest
from dsdmae_cli.runs.rundir import changed_settings, file_name
from dsdmae_cli.settings.judge import are_blocks
from dsdmae_cli.settings.models import MAY_CHANGE_ON_RESUME, Settings

Search = Literal["grid", "tpe", "random"]
Equal = Literal["epochs", "compute"]


@dataclass(frozen=True)
class Metric:
    """What trials are judged by.

    Attributes:
        name: its word on the command line.
        label: its name in tables and figures.
        higher_is_better: otherwise the lowest wins.
        command: words of the `dsdmae` command that measures it on a finished run; empty = the run does itself.
        resumes: whether that command goes on with --resume; if not, it begins anew.
    """

    name: str
    label: str
    higher_is_better: bool = True
    command: tuple[str, ...] = ()
    resumes: bool = True

    @property
    def is_share(self) -> bool:
        """Whether it is an accuracy or a mean IoU, shown in percent."""
        return self.name != "loss"

    def show(self, value: float) -> str:
        """A value as people read it."""
        return f"{100 * value:.2f}%" if self.is_share else f"{value:.4f}"


# A probe of the name "knn" has its word taken: the run's own score costs nothing.
_OWN = {
    metric.name: metric
    for metric in (
        Metric("knn", "k-NN accuracy"),
        Metric("loss", "pre-training loss", higher_is_better=False),
        Metric("finetune", "fine-tuned accuracy", command=("finetune",)),
    )
}


def metric_names() -> list[str]:
    """What trials can be judged by: the run's own scores, fine-tuning, and every probe that is installed."""
    return list(dict.fromkeys([*_OWN, *(plugin.name for plugin in plugins.discover("probe"))]))


def names_pixels(metric: Metric, options: Sequence[str]) -> bool:
    """Whether what measures a metric, with further words for its command, judges by masks and mean IoU."""
    if metric.command[:1] == ("probe",):
        return bool(plugins.find("probe", metric.command[2]).spec.dense)
    return bool(metric.command) and any(word.rpartition("=")[2] == "segment" for word in options)


def measured(metric: Metric, options: Sequence[str]) -> Metric:
    """The metric as further words for its command make it: fine-tuning to name pixels has a mean IoU."""
    if metric.name == "finetune" and names_pixels(metric, options):
        return replace(metric, label="fine-tuned mean IoU")
    return metric


def find_metric(name: str, flag: str = "--metric") -> Metric:
    """The metric that `--metric NAME` means; "NAME:BLOCKS" is a probe of some blocks, as `probe --blocks` takes them.

    Raises:
        SettingsError: there is none of that name.
        PluginError: it is a probe that is broken.
    """
    if name in _OWN:
        return _OWN[name]
    names = metric_names()
    kind, colon, blocks = name.partition(":")
    if kind not in names or (colon and (kind in ("loss", "finetune") or not are_blocks(blocks))):
        known = f"{', '.join(names)}; a probe takes blocks too, as linear:all"
        raise SettingsError(f"{flag} {name}{nearest(kind, names)}: it takes {known}")
    dense = plugins.find("probe", kind).spec.dense
    words = ("probe", "--kind", kind, *(("--blocks", blocks) if colon else ()))
    where = f", {'best block' if blocks == 'all' else f'blocks {blocks}'}" if colon else ""
    return Metric(name, f"{kind}-probe {'mean IoU' if dense else 'accuracy'}{where}", command=words, resumes=False)


def measuring_environment(environ: Mapping[str, str], judges: Iterable[Metric]) -> dict[str, str]:
    """Variables that are settings of the commands that measure and of no other, as DSDMAE_PROBE_POOL is.
    What pre-training has too (DSDMAE_TRAIN_EPOCHS) is about the trials, and stands in the study's settings."""
    sections = {section for metric in judges for section in SCHEMAS[metric.command[0]].sections} - set(SECTIONS)
    named = {variable: variable.removeprefix("DSDMAE_").lower().partition("_")[0] for variable in sorted(environ)}
    return {variable: environ[variable] for variable, section in named.items()
            if variable.startswith("DSDMAE_") and section in sections}  # fmt: skip


@dataclass(frozen=True)
class Definition:
    """A study as it was asked for.

    Attributes:
        base: what all trials share.
        axes: what differs.
        metric: what they are judged by.
        seeds: runs of each point.
        equal: what all trials have the same of: epochs, or the work of the base's run (see plans.py).
        search: the grid of all values, or points drawn from their ranges.
        trials: how many points a search draws; None for a grid.
        prune: stop trials that do worse than half of the finished ones did at the same moment.
        paper: the preset of the paper that this is, if any.
        metric_options: further words for the metric's command ("--epochs", "20").
        also: what else is measured of every trial, for the table; it decides nothing.
        environment: variables that are settings of the commands that measure (measuring_environment).
        twins: points of a grid that are the same computation as an earlier one, and which, both in words; they are not
            run (Plans.once finds them).
    """

    base: Base
    axes: tuple[Axis, ...]
    metric: Metric
    seeds: int = 1
    equal: Equal = "epochs"
    search: Search = "grid"
    trials: int | None = None
    prune: bool = False
    paper: str | None = None
    metric_options: tuple[str, ...] = ()
    also: tuple[Metric, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    twins: Mapping[str, str] = field(default_factory=dict)

    @property
    def judges(self) -> tuple[Metric, ...]:
        """What is measured by commands of its own, in order."""
        return tuple(metric for metric in (self.metric, *self.also) if metric.command)

    @property
    def points(self) -> list[Point]:
        """The points of a grid, of twins the first alone; none are known of a search."""
        return [p for p in grid(self.axes) if describe(p) not in self.twins] if self.search == "grid" else []

    @property
    def loss_differs(self) -> list[str]:
        """What is swept that changes what the pre-training loss means: what is computed, or of which images and
        patches."""
        changes = ("method.", "data.", "backbone.name", "backbone.patch_size")
        return [axis.key for axis in self.axes if axis.dotted.startswith(changes)]

    def same_as(self, point: Point) -> list[str]:
        """The points that are the same computation as this one, in words."""
        return [twin for twin, first in self.twins.items() if first == describe(point)]

    def said_of_twins(self) -> list[str]:
        """A sentence for each."""
        return [
            f"{twin} is the same computation as {first} (shares of few patches are rounded to whole ones): run once"
            for twin, first in self.twins.items()
        ]

    def remarks(self) -> list[str]:
        """What a person should know of values that nobody said, a sentence each."""
        return remarks(self.base.load(), ABLATE)

    def common(self) -> Settings:
        """The settings that all trials start from."""
        return self.base.load().settings

    def seed_numbers(self) -> range:
        """The seeds of every point."""
        first = self.common().train.seed
        return range(first, first + self.seeds)

    def settings(self, point: Point, seed: int, epochs: int | None = None) -> Loaded[Settings]:
        """The settings of one trial; `epochs` in place of the shared ones."""
        return self.base.load(self.axes, point, seed, epochs)

    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for two commands to work on one study; seeds, trials and the values of a grid may grow."""
        found = {
            "base": tables(self.common()),
            "sweep": {axis.key: list(axis.values) for axis in self.axes},
            "metric": self.metric.name,
            "metric-options": " ".join(self.metric_options),
            "search": self.search,
        }
        # Left out where it is the default: studies from before there was a choice keep their name.
        if self.equal != "epochs":
            found["equal"] = self.equal
        if self.also:
            found["also"] = ",".join(metric.name for metric in self.also)
        if self.environment:
            found["environment"] = dict(self.environment)
        return found

    @property
    def name(self) -> str:
        """The study's name, the same for the same command: "mask-ratio-digits-3f2a9c1b"."""
        found = self.fingerprint()
        for dotted in MAY_CHANGE_ON_RESUME:
            section, _, key = dotted.partition(".")
            found["base"][section].pop(key, None)
        digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:8]
        return "-".join([*(file_name(axis.key) for axis in self.axes), file_name(self.common().data.dataset), digest])

    def default_path(self) -> Path:
        """The same command finds its study again: the directory is named after what it does, not after the time."""
        return user_data_path("dsdmae") / "ablations" / self.name

    def json(self) -> dict[str, Any]:
        """For study.json, which report and other tools read."""
        return self.fingerprint() | {
            "keys": [asdict(axis) for axis in self.axes],
            "seeds": self.seeds,
            "trials": self.trials,
            "prune": self.prune,
            "paper": self.paper,
        }


def trial_name(point: Point, seed: int) -> str:
    """A trial's directory: "mask-ratio-0.75-seed-0"."""
    plain = "-".join(f"{key}-{value}" for key, value in point.items())
    name = file_name(plain.replace("/", "-"))
    if name != plain or len(name) > 100:  # what was lost may be all that told two trials apart
        name = f"{name[:100]}-{hashlib.sha256(json.dumps(point).encode()).hexdigest()[:6]}"
    return f"{name}-seed-{seed}"


def check_same(before: dict[str, Any], now: Definition, where: str) -> None:
    """See that a command goes on with the study that is there; its grid may have grown.

    Raises:
        SettingsError: it asks for another one; the message names the first difference.
    """
    after = now.fingerprint()
    if now.search == "grid" and _grown(before["sweep"], now.axes):
        before = before | {"sweep": now.fingerprint()["sweep"]}
    for what in ("sweep", "metric", "metric-options", "search", "equal", "also"):
        absent: dict[str, Any] = {"equal": "epochs", "also": "nothing"}
        old, new = (found[what] if what in found else absent[what] for found in (before, after))
        if old != new:
            # What is missing may have been brought by a later command.
            keep = (
                "say these values too, or "
                if what == "sweep" and now.search == "grid" and old.keys() == new.keys()
                else ""
            )
            raise SettingsError(
                f"{where} holds a study with --{what} {_said(old)}, and this command says {_said(new)}; {keep}choose"
                " another --out"
            )
    old, new = (found.get("environment", {}) for found in (before, after))
    if old != new:
        raise SettingsError(
            f"{where} holds a study measured with {_variables(old)} in the environment, and now it has"
            f" {_variables(new)}; set it alike, or choose another --out"
        )
    if before["base"] != after["base"]:
        changes = changed_settings(from_tables(before["base"], where).settings, now.common())
        if changes:
            raise SettingsError(
                f"{where} holds a study with other settings: {'; '.join(changes)}; choose another --out"
            )


def _grown(before: dict[str, list[str]], axes: tuple[Axis, ...]) -> bool:
    """Whether a grid has the axes of the one before and all its values."""
    after = {axis.key: axis.values for axis in axes}
    return before.keys() == after.keys() and all(set(before[key]) <= set(after[key]) for key in before)


def widened(now: Definition, stored: dict[str, Any]) -> Definition:
    """The definition with the grid that the study has by now: another worker may have brought more values."""
    sweep = stored["sweep"]
    if now.search != "grid" or any(not set(axis.values) <= set(sweep[axis.key]) for axis in now.axes):
        return now
    return replace(now, axes=tuple(replace(axis, values=tuple(sweep[axis.key])) for axis in now.axes))


def _variables(environment: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in environment.items()) or "nothing"


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return " and ".join(f"{key} {','.join(values)}" for key, values in value.items())
    return str(value)
