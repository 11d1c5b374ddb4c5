"""Commands whose help is free of noise, and a group whose help does not wait for pydantic."""

from __future__ import annotations

import functools
import inspect
import itertools
import re
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from dsdmae_cli.errors import SettingsError

# Any error of usage. Typer carries a copy of click from some release on, and exports this class from neither.
USAGE_ERROR: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
_SHOWN = "dsdmae "  # begins a line that is a command
_PLACE = re.compile(r"\b(FILE|DIR|PATH|RUN)\b")  # of metavars
_TINY = 1e-3  # a least value below it stands for "above 0"


class Command(TyperCommand):
    """A command whose help does not say of what type a flag or an argument is: a name says it, or nothing has to.

    Its words run to the width of the terminal, where Rich would keep the line ends of the source.
    """

    def __init__(self, *args: Any, help: str | None = None, **settings: Any) -> None:
        super().__init__(*args, help=help and _flowing(help), **settings)

    def get_params(self, ctx: Any) -> list[Any]:
        return _without_types(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _refuse_empty(self, ctx, args)
        return super().parse_args(ctx, args)


def _refuse_empty(command: Any, ctx: Any, args: list[str]) -> None:
    """Refuse an empty word for an argument or a path: it is what a shell makes of "$VARIABLE" that is not set, and
    pathlib would take it for the current folder.

    Raises:
        SettingsError: there is one.
    """
    if not any(word == "" or word.endswith("=") for word in args) or ctx.resilient_parsing:
        return
    given, _, _ = command.make_parser(ctx).parse_args(list(args))
    if given.get("help"):  # who asks for it does not know yet what to give
        return
    for param in command.get_params(ctx):
        word, is_argument = given.get(param.name), param.param_type_name == "argument"
        if "" not in (word if isinstance(word, list | tuple) else [word]):
            continue
        # By its metavar, which says what it takes: not every path is one to Typer (FILE|DIR|-).
        if is_argument or _PLACE.search(param.metavar or ""):
            flag, left = ("" if is_argument else f"{param.opts[0]} "), ("" if param.required else ", or leave it out")
            raise SettingsError(f"{flag}'' names nothing; give {param.metavar or param.name}{left}")


def _flowing(text: str) -> str:
    """The text with line ends only between paragraphs and before and after a command that is shown."""
    lines = re.sub(r"(?<!\n)\n(?!\n)", "\0", inspect.cleandoc(text)).split("\0")
    found = lines[0]
    for before, line in itertools.pairwise(lines):
        shown = any(part.lstrip().startswith(_SHOWN) for part in (before.rpartition("\n")[2], line))
        found += ("\n" if shown else " ") + line
    return found


def _without_types(params: list[Any]) -> list[Any]:
    for param in params:
        if param.param_type_name == "argument":
            param.display_type_rich = _nothing
        elif param.is_flag:
            param.metavar = ""
        if getattr(param, "min", None) is not None:
            param._get_number_range_help_str = functools.partial(_range, param.min, param.max)
    return params


def _range(low: float, high: float | None) -> str:
    """The range of a number in words: "from 1 up", "1 to 256"."""
    if high is not None:
        return f"{low} to {high}"
    return "above 0" if 0 < low < _TINY else f"from {low} up"


def _nothing(ctx: Any) -> None:
    pass


class Group(TyperGroup):
    """A group that looks at its own options only where one is given.

    Where a command comes first there is none, and to find that out Typer imports pydantic: a third of the time that
    `dsdmae COMMAND --help` takes.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _refuse_empty(self, ctx, args)
        self._called = bool(args) and args[0] in self.commands
        return super().parse_args(ctx, args)

    def get_params(self, ctx: Any) -> list[Any]:
        return [] if getattr(self, "_called", False) else _without_types(super().get_params(ctx))
