"""What a person may have meant who named a run or a file that is not there. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dsdmae_cli.errors import nearest
from dsdmae_cli.runs.rundir import SETTINGS, default_folder


def near(text: str, *endings: str, words: tuple[str, ...] = ()) -> str:
    """The "did you mean" part of a message; empty where nothing is close. Known are runs by their names, folders beside
    the path, and:

    Args:
        text: as it was typed.
        endings: of files beside it, as ".json".
        words: that may stand in its place.
    """
    return nearest(text, [*words, *_runs(), *_beside(text, endings)])


def _runs() -> list[str]:
    return [path.parent.name for path in default_folder().glob(f"*/{SETTINGS}")]


def _beside(text: str, endings: tuple[str, ...]) -> Iterator[str]:
    """What lies in the folder of a path that does not exist and may have been meant."""
    folder = Path(text).parent
    with suppress(OSError):  # the folder need not exist either
        for path in folder.iterdir():
            if path.suffix in endings or path.is_dir():
                yield str(path)
