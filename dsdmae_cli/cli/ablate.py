"""`dsdmae ablate`."""

from __future__ import annotations

import os
import shlex
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from dsdmae_cli.cli import completion
from dsdmae_cli.cli.group import USAGE_ERROR, Command
from dsdmae_cli.cli.options import takes
from dsdmae_cli.config.flags import flags_of
from dsdmae_cli.config.given import Given
from dsdmae_cli.errors import DsdmaeError, SettingsError, nearest

if TYPE_CHECKING:
    from dsdmae_cli.ablation.definition import Definition, Metric
    from dsdmae_cli.ablation.paper import Paper
    from dsdmae_cli.ablation.sweep import Axis, Base
    from dsdmae_cli.config.schema import Schema

_STUDY = "Study"


def fold(words: list[str]) -> list[str]:
    """`--sweep KEY VALUES` as one word, `--sweep=KEY=VALUES`: Typer knows no repeatable option of two words.

    What is missing stays missing, for a message that says so: `--sweep=KEY`, `--sweep=`.
    """
    rest = deque(words)
    folded: list[str] = []
    while rest:
        word = rest.popleft()
        if word == "--sweep":
            parts: list[str] = []
            # KEY=VALUES is whole already; an option ends what is there. VALUES may begin with the minus of a number.
            while rest and len(parts) < 2 and not rest[0].startswith("--") and not (parts and "=" in parts[0]):
                parts.append(rest.popleft())
            word = f"--sweep={'='.join(parts)}"
        folded.append(word)
    return folded


