"""What the program keeps on disk so that it need not be made or fetched again: listed and cleared. No torch here."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from dsdmae_cli.errors import SettingsError, nearest

# The folders in the user's cache that other rooms fill; each has a function that names its own, and a test compares.
_OWN = {
    "features": "features of images, by encoder: probe, embed, worth; computed anew when they are missing",
    "onnx": "ONNX files made of a denoiser's weights; made anew by `dsdmae denoise --engine onnx`",
    "shards": "indices of .tar shards, by their headers; made anew when they are missing",
    "datasets": "datasets that were downloaded or put there by hand (ImageNet's archives nobody here can fetch again)",
}
_OTHER = "left by another version or a plugin"
# What nobody deletes by clearing all: it may have been put there by a person, or is of a kind not known here.
_WHEN_NAMED = ("datasets",)


@dataclass(frozen=True)
class Kept:
    """One thing that is kept.

    Attributes:
        own: the program's alone, so that it can be cleared; else other programs share it.
        when_named: cleared only where it is named, since it cannot be made or fetched again, or may not.
        files: how many there are.
        bytes: of them together.
        used: when the youngest was written, in seconds since 1970; None where there are none.
    """

    name: str
    path: Path
    what: str
    own: bool
    when_named: bool
    files: int
    bytes: int
    used: float | None

    def json(self) -> dict[str, Any]:
        """Fit for JSON."""
        return {**vars(self), "path": str(self.path)}


def folder() -> Path:
    """The program's own folder in the user's cache."""
    return user_cache_path("dsdmae")


def listed() -> list[Kept]:
    """All that is kept: the program's own, and what it shares with others."""
    own = dict(_OWN)
    with suppress(OSError):
        own |= {path.name: _OTHER for path in sorted(folder().iterdir()) if path.name not in own}
    return [
        *(
            _measured(name, folder() / name, what, own=True, when_named=name in _WHEN_NAMED or what == _OTHER)
            for name, what in own.items()
        ),
        *(_measured(name, path, what, own=False) for name, path, what in _shared()),
    ]


def _shared() -> Iterator[tuple[str, Path, str]]:
    """Folders of libraries that the program uses, where they are."""
    environ = os.environ
    caches = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    hub = Path(environ.get("HF_HUB_CACHE") or Path(environ.get("HF_HOME") or caches / "huggingface") / "hub")
    torch = Path(environ.get("TORCH_HOME") or caches / "torch")
    fonts = Path(environ.get("MPLCONFIGDIR") or caches / "matplotlib")
    for name, path, what in (
        ("hub", hub, "published weights, of other programs too; `hf cache` lists and deletes them"),
        ("torch", torch, "weights and compiled kernels of torch's"),
        ("fonts", fonts, "matplotlib's list of fonts, for figures"),
    ):
        if path.is_dir():
            yield name, path, what


def _measured(name: str, path: Path, what: str, *, own: bool, when_named: bool = True) -> Kept:
    files = list(_files(path))
    newest = max((found.st_mtime for _, found in files), default=None)
    return Kept(name, path, what, own, when_named, len(files), sum(found.st_size for _, found in files), newest)


def _files(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Regular files at or below a path; a link is none."""
    for file in [path] if path.is_file() else path.rglob("*"):
        with suppress(OSError):
            if file.is_file() and not file.is_symlink():
                yield file, file.stat()


def chosen(names: list[str]) -> list[Kept]:
    """Those that are named, or all that are made or fetched again when they are missing.

    Raises:
        SettingsError: a name is none, or belongs to other programs too.
    """
    there = {kept.name: kept for kept in listed()}
    for name in names:
        if name not in there:
            own = [kept.name for kept in there.values() if kept.own]
            raise SettingsError(
                f"nothing that is kept is called {name!r}{nearest(name, own)}; there is {', '.join(own)}"
            )
        if not there[name].own:
            raise SettingsError(
                f"{name} ({there[name].path}) is not the program's alone: others use it too; delete it yourself, if you"
                " mean to"
            )
    return [there[name] for name in dict.fromkeys(names)] if names else [k for k in there.values() if not k.when_named]


def clear(kept: Kept, older_than: float = 0.0) -> tuple[int, int]:
    """Delete its files; how many, and their bytes.

    Args:
        older_than: seconds; younger files stay.

    Raises:
        SettingsError: one cannot be deleted.
    """
    assert kept.own
    limit, number, freed = time.time() - older_than, 0, 0
    for file, found in list(_files(kept.path)):
        if older_than and found.st_mtime > limit:
            continue
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise SettingsError(f"cannot delete {file}: {error.strerror or error}") from error
        number, freed = number + 1, freed + found.st_size
    if not older_than and kept.path.is_dir() and not kept.path.is_symlink():
        shutil.rmtree(kept.path, ignore_errors=True)  # empty folders and links; what may not be deleted does no harm
    return number, freed
