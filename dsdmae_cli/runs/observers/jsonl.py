"""metrics.jsonl: every record, a line each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dsdmae_cli.runs.observers.base import Observer

if TYPE_CHECKING:
    from dsdmae_cli.runs.run import Run


class JsonLines(Observer):
    """Appends to the run directory's metrics.jsonl."""

    def recorded(self, run: Run, record: dict[str, Any]) -> None:
        run.directory.log(record)
