"""From declared flags to a command's parameters, and from what was typed to one object.

Flags for settings are declared in config/flags.py; the others that commands share are declared here. `takes` gives a
command all of both that are its own: Typer reads them off the signature, the function gets a `Given`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from dsdmae_cli.cli import completion
from dsdmae_cli.config.flags import DEFAULT_PRESETS, RUN, SOURCES, Flag, flags_of
from dsdmae_cli.config.given import Given
from dsdmae_cli.config.help import help_of
from dsdmae_cli.errors import SettingsError


@dataclass(frozen=True)
class Shared:
    """A parameter of several commands that is no setting's.

    Attributes:
        field: of Given; `images` becomes a flag of it.
        type: as Typer knows it.
        info: makes its typer.Option or typer.Argument for a command.
        commands: that have it.
    """

    field: str
    type: Any
    info: Callable[[str], Any]
    commands: tuple[str, ...]


def _option(*names: str, metavar: str | None = None, panel: str, help: str, complete: Any = None) -> Any:
    return typer.Option(
        *names, metavar=metavar, help=help.replace("[", "\\["), rich_help_panel=panel, show_default=False,
        autocompletion=complete,
    )  # fmt: skip


def _preset(command: str) -> Any:
    whose = "finetune" if command in ("finetune", "worth") else "pretrain"
    alone, beside = DEFAULT_PRESETS[whose if command == "config show" else command]
    default = {alone: f"{alone}", None: f"{alone}, where no dataset is named"}.get(
        beside, f"{alone}, or {beside} where a dataset is named"
    )
    kinds = "RECIPE,DATASET" if whose == "finetune" else "METHOD,DATASET,SIZE"
    text = f"Packaged settings, together as {kinds}, or repeated; `dsdmae config presets` lists them. Default {default}"
    return _option("--preset", metavar="NAME[,NAME]", panel=SOURCES, help=text, complete=completion.presets(whose))


def _set(command: str) -> Any:
    what = "A setting of [data] or [backbone]" if command in ("embed", "export") else "Any setting"
    return _option(
        "--set", metavar="SECTION.KEY=VALUE", panel=SOURCES, complete=completion.assignments,
        help=f"{what}, repeatable; `dsdmae config describe` lists them",
    )  # fmt: skip


def _subject(command: str) -> Any:
    # What else stands for weights; whether pre-training pays is no question where there was none.
    others = {"finetune": {"scratch": "random ones"}, "worth": {}}.get(
        command, {"scratch": "random ones", "pixels": "none at all"}
    )
    ends = "".join(f", or {meaning} ({word})" for word, meaning in others.items())
    verb = "start from" if command == "finetune" else "judge"
    return typer.Argument(
        metavar="RUN|ENCODER|timm:NAME" + ("|scratch" if others else ""), show_default=False,
        autocompletion=completion.subjects,
        help=f"What to {verb}: a run's directory, a file of weights (.safetensors, .pth, ...), timm's published"
        f" weights, those of a repository on the Hugging Face hub (hf:OWNER/NAME){ends}",
    )  # fmt: skip


def _dataset(command: str) -> Any:
    return typer.Argument(
        metavar="PATH|NAME", show_default=False, autocompletion=completion.datasets,
        help="The images, as --dataset takes them: a folder, an archive, or a dataset's name",
    )  # fmt: skip


_DEBUG = _option("--debug", panel=RUN, help="Show the traceback of an error")
_TRAIN = ("pretrain", "tokenizer", "finetune")
_FOUND = ("pretrain", "finetune")  # whose last run --resume finds
_RUNS = (*_TRAIN, "ablate", "probe", "worth")

SHARED = (
    Shared("subject", str | None, _subject, ("finetune", "probe", "worth")),
    Shared("images", str | None, _dataset, ("pretrain", "tokenizer")),
    Shared("preset", list[str] | None, _preset, (*_TRAIN, "ablate", "worth", "config show")),
    Shared(
        "config", Path | None,
        lambda _: _option("--config", metavar="FILE.toml", panel=SOURCES,
                          help="Your settings, as `dsdmae config show` prints them"),
        (*_RUNS, "config show"),
    ),
    Shared("assignments", list[str] | None, _set, (*_RUNS, "config show", "embed", "export")),
    Shared(
        "like", str | None,
        lambda _: _option("--like", metavar="RUN", panel=SOURCES, complete=completion.runs,
                          help="For scratch and pixels: whose data and backbone to take"),
        ("finetune", "probe"),
    ),
    Shared(
        "out", Path | None,
        lambda _: _option("--out", metavar="DIR", panel=RUN, complete=completion.directories,
                          help="The run's directory, new or empty. Default: one of its own under the user's data"
                          " directory"),
        _RUNS,
    ),
    Shared(
        "resume", bool,
        lambda command: _option("--resume", panel=RUN, help="Go on with the run in --out, by its own settings"
                                + ("; without --out the last one that has not finished" if command in _FOUND else "")),
        _TRAIN,
    ),
    Shared(
        "name", str | None,
        lambda _: _option("--name", metavar="NAME", panel=RUN,
                          help="What to call the run, in place of --out: its directory where runs go by default"),
        _TRAIN,
    ),
    Shared(
        "accept_changes", bool,
        lambda _: _option("--accept-changes", panel=RUN,
                          help="With --resume: go on though the run's settings.toml or its images have changed"),
        _TRAIN,
    ),
    Shared(
        "dry_run", bool,
        lambda _: _option("--dry-run", panel=RUN, help="Print what the run would be, write nothing"),
        _RUNS,
    ),
    Shared(
        "json", bool,
        lambda _: _option("--json", panel=RUN, help="One JSON object on stdout, no progress"),
        _RUNS,
    ),
    Shared(
        "debug", bool, lambda _: _DEBUG,
        (*_RUNS, "config show", "embed", "export", "denoise", "predict", "restore"),
    ),
)  # fmt: skip
# The flags for settings stand between what is said of their sources and what is said of the run.
_BEFORE_SETTINGS = ("subject", "images", "preset", "config", "assignments", "like")

# For commands that take no settings.
Debug = Annotated[bool, _DEBUG]


def takes(command: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command's function every flag that is declared for it, in place of its parameter `given`.

    Another parameter whose type is a dataclass stands for flags of the command's own, one a field; it gets an instance.

    Args:
        command: its name, by which flags are declared for it.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        given = partial(gathered, command)
        own = inspect.signature(function, eval_str=True).parameters
        made: dict[str, tuple[Callable[..., Any], list[inspect.Parameter]]] = {
            name: (given, _declared(command)) if kind is Given else (kind, _fields(kind))
            for name, kind in ((name, p.annotation) for name, p in own.items())
            if isinstance(kind, type) and is_dataclass(kind)
        }
        parameters = [flag for name, p in own.items() for flag in (made[name][1] if name in made else [p])]

        def run(**values: Any) -> None:
            wholes = {
                name: make(**{flag.name: values.pop(flag.name) for flag in flags})
                for name, (make, flags) in made.items()
            }
            function(**wholes, **values)

        run.__name__, run.__doc__, run.__module__ = function.__name__, function.__doc__, function.__module__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def gathered(command: str, **values: Any) -> Given:
    """What was given, of the values of all parameters that are declared for a command.

    Raises:
        SettingsError: two of them contradict each other.
    """
    said = {flag.setting: _said(flag, values.pop(_identifier(flag))) for flag in flags_of(command)}
    several = {name: tuple(values.pop(name)) for name in ("preset", "assignments") if values.get(name)}
    values = _placed(command, values)
    images, origins = values.pop("images", None), {}
    if images is not None:
        if said["data.dataset"] not in (None, images):
            raise SettingsError(
                f"two datasets are named, {images} and --dataset {said['data.dataset']}; give one of them"
            )
        said["data.dataset"], origins["data.dataset"] = images, "the command line"
    return Given({k: v for k, v in said.items() if v is not None}, origins, **(values | several))


def _said(flag: Flag, value: Any) -> Any:
    """What a flag says; one that was given several times a list, as people type one.

    Raises:
        SettingsError: it was given, and says nothing.
    """
    if isinstance(value, list) and not all(part.strip() for word in value for part in word.split(",")):
        raise SettingsError(f"{flag.name} {','.join(value)!r} names nothing; give {flag.metavar}, or leave it out")
    return (",".join(value) or None) if isinstance(value, list) else value


def _placed(command: str, values: dict[str, Any]) -> dict[str, Any]:
    """The values with --name, and --resume without a place, as the directory that is meant.

    Raises:
        SettingsError: --name beside --out, or no name; there is no run to go on with.
    """
    name, out = values.pop("name", None), values.get("out")
    if name is not None:
        from dsdmae_cli.runs.listing import named

        if out is not None:
            raise SettingsError(f"--name {name} and --out {out} both say where the run goes; give one of them")
        return {**values, "out": named(name)}
    # Several processes would each look for it, some of them after the first has taken it.
    if values.get("resume") and out is None and command in _FOUND and os.environ.get("WORLD_SIZE", "1") in ("", "1"):
        from dsdmae_cli.report import say
        from dsdmae_cli.runs.listing import last_unfinished, since

        run, number = last_unfinished(command)
        of = f", the last of {number} that have not finished" if number > 1 else ""
        if not values.get("json"):
            say(f"going on with {run.name}{of}: {run.state} {since(run)} ago")
        return {**values, "out": run.path}
    return values


def _fields(whole: Any) -> list[inspect.Parameter]:
    """The parameters that stand for a dataclass."""
    parameters = inspect.signature(whole, eval_str=True).parameters.values()
    return [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]


def _declared(command: str) -> list[inspect.Parameter]:
    """The parameters that stand for a command's declared flags."""
    shared = {s.field: _parameter(s.field, s.type, s.info(command)) for s in SHARED if command in s.commands}
    first = [shared.pop(name) for name in _BEFORE_SETTINGS if name in shared]
    return [*first, *(_setting(flag, command) for flag in flags_of(command)), *shared.values()]


def _setting(flag: Flag, command: str) -> inspect.Parameter:
    info = _option(
        flag.name, metavar=flag.metavar, panel=flag.panel, help=help_of(flag, command),
        complete=completion.values_of(flag, command) if flag.metavar else None,
    )  # fmt: skip
    type_: Any = list[str] if flag.several else str if flag.metavar else bool
    return _parameter(_identifier(flag), type_ | None, info)


def _parameter(name: str, type_: Any, info: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=False if type_ is bool else None,
        annotation=Annotated[type_, info],
    )


def _identifier(flag: Flag) -> str:
    return flag.setting.replace(".", "_")
