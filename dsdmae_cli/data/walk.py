"""Visible files below a folder, by name. No torch here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal


def walk(folder: Path | str, prefix: str = "", above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Names of visible files below a folder; a symbolic link back to a folder above is not followed."""
    found = os.stat(folder)  # noqa: PTH116
    identity = (found.st_dev, found.st_ino)
    if identity in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            kind = _kind(entry)
            if kind == "folder":
                yield from walk(entry.path, f"{prefix}{entry.name}/", (*above, identity))
            elif kind == "file":
                yield prefix + entry.name


def _kind(entry: os.DirEntry[str]) -> Literal["folder", "file", "other"]:
    # A link that leads nowhere counts as a file, to be reported as unreadable like any other; a pipe or a
    # device is left out because it would block whoever opens it.
    try:
        if entry.is_dir():
            return "folder"
        dangling = entry.is_symlink() and not os.path.exists(entry)  # noqa: PTH110
        return "file" if dangling or entry.is_file() else "other"
    except OSError:  # a link to itself
        return "file"
