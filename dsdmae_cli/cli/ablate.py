"""`dsdmae ablate`."""

from __future__ import annotations

import shlex
from collections import deque
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from dsdmae_cli.cli import options as o
from dsdmae_cli.config.flags import FLAGS
from dsdmae_cli.errors import SettingsError, nearest

_STUDY = "Study"
_PAPERS = ("fig3", "fig4", "table3")
_SEARCHES = ("grid", "tpe", "random")
_EQUALS = ("epochs", "compute")
_KEYS = [flag.split("/")[0].removeprefix("--") for flag in FLAGS if flag != "--seed"] + ["heads"]


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


class SweepCommand(TyperCommand):
    """A command with `--sweep KEY VALUES`, in parsing and in completion."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, fold(args))

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        # The shell asks for the word after --sweep KEY: the key stands there alone, folded without values.
        last = (ctx.params.get("sweep") or [""])[-1]
        if last and "=" not in last and not incomplete.startswith("-"):
            from typer._click.shell_completion import CompletionItem

            return [CompletionItem(text) for text in _examples(last) if text.startswith(incomplete)]
        return list(super().shell_complete(ctx, incomplete))


def _complete_keys(incomplete: str) -> list[str]:
    from dsdmae_cli.config.describe import key_of
    from dsdmae_cli.config.schema import SECTIONS, section_class

    if "." not in incomplete:
        return [key for key in [*_KEYS, *(f"{s}." for s in SECTIONS)] if key.startswith(incomplete)]
    section = incomplete.partition(".")[0]
    if section not in SECTIONS:
        return []
    fields = section_class(section, {}).model_fields
    return [d for n, f in fields.items() if (d := f"{section}.{key_of(n, f)}").startswith(incomplete)]


def _complete_metrics() -> list[str]:
    from dsdmae_cli.ablation.definition import metric_names

    return metric_names()


def _examples(key: str) -> list[str]:
    """Values that a key may have, where they are few words."""
    from dsdmae_cli import plugins

    kinds: dict[str, plugins.Kind] = {"method": "method", "backbone": "backbone", "dataset": "dataset"}
    if key in kinds:
        return [plugin.name for plugin in plugins.discover(kinds[key])]
    return {
        "heads": ["both,decoder,regressor"],
        "mask-ratio": ["0.75..0.95"],
        "lambda": ["0.2..0.8"],
        "precision": ["bf16,fp32"],
        "compile": ["true,false"],
        "lr": ["1e-4..1e-2/5log"],
    }.get(key, [])


def _option(*words: str, **more: Any) -> Any:
    return typer.Option(*words, rich_help_panel=_STUDY, show_default=False, **more)


Sweep = Annotated[
    list[str] | None,
    _option("--sweep", metavar="KEY VALUES", autocompletion=_complete_keys,
            help="What differs between trials, repeatable (a grid). KEY is a flag's name (mask-ratio), a setting"
            " (optim.weight_decay) or heads (both,decoder,regressor); VALUES a range 0.75..0.95, with :0.05 a step or"
            " /5 a number of values, or a list 0.2,0.4,0.6"),
]  # fmt: skip
PaperPreset = Annotated[
    str | None,
    _option("--paper", metavar="NAME", autocompletion=lambda: list(_PAPERS),
            help="An ablation of the paper: fig3 (mask ratio), fig4 (lambda), table3 (heads), three seeds each"),
]  # fmt: skip
MetricName = Annotated[
    str | None,
    _option("--metric", metavar="NAME", autocompletion=_complete_metrics,
            help="What trials are judged by: knn (default) or loss of the run itself, finetune, or a probe by name"),
]  # fmt: skip
MetricOptions = Annotated[
    str | None,
    _option("--metric-options", metavar="WORDS",
            help="Further options of the command that probes or fine-tunes, in one word: '--epochs 20'"),
]  # fmt: skip
Seeds = Annotated[
    int | None,
    _option("--seeds", metavar="N", min=1, help="Runs of each setting, for error bars. Default 1; 3 with --paper"),
]
Equal = Annotated[
    str,
    _option("--equal", metavar="NAME", autocompletion=lambda: list(_EQUALS),
            help="What trials have the same of: epochs (default), or compute: each gets the epochs whose work comes"
            " nearest to that of the settings they share, without what is swept"),
]  # fmt: skip
Search = Annotated[
    str,
    _option("--search", metavar="NAME", autocompletion=lambda: list(_SEARCHES),
            help="grid (default: all values), or tpe or random: --trials settings drawn from the ranges"),
]  # fmt: skip
Trials = Annotated[int | None, _option("--trials", metavar="N", min=1, help="Settings that a search draws")]
Prune = Annotated[
    bool, _option("--prune", help="Stop a trial that does worse than half of the finished ones did at that moment")
]
Workers = Annotated[
    int | None, _option("--workers", metavar="N", min=1, help="Trials at a time. Default: on a CPU one a core, else 1")
]
Parallel = Annotated[
    bool, _option("--parallel", help="A worker for each GPU; on a CPU the cores are shared out anyway")
]
Storage = Annotated[
    str | None,
    _option("--storage", metavar="URL", help="A database that several machines share (sqlite:///FILE, postgresql://...,"
            " mysql://...). Default: a journal in the study's directory"),
]  # fmt: skip
RetryFailed = Annotated[bool, _option("--retry-failed", help="Run failed trials once more")]


def command(
    sweep: Sweep = None,
    paper: PaperPreset = None,
    metric: MetricName = None,
    metric_options: MetricOptions = None,
    seeds: Seeds = None,
    equal: Equal = "epochs",
    search: Search = "grid",
    trials: Trials = None,
    prune: Prune = False,
    workers: Workers = None,
    parallel: Parallel = False,
    storage: Storage = None,
    retry_failed: RetryFailed = False,
    preset: o.Preset = None,
    config: o.Config = None,
    set_: o.Set = None,
    dataset: o.Dataset = None,
    data_dir: o.DataDir = None,
    strict_data: o.StrictData = None,
    method: o.Method = None,
    backbone: o.Backbone = None,
    mask_ratio: o.MaskRatio = None,
    noise_std: o.NoiseStd = None,
    lambda_: o.Lambda = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    lr: o.Lr = None,
    seed: o.Seed = None,
    device: o.Device = None,
    precision: o.Precision = None,
    compile: o.Compile = None,
    out: o.Out = None,
    dry_run: o.DryRun = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Run an ablation: pre-train once for each value of a setting, and report which is best.

    dsdmae ablate --sweep mask-ratio 0.75..0.95 --seeds 3

    Settings that all trials share are given as to `dsdmae pretrain`; without any, a small preset on handwritten digits
    (quick-ablate) stands in. Every trial is a run of its own below --out. The same command again goes on where it was,
    and may run several times at once: the processes share the trials.
    """
    given = dict(locals())
    if (sweep is None) == (paper is None):
        raise SettingsError(
            "ablate needs --sweep KEY VALUES (for example --sweep mask-ratio 0.75..0.95) or --paper NAME (fig3, fig4,"
            " table3)" + ("" if sweep is None else "; got both, leave one out")
        )
    _one_of("--search", search, _SEARCHES)
    _one_of("--equal", equal, _EQUALS)
    if (search == "grid") != (trials is None):
        wrong = "--trials is for --search tpe or random; a grid runs all its values" if trials else None
        raise SettingsError(wrong or f"--search {search} needs --trials N: how many settings to draw")
    if paper is not None:
        _one_of("--paper", paper, _PAPERS)
    if paper is not None and search != "grid":
        raise SettingsError(f"--paper {paper} is a grid; leave --search out, or say the --sweep yourself")
    if workers is not None and parallel:
        raise SettingsError("--workers N and --parallel both say how many trials run at a time; give one")

    definition = _definition(given)
    from dsdmae_cli.ablation.dry_run import dry_run as planned
    from dsdmae_cli.recipes.ablate import ablate, study_folder
    from dsdmae_cli.report import Report, print_result

    if dry_run:
        folder = study_folder(definition, out)
        plan, text, warnings = planned(definition, folder, workers=workers, parallel=parallel)
        for warning in warnings:
            Report().warn(warning)
        print_result(plan, as_json=json, text=text)
        return
    result, text = ablate(
        definition,
        out=out,
        storage=storage,
        workers=workers,
        parallel=parallel,
        retry_failed=retry_failed,
        as_json=json,
    )
    print_result(result, as_json=json, text=text)


