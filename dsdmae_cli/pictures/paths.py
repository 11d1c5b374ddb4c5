"""Which pictures a command line means, and where each result goes. No torch here: a mistyped name is told at once."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dsdmae_cli.data.decode import IMAGE_SUFFIXES
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.files import beside
from dsdmae_cli.page import PAGE
from dsdmae_cli.pictures.picture import WRITERS, Picture

STDIN = "-"
# What `dsdmae restore` writes of a picture, each a file.
PARTS = ("corrupted", "restored", "original")
_WRITTEN = ", ".join(WRITERS)


@dataclass(frozen=True)
class Source:
    """A picture to read.

    Attributes:
        path: its file; None = standard input, or `held`.
        inside: its place below the folder that was named, which a folder of results repeats.
        held: what to call it and a file's content, of a picture that is at hand.
    """

    path: Path | None
    inside: Path = Path()
    held: tuple[str, bytes] | None = None

    def content(self) -> Path | bytes:
        """What to decode; standard input can be read once."""
        return self.path or (sys.stdin.buffer.read() if self.held is None else self.held[1])

    def __str__(self) -> str:
        return str(self.path) if self.path else "standard input" if self.held is None else self.held[0]


@dataclass(frozen=True)
class Failure:
    """What could not be done, and why, in a few words.

    Attributes:
        of_input: it lies in what was named or asked for, not in the machine: a full disk would be one that does not.
    """

    source: str
    reason: str
    of_input: bool = True

    def __str__(self) -> str:
        return f"{self.source} ({self.reason})"


def told(failures: Sequence[Failure], most: int = 3) -> str:
    """The first of them, and how many more there are: a thousand are no line."""
    shown = "; ".join(map(str, failures[:most]))
    return shown + (f"; and {len(failures) - most:,} more" if len(failures) > most else "")


@dataclass(frozen=True)
class Target:
    """Where a result goes.

    Attributes:
        path: the file; None = standard output.
        open_ended: the format is not chosen yet and its suffix comes last.
    """

    path: Path | None
    open_ended: bool = False

    def file(self, picture: Picture) -> Path | None:
        """The file for this picture."""
        if self.path is None or not self.open_ended:
            return self.path
        return self.named(picture.suffix)

    def named(self, suffix: str) -> Path:
        """The file of this format."""
        assert self.path is not None
        return self.path.with_name(self.path.name + suffix)


@dataclass(frozen=True)
class Results:
    """Where results go and how they are named.

    Attributes:
        out: a file, a folder, or `-` for standard output; None = beside each picture.
        kind: what is written: "denoised", "triptych", or a part of what `dsdmae restore` shows; "" = no pictures, so
            that none is a result of this command.
        suffix: what a name gets; None = .KIND, and nothing for denoised pictures in another folder than their own.
        verb: what is done to pictures, for messages.
        alone: a name says nothing of the other pictures: of a.jpg and a.png, which would have one, both are refused.
    """

    out: str | None = None
    kind: str = "denoised"
    suffix: str | None = None
    verb: str = "denoise"
    alone: bool = False

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Names that end so are results of this command."""
        if not self.kind:
            return ()
        own = PARTS if self.kind in PARTS else ("denoised", "triptych")
        return (*(f".{kind}" for kind in own), *((self.suffix,) if self.suffix else ()))

    def of(self, source: Source, folder: Path) -> str:
        """What the name of a picture gets whose result goes to a folder."""
        if self.suffix is not None:
            return self.suffix
        elsewhere = source.path is None or source.path.parent.resolve() != folder.resolve()
        return "" if elsewhere and self.kind == "denoised" else f".{self.kind}"


def find(
    named: list[str], results: Results, say: Callable[[str], None] | None = None
) -> tuple[list[Source], list[Failure]]:
    """The pictures that files, folders, globs and `-` stand for, each once, and what stands for none.

    In folders those with an image's suffix count, at any depth, but neither hidden ones nor results of this command: by
    their names, and in a folder of results inside.

    Args:
        say: is told how many visible files of other suffixes lie in folders beside the pictures, and what reads them.

    Raises:
        SettingsError: nothing was named, or standard input is not alone.
    """
    if not named:
        raise SettingsError(f"nothing to {results.verb}: name pictures, folders or globs, or - for standard input")
    if STDIN in named:
        if len(named) > 1:
            raise SettingsError("- (standard input) is one picture and stands alone; name files in another call")
        return [Source(None)], []
    found: dict[Path, Source] = {}
    failures: list[Failure] = []
    others: set[str] = set()
    for name in named:
        for item in _expand(name, results, others):
            if isinstance(item, Failure):
                failures.append(item)
            else:
                assert item.path is not None
                found.setdefault(_identity(item.path), item)
    if others and found and say is not None:
        say(f"{_passed_over(others)} passed over")
    return list(found.values()), failures


