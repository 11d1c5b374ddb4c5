"""What `dsdmae doctor` looks at: the program, its libraries, the machine, plugins and extras, each with what to do.

machine.py and program.py look. Nothing heavy is imported at the top: a torch that cannot be imported is one of the
things to be found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "note", "warning", "wrong"]


@dataclass(frozen=True)
class Check:
    """What was found of one thing.

    Attributes:
        state: ok; note: could be better or is worth knowing; warning: will trouble some runs; wrong: must be mended.
        todo: what to do; empty where there is nothing.
    """

    name: str
    state: State
    found: str
    todo: str = ""

    def json(self) -> dict[str, str]:
        """Fit for JSON."""
        return asdict(self)


def checks() -> Iterator[Check]:
    """One after the other, as they are made; what cannot be looked at is wrong too, and hides none of the others."""
    from dsdmae_cli.doctor import machine, program

    looks: tuple[tuple[str, Callable[[], Iterator[Check]]], ...] = (
        ("program", program.itself), ("libraries", program.libraries), ("devices", machine.devices),
        ("precision", machine.precision), ("threads", machine.threads), ("memory", machine.memory),
        ("disk", machine.disk), ("/dev/shm", machine.shm), ("plugins", program.plugins_found),
        ("extras", program.extras), ("environment", program.environment),
    )  # fmt: skip
    for name, look in looks:
        try:
            yield from look()
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            yield Check(
                name,
                "wrong",
                f"it could not be looked at ({type(error).__name__}: {reason})",
                f"install the program again: {program.install()}",
            )


def summary(found: list[Check]) -> dict[str, Any]:
    """All of it for scripts."""
    return {"ok": not any(check.state == "wrong" for check in found), "checks": [check.json() for check in found]}
