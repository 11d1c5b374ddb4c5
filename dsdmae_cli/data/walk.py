"""Visible files below a folder, by name. No torch here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

_NAMED = 3
# Folders that systems and network drives put among a person's own; some hold small copies of all pictures.
SYSTEM_FOLDERS = frozenset({"@eaDir", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found"})


@dataclass
class LeftOut:
    """What a walk came by and left out, by name.

    Attributes:
        special: pipes, sockets and devices, which would block whoever opens them.
        empty: folders with nothing visible in them, the outermost of each.
    """

    special: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)

    def words(self) -> list[str]:
        """What is to be said of them, a phrase each kind."""
        kinds = ((self.special, "pipe, socket or device", "pipes, sockets or devices"),
                 (self.empty, "empty folder", "empty folders"))  # fmt: skip
        return [f"{len(names):,} {one if len(names) == 1 else more} ({_some(names)})"
                for names, one, more in kinds if names]  # fmt: skip


def is_hidden(name: str) -> bool:
    """Whether a file that is named with its folders is one that `walk` passes by."""
    if name.startswith(".") or "/." in name:
        return True
    return any(f"{folder}/" in name and folder in name.split("/") for folder in SYSTEM_FOLDERS)


def walk(
    folder: Path | str, left_out: LeftOut, prefix: str = "", above: tuple[tuple[int, int], ...] = ()
) -> Iterator[str]:
    """Names of visible files below a folder; a symbolic link back to a folder above is not followed.

    Args:
        left_out: is told of the rest.
    """
    found = os.stat(folder)  # noqa: PTH116
    identity = (found.st_dev, found.st_ino)
    if identity in above:
        return
    num_special, num_empty, is_empty = len(left_out.special), len(left_out.empty), True
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name in SYSTEM_FOLDERS:
                continue
            kind = _kind(entry)
            if kind == "folder":
                for name in walk(entry.path, left_out, f"{prefix}{entry.name}/", (*above, identity)):
                    is_empty = False
                    yield name
            elif kind == "file":
                is_empty = False
                yield prefix + entry.name
            else:
                left_out.special.append(prefix + entry.name)
    if is_empty and len(left_out.special) == num_special and prefix:
        left_out.empty[num_empty:] = [prefix]


def _some(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


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