class SweepCommand(Command):
    """A command with `--sweep KEY VALUES`, in parsing and in completion."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, fold(args))

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        # The shell asks for the word after --sweep KEY: the key stands there alone, folded without values.
        last = (ctx.params.get("sweep") or [""])[-1]
        if not last or "=" in last or incomplete.startswith("-"):
            return list(super().shell_complete(ctx, incomplete))
        # Typer's releases have this class in different places, none of them public.
        item = type(super().shell_complete(ctx, "--")[0])
        return [item(text) for text in _values(last) if text.startswith(incomplete)]


def _keys(incomplete: str) -> list[str]:
    from dsdmae_cli.ablation.sweep import named_sweeps

    if "." in incomplete:
        return completion.settings(incomplete)
    words = [flag.word for flag in flags_of("ablate") if flag.setting != "train.seed"]
    return [w for w in (*words, *named_sweeps()) if w.startswith(incomplete)] + completion.settings(incomplete)


def _values(key: str) -> list[str]:
    """Values that a key may have, where they are few words, or an example."""
    from dsdmae_cli.ablation.sweep import named_sweeps

    named = named_sweeps()
    if key in named:
        return [",".join(named[key].values)]
    flag = next((flag for flag in flags_of("ablate") if key in (flag.word, flag.setting)), None)
    if flag is not None and flag.sweep:
        return [flag.sweep]
    return completion.setting_values(flag.setting if flag else key)


def _option(*words: str, **more: Any) -> Any:
    return typer.Option(*words, rich_help_panel=_STUDY, show_default=False, **more)


def _known(flag: str) -> tuple[str, ...]:
    """The words that a flag takes."""
    from dsdmae_cli.ablation.definition import Equal, Search, metric_names
    from dsdmae_cli.ablation.paper import PAPERS

    return {
        "--paper": tuple(PAPERS), "--metric": tuple(metric_names()), "--search": get_args(Search),
        "--equal": get_args(Equal), "--also": tuple(metric_names()),
    }[flag]  # fmt: skip


def _words(flag: str) -> completion.Complete:
    return lambda incomplete: [word for word in _known(flag) if word.startswith(incomplete)]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The flags of a study."""

    sweep: Annotated[
        list[str] | None,
        _option("--sweep", metavar="KEY VALUES", autocompletion=_keys,
                help="What differs between trials, repeatable (a grid). KEY is a flag's name (mask-ratio), a setting"
                " (optim.weight_decay) or a name that the method has; VALUES a range 0.75..0.95, with :0.05 a step or"
                " /5 a number of values, or a list 0.2,0.4,0.6"),
    ] = None  # fmt: skip
    paper: Annotated[
        str | None,
        _option("--paper", metavar="NAME", autocompletion=_words("--paper"),
                help="An ablation of the paper: fig3 (mask ratio), fig4 (lambda), table3 (heads), three seeds each"),
    ] = None  # fmt: skip
    metric: Annotated[
        str | None,
        _option("--metric", metavar="NAME", autocompletion=_words("--metric"),
                help="What trials are judged by: knn (default) or loss of the run itself, finetune, or a probe's name"),
    ] = None  # fmt: skip
    metric_options: Annotated[
        str | None,
        _option("--metric-options", metavar="WORDS",
                help="Further options of the command that probes or fine-tunes, in one word: '--epochs 20'"),
    ] = None  # fmt: skip
    also: Annotated[
        str | None,
        _option("--also", metavar="NAME[,NAME]", autocompletion=_words("--also"),
                help="What else is measured of every trial, to stand beside it: knn,ep,linear:all. It decides nothing"),
    ] = None  # fmt: skip
    seeds: Annotated[
        int | None,
        _option("--seeds", metavar="N", min=1, help="Runs of each setting, for error bars. Default 1; 3 with --paper"),
    ] = None  # fmt: skip
    equal: Annotated[
        str,
        _option("--equal", metavar="NAME", autocompletion=_words("--equal"),
                help="What trials have the same of: epochs (default), or compute: each gets the epochs whose work comes"
                " nearest to that of the settings they share, without what is swept"),
    ] = "epochs"  # fmt: skip
    search: Annotated[
        str,
        _option("--search", metavar="NAME", autocompletion=_words("--search"),
                help="grid (default: all values), or tpe or random: --trials settings drawn from the ranges"),
    ] = "grid"  # fmt: skip
    trials: Annotated[
        int | None, _option("--trials", metavar="N", min=1, help="Settings that a search draws")
    ] = None  # fmt: skip
    prune: Annotated[
        bool, _option("--prune", help="Stop a trial that does worse than half of the finished ones did at that moment")
    ] = False  # fmt: skip
    workers: Annotated[
        int | None,
        _option("--workers", metavar="N", min=1, help="Trials at a time. Default: on a CPU one a core, else 1"),
    ] = None  # fmt: skip
    parallel: Annotated[
        bool, _option("--parallel", help="A worker for each GPU; on a CPU the cores are shared out anyway")
    ] = False  # fmt: skip
    storage: Annotated[
        str | None,
        _option("--storage", metavar="URL", help="A database that several machines share (sqlite:///FILE,"
                " postgresql://..., mysql://...). Default: a journal in the study's directory"),
    ] = None  # fmt: skip
    retry_failed: Annotated[bool, _option("--retry-failed", help="Run failed trials once more")] = False


COMMAND_CLASS = SweepCommand


@takes("ablate")
def command(*, asked: Asked, given: Given) -> None:
    """Run an ablation: pre-train once for each value of a setting, and report which is best.

    dsdmae ablate --sweep mask-ratio 0.75..0.95 --seeds 3

    Settings that all trials share are given as to `dsdmae pretrain`; without any, a small preset on handwritten digits
    (quick-ablate) stands in. Every trial is a run of its own below --out. The same command again goes on where it was,
    and may run several times at once: the processes share the trials.
    """
    _check(asked)
    definition = _definition(asked, given)
    from dsdmae_cli.ablation.dry_run import dry_run as planned
    from dsdmae_cli.files import SAME, not_resumable
    from dsdmae_cli.recipes.ablate import ablate
    from dsdmae_cli.report import Report, print_result

    if given.dry_run:
        plan, text, warnings = planned(
            definition, given.out, workers=asked.workers, parallel=asked.parallel, storage=asked.storage
        )
        for warning in warnings:
            Report().warn(warning)
        print_result(plan, as_json=given.json, text=text)
        return
    with not_resumable(f"{SAME} with --retry-failed"):
        result, text = ablate(
            definition,
            out=given.out,
            storage=asked.storage,
            workers=asked.workers,
            parallel=asked.parallel,
            retry_failed=asked.retry_failed,
            as_json=given.json,
        )
    print_result(result, as_json=given.json, text=text)


