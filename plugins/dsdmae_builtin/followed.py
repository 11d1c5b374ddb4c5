"""Paths that a table of images holds in place of the images: followed to files that lie beside it. No torch here."""

from __future__ import annotations

from pathlib import Path

from dsdmae_cli.data.base import UnreadableImage


def followed(text: str, table: Path, name: str) -> Path:
    """The file that a row of a table names: below the table's folder, and nowhere else, links followed.

    Args:
        name: what to call the row in messages.

    Raises:
        UnreadableImage: it lies elsewhere, or is not there.
    """
    folder = table.parent
    try:
        found = (folder / text).resolve()
        inside, there = found.is_relative_to(folder.resolve()), found.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, a link to itself
        inside, there = True, False
    if not inside:
        reason = f"its path {text!r} leads out of {folder}, and no further is followed; put the images there, or write"
        raise UnreadableImage(name, f"{reason} their bytes into the table")
    if not there:
        reason = f"no bytes in its row, and its path {text!r} is no file in {folder}; put the images there, or write"
        raise UnreadableImage(name, f"{reason} their bytes into the table")
    return folder / text