def _expand(name: str, results: Results, others: set[str]) -> Iterator[Source | Failure]:
    path = Path(name)
    if path.is_dir():
        yield from _in_folder(path, results, others)
    elif path.exists() or not glob.has_magic(name):
        # A file that is not there is one that cannot be read: the others are still done.
        yield Source(path, Path(path.name)) if path.exists() else Failure(name, f"no such file or folder{beside(path)}")
    else:
        matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207  (Path.glob takes no absolute pattern)
        if not matches:
            yield Failure(name, "nothing matches")
        for match in matches:
            yield from _expand(glob.escape(match) if not Path(match).exists() else match, results, others)


def _identity(path: Path) -> Path:
    """By which a picture that is named twice is known; a link to itself stands for itself, and cannot be read."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path.absolute()


def _in_folder(folder: Path, results: Results, others: set[str]) -> Iterator[Source | Failure]:
    """The pictures of a folder; the names of its other visible files go to `others`."""
    passed: set[str] = set()
    written = None if results.out in (None, STDIN) else Path(str(results.out)).resolve()
    refused: list[OSError] = []
    num_found = 0
    for place, folders, names in os.walk(folder, onerror=refused.append):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and Path(place, name).resolve() != written
        )
        for name in sorted(names):
            path = Path(place, name)
            if name.startswith(".") or not (path.is_file() or path.is_symlink()):  # a pipe blocks whoever opens it
                continue
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                passed |= set() if name == PAGE else {str(path)}
            elif not path.stem.endswith(results.suffixes):
                num_found += 1
                yield Source(path, path.relative_to(folder))
    others |= passed
    for error in refused:
        yield Failure(str(error.filename), (error.strerror or str(error)).lower())
    if not num_found and not refused:
        yield Failure(str(folder), f"a folder without images{f': {_passed_over(passed)}' if passed else ''}")


def _passed_over(names: Iterable[str]) -> str:
    from dsdmae_cli.data.files import by_suffix, passed_over_words

    return passed_over_words(by_suffix(names))


def targets(sources: list[Source], results: Results) -> list[Target]:
    """Where each result goes: beside its source as NAME.denoised.png by default, to another folder as NAME.png.

    Two sources of one name (a.jpg, a.png) keep their suffixes, a.jpg.denoised.png, unless names are to stand alone.

    Raises:
        SettingsError: one file for several pictures, a format that is not written, or two results of one name.
    """
    out = results.out
    if results.suffix is not None and any(mark and mark in results.suffix for mark in ("/", os.sep, "\0")):
        raise SettingsError(f"--suffix {results.suffix} is no part of a file's name; folders go to --out")
    if out == STDIN or (out is None and sources[0].path is None):
        if len(sources) > 1:
            raise SettingsError(f"--out - takes one picture, there are {len(sources)}; name a folder")
        return [Target(None)]
    if out is not None and not _means_folder(out):
        path = Path(out)
        if path.suffix.lower() not in WRITERS:
            raise SettingsError(f"--out {out}: it must end in {_WRITTEN}, or in / to be a folder")
        if len(sources) > 1:
            raise SettingsError(f"--out {out} is one file and there are {len(sources)} pictures; name a folder")
        return [Target(path)]
    bases = [_place(source, out) for source in sources]
    counts = Counter(base.with_suffix("") for base in bases)
    found: dict[Path, Source] = {}
    for source, base in zip(sources, bases, strict=True):
        name = base.stem if results.alone or counts[base.with_suffix("")] == 1 else base.name
        path = base.with_name(name + results.of(source, base.parent))
        if path in found:
            raise SettingsError(
                f"{found[path]} and {source} would both become {path}.png; {results.verb} them in two calls, to two"
                " folders (of a folder that is named the subfolders stay apart)"
            )
        found[path] = source
    return [Target(path, open_ended=True) for path in found]


def _means_folder(out: str) -> bool:
    return Path(out).is_dir() or out.endswith(("/", os.sep)) or not Path(out).suffix


def _place(source: Source, out: str | None) -> Path:
    if source.path is None:
        assert out is not None
        return Path(out) / "stdin.png"
    return source.path if out is None else Path(out) / source.inside


def reference_of(source: Source, reference: Path) -> Path:
    """The clean picture of a noisy one: `reference` itself, or in that folder the file of the same name.

    Another suffix will do, since the one may be a JPEG and the other a PNG.

    Raises:
        SettingsError: the folder has none.
    """
    if not reference.is_dir():
        return reference
    inside = source.inside
    same = reference / inside
    if same.is_file():
        return same
    others: list[Path] = []
    with suppress(OSError):  # there is no such folder
        others = [path for path in same.parent.iterdir() if path.stem == same.stem and path.is_file()]
    for choice in sorted(others, key=lambda path: (path.suffix.lower(), path.name)):
        if choice.suffix.lower() in IMAGE_SUFFIXES:  # .JPG is what cameras write
            return choice
    raise SettingsError(f"--reference {reference} has no picture named {inside.with_suffix('')}")
