"""A group of commands whose help does not wait for pydantic."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup


class Group(TyperGroup):
    """A group that looks at its own options only where one is given.

    Where a command comes first there is none, and to find that out Typer imports pydantic: a third of the time that
    `dsdmae COMMAND --help` takes.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        self._called = bool(args) and args[0] in self.commands
        return super().parse_args(ctx, args)

    def get_params(self, ctx: Any) -> list[Any]:
        return [] if getattr(self, "_called", False) else super().get_params(ctx)