def _check(asked: Asked) -> None:
    """Flags that do not go together, before anything is loaded."""
    if (asked.sweep is None) == (asked.paper is None):
        raise SettingsError(
            "ablate needs --sweep KEY VALUES (for example --sweep mask-ratio 0.75..0.95) or --paper NAME"
            f" ({', '.join(_known('--paper'))})" + ("" if asked.sweep is None else "; got both, leave one out")
        )
    _one_of("--search", asked.search)
    _one_of("--equal", asked.equal)
    if (asked.search == "grid") != (asked.trials is None):
        wrong = "--trials is for --search tpe or random; a grid runs all its values" if asked.trials else None
        raise SettingsError(wrong or f"--search {asked.search} needs --trials N: how many settings to draw")
    if asked.paper is not None:
        _one_of("--paper", asked.paper)
    if asked.paper is not None and asked.search != "grid":
        raise SettingsError(f"--paper {asked.paper} is a grid; leave --search out, or say the --sweep yourself")
    if asked.workers is not None and asked.parallel:
        raise SettingsError("--workers N and --parallel both say how many trials run at a time; give one")


def _one_of(flag: str, word: str) -> None:
    known = _known(flag)
    if word not in known:
        raise SettingsError(f"{flag} {word}{nearest(word, list(known))}: it takes {', '.join(known)}")


def _definition(asked: Asked, given: Given) -> Definition:
    """The study that the flags ask for."""
    from dsdmae_cli.ablation.definition import Definition, measured, measuring_environment
    from dsdmae_cli.ablation.paper import AS_IN_THE_PAPER, PAPERS
    from dsdmae_cli.ablation.sweep import Base, parse_axes

    figure = PAPERS[asked.paper] if asked.paper else None
    metric = _metric(asked, figure)
    options = _metric_options(asked, metric)
    also = _also(asked, metric)
    pairs = [figure.sweep] if figure else [_pair(text) for text in asked.sweep or ()]
    base = Base(given.preset, given.config, given.flags, given.assignments or ()).sweeping(pairs)
    if figure and (as_it_was := AS_IN_THE_PAPER.get(base.load().settings.method.name)):
        base = replace(base, assignments=(as_it_was, *base.assignments))  # a person's own --set comes later, and holds
    axes = parse_axes(pairs, base)
    judges = [judge for judge in (metric, *also) if judge.command]
    environment = measuring_environment(os.environ, judges)
    for judge in judges:
        words = options if judge is metric else ()
        if words or environment:
            _check_metric_options(judge, words, base, axes, environment)
    swept = next((axis.key for axis in axes if axis.dotted == "train.epochs"), None)
    if swept and asked.equal == "compute":
        raise SettingsError(f"--equal compute gives every trial its epochs, and so does --sweep {swept}; leave one out")
    every = [value for axis in axes if axis.dotted == "train.knn_every" for value in axis.values]
    if "none" in every or base.load().settings.train.knn_every is None:
        _check_without_knn(metric.name, asked.prune)
        if any(other.name == "knn" for other in also):
            raise SettingsError("--also knn needs train.knn_every, which is none; leave one of them out")
    return Definition(
        base=base,
        axes=axes,
        metric=measured(metric, options),
        seeds=asked.seeds or (figure.seeds if figure else 1),
        equal=cast(Any, asked.equal),
        search=cast(Any, asked.search),
        trials=asked.trials,
        prune=asked.prune,
        paper=asked.paper,
        metric_options=options,
        also=also,
        environment=environment,
    )


