"""Commands whose help is free of noise, and a group whose help does not wait for pydantic."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup


class Command(TyperCommand):
    """A command whose help does not say of what type a flag or an argument is: a name says it, or nothing has to."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _without_types(super().get_params(ctx))


def _without_types(params: list[Any]) -> list[Any]:
    for param in params:
        if param.param_type_name == "argument":
            param.display_type_rich = _nothing
        elif param.is_flag:
            param.metavar = ""
    return params


def _nothing(ctx: Any) -> None:
    pass


class Group(TyperGroup):
    """A group that looks at its own options only where one is given.

    Where a command comes first there is none, and to find that out Typer imports pydantic: a third of the time that
    `dsdmae COMMAND --help` takes.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        self._called = bool(args) and args[0] in self.commands
        return super().parse_args(ctx, args)

    def get_params(self, ctx: Any) -> list[Any]:
        return [] if getattr(self, "_called", False) else _without_types(super().get_params(ctx))
