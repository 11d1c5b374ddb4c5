"""The page of a run that was killed, which could not say so itself. No torch here."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from dsdmae_cli.config.sources import read_toml
from dsdmae_cli.errors import RunFailed
from dsdmae_cli.page.curves import Curves
from dsdmae_cli.page.run import Story, write_page
from dsdmae_cli.runs.listing import read
from dsdmae_cli.runs.rundir import RUN, SETTINGS, RunDir


def mend(path: Path) -> bool:
    """Write the page of a run anew where the run ended without a word; whether that was so.

    Raises:
        SettingsError: its settings are damaged.
    """
    found, directory = read(path), RunDir(path)
    about = {}
    with suppress(OSError, ValueError):  # of a killed machine any file may be torn
        about = directory.read_json(RUN)
    if found.state != "failed" or about.get("ended"):
        return False
    asked = {name: table for name, table in read_toml(path / SETTINGS).items() if isinstance(table, dict)}
    settings = about.get("resolved_settings")
    story = Story(
        folder=path,
        command=found.command,
        state="failed",
        why=found.why,
        epochs=found.epochs,
        settings=settings if isinstance(settings, dict) else asked,
        asked=asked,
        about=about,
        curves=Curves(directory.metrics()),
        warnings=[str(warning) for warning in about.get("warnings") or ()],
    )
    try:
        write_page(story)
    except RunFailed:  # somebody else's folder: the page stays as it was
        return False
    return True