def _one_of(flag: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise SettingsError(f"{flag} {word}{nearest(word, list(known))}: it takes {', '.join(known)}")


def _definition(given: dict[str, Any]) -> Any:
    """The study that the flags ask for."""
    from dsdmae_cli.ablation.definition import Definition, find_metric
    from dsdmae_cli.ablation.paper import PAPERS
    from dsdmae_cli.ablation.sweep import Base, parse_axes
    from dsdmae_cli.config.schema import PRETRAIN

    figure = PAPERS[given["paper"]] if given["paper"] else None
    name = given["metric"] or (figure.metric if figure else "knn")
    metric = find_metric(name)
    try:
        options = tuple(shlex.split(given["metric_options"] or ""))
    except ValueError as error:
        raise SettingsError(f"--metric-options {given['metric_options']}: {str(error).lower()}") from error
    if options and not metric.command:
        raise SettingsError(
            f"--metric-options is for --metric finetune or a probe; {name} is measured by the run itself"
        )
    if metric.command:
        _see_that_there_is(metric.command[0], name)
    base = Base(given["preset"], given["config"], o.by_setting(PRETRAIN, given), tuple(given["set_"] or ()))
    pairs = [figure.sweep] if figure else [_pair(text) for text in given["sweep"]]
    seeds = given["seeds"] or (figure.seeds if figure else 1)
    base = base.sweeping(pairs)
    axes = parse_axes(pairs, base)
    swept = next((axis.key for axis in axes if axis.dotted == "train.epochs"), None)
    if swept and given["equal"] == "compute":
        raise SettingsError(f"--equal compute gives every trial its epochs, and so does --sweep {swept}; leave one out")
    if base.load().settings.train.knn_every is None:
        if name == "knn":
            raise SettingsError(
                "--metric knn needs train.knn_every, which is none; leave it out, or choose another metric"
            )
        if given["prune"] and name != "loss":
            raise SettingsError(
                "--prune goes by the k-NN accuracy on the way, and train.knn_every is none; leave one out"
            )
    return Definition(
        base=base,
        axes=axes,
        metric=metric,
        seeds=seeds,
        equal=given["equal"],
        search=given["search"],
        trials=given["trials"],
        prune=given["prune"],
        paper=given["paper"],
        metric_options=options,
    )


def _pair(text: str) -> tuple[str, str]:
    key, equals, values = text.partition("=")
    if not equals:
        said = f"--sweep {text}".strip()
        raise SettingsError(f"{said} has no values: it takes KEY VALUES (for example --sweep lambda 0.2,0.6)")
    return key, values


def _see_that_there_is(command: str, metric: str) -> None:
    from dsdmae_cli.cli import app

    if command not in {known.name for known in app.registered_commands}:
        raise SettingsError(f"--metric {metric} needs `dsdmae {command}`, which this version has not; use knn or loss")