def _also(asked: Asked, metric: Metric) -> tuple[Metric, ...]:
    from dsdmae_cli.ablation.definition import find_metric

    names = list(dict.fromkeys(filter(None, map(str.strip, (asked.also or "").split(",")))))
    if metric.name in names:
        raise SettingsError(f"--also {metric.name} is what --metric measures already; leave it out")
    return tuple(find_metric(name, "--also") for name in names)


def _metric(asked: Asked, figure: Paper | None) -> Metric:
    from dsdmae_cli.ablation.definition import find_metric

    return find_metric(asked.metric or (figure.metric if figure else "knn"))


def _metric_options(asked: Asked, metric: Metric) -> tuple[str, ...]:
    try:
        options = tuple(shlex.split(asked.metric_options or ""))
    except ValueError as error:
        raise SettingsError(f"--metric-options {asked.metric_options}: {str(error).lower()}") from error
    if options and not metric.command:
        raise SettingsError(
            f"--metric-options is for --metric finetune or a probe; {metric.name} is measured by the run itself"
        )
    return options


# What the program itself says to the command that measures, and what would have it not measure.
_NO_OPTIONS = ("like", "out", "resume", "name", "accept_changes", "dry_run", "json")


def _check_metric_options(
    metric: Metric, options: tuple[str, ...], base: Base, axes: tuple[Axis, ...], environ: Mapping[str, str]
) -> None:
    """See that the command that measures takes what it will be given by words and by the environment, which is hours
    of training before it is asked.

    Raises:
        SettingsError: it does not.
    """
    from dsdmae_cli.cli import load
    from dsdmae_cli.cli.options import gathered
    from dsdmae_cli.config.compose import compose
    from dsdmae_cli.config.describe import tables
    from dsdmae_cli.config.schema import FINETUNE, PROBE
    from dsdmae_cli.settings.judge import SCRATCH

    name, said = metric.command[0], f"--metric-options {shlex.join(options)}" if options else metric.name
    if help_ := {"--help", "-h"} & set(options):
        raise SettingsError(f"{said}: {help_.pop()} measures nothing; see `dsdmae {name} --help`")
    try:
        found = load(name).make_context(f"dsdmae {name}", [SCRATCH, *metric.command[1:], *options]).params
    except USAGE_ERROR as error:
        text = error.format_message()  # type: ignore[attr-defined]
        raise SettingsError(f"{said}: {text} (see dsdmae {name} --help)") from error
    if wrong := [field for field in _NO_OPTIONS if found.get(field)]:
        raise SettingsError(f"{said}: --{wrong[0].replace('_', '-')} is the study's to say; leave it out")
    given = gathered(name, **found)
    if any(axis.dotted.startswith(("data.", "backbone.")) for axis in axes):
        return  # to each trial's own
    own = {section: table for section, table in tables(base.load().settings).items() if section in ("data", "backbone")}
    schema: Schema[Any] = FINETUNE if name == FINETUNE.command else PROBE
    try:
        compose(
            schema, preset=given.preset, config=None if given.config is None else Path(given.config), flags=given.flags,
            assignments=given.assignments, base=(own, "the trials"), environ=environ,
        )  # fmt: skip
    except DsdmaeError as error:
        raise type(error)(f"{said}: {error}") from error


def _check_without_knn(metric: str, prune: bool) -> None:
    if metric == "knn":
        raise SettingsError("--metric knn needs train.knn_every, which is none; leave it out, or choose another metric")
    if prune and metric != "loss":
        raise SettingsError("--prune goes by the k-NN accuracy on the way, and train.knn_every is none; leave one out")


def _pair(text: str) -> tuple[str, str]:
    key, equals, values = text.partition("=")
    if not equals:
        said = f"--sweep {text}".strip()
        raise SettingsError(f"{said} has no values: it takes KEY VALUES (for example --sweep lambda 0.2,0.6)")
    return key, values
