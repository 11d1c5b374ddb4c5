"""What an observer of a run is told, and when.

Every process has the same observers, since all of them may have to run the network (what a sharded one will need);
Run.log passes a record on in the first process alone, and the first one alone writes files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsdmae_cli.runs.run import Run


class Observer:
    """Looks at a run and leaves it as it was. Everything here does nothing until it is overridden."""

    def begin(self, run: Run) -> None:
        """Before the first step, or the first one after a resumption."""

    def stepped(self, run: Run, step: int) -> None:
        """After every step; must be cheap unless it knows that this is its moment."""

    def recorded(self, run: Run, record: dict[str, Any]) -> None:
        """Figures were logged; in the first process alone. "step" and "epoch" are among them."""

    def pictured(self, run: Run, file: Path, step: int) -> None:
        """A picture of this step was drawn, a PNG in the run's figures/; in the first process alone."""

    def epoch_ended(self, run: Run, epoch: int, last: bool) -> None:
        """After an epoch (counted from 1), before a checkpoint is written."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps for it, fit for JSON."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of state; other observers' entries are among it."""

    def end(self, run: Run) -> None:
        """Training is over; not called where the run was stopped or failed."""

    def close(self) -> None:
        """The process leaves the run, however it ended."""
