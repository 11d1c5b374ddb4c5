"""One picture after the other: what goes wrong with one is noted and the next one taken. What is done to a picture is
the caller's (recipes/denoise.py, recipes/restore.py)."""

from __future__ import annotations

import io
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from dsdmae_cli.data.base import Refused, UnreadableImage
from dsdmae_cli.errors import DataError, DsdmaeError, RunFailed
from dsdmae_cli.files import aside
from dsdmae_cli.pictures import picture as pictures
from dsdmae_cli.pictures.contact_sheet import Panel, draw, height_of
from dsdmae_cli.pictures.outcome import Outcome, Record
from dsdmae_cli.pictures.paths import Failure, Source, told
from dsdmae_cli.pictures.picture import Picture
from dsdmae_cli.pictures.stopping import stoppable
from dsdmae_cli.report import number_of, shown
from dsdmae_cli.report.counted import Counted

_SAID = 3  # failures that are told as they come; all are counted at the end
_ADVICE = "make room, or write elsewhere with --out, and run it again"
# A sheet of more would be of no use to the eye, and is held in memory whole.
MOST_ROWS = 100
_MARGIN = 16  # above and below its rows
_NAME = 60  # characters of a file's name on it


class Exists(DataError):  # noqa: N818
    """A result that is there already, and is left as it is."""


@dataclass(frozen=True)
class Made:
    """What comes of one picture.

    Attributes:
        files: what to write, and where; None = standard output.
        record: what to say of it.
        rows: of the sheet.
        panels: it before and after, for a page.
    """

    files: Sequence[tuple[list[Picture] | Image.Image, Path | None]]
    record: Record
    rows: list[list[Panel]]
    panels: Sequence[Panel] = ()


def each(
    sources: Sequence[Source],
    make: Callable[[int], Made],
    outcome: Outcome,
    report: Counted,
    *,
    device: str,
    sheet: Path | None = None,
    advice_on_size: str = "",
) -> None:
    """Make something of every picture, write it, and note in `outcome` what became of it.

    Args:
        make: is given a picture's number.
        device: that computes, for advice.
        sheet: one more file, with the rows of all.
        advice_on_size: what to do about a picture that has too many pixels.

    Raises:
        DataError, RunFailed: there can be no sheet of that name or in that place, or memory is exhausted.
        RunInterrupted: by a signal; what was written by then is whole.
    """
    rows: list[list[Panel]] = []
    num_shown, num_failed, height, most = 0, 0, _MARGIN, sys.maxsize
    if sheet is not None:
        check_free(sheet, force=True)
        most = pictures.most_of_a_side(sheet.suffix.lower())
    there: list[Failure] = []
    with stoppable(outcome, len(sources)) as stop, report:
        for number, source in enumerate(sources):
            started = time.monotonic()
            report.begin(str(source))
            try:
                made = make(number)
                to_stdout = any(file is None for _, file in made.files)
                # A reader of standard output may keep us waiting; that must not make Ctrl-C wait too.
                with nullcontext() if to_stdout else stop.hold():
                    _write(made.files)
                    outcome.done.append(replace(made.record, seconds=time.monotonic() - started))
                    line = shown(str(outcome.done[-1]), one_line=True)  # a file's name may hold ends of lines
                    report.note(line, to_stdout=not to_stdout)
            except (DsdmaeError, Refused) as error:
                failure = Failure(str(source), _reason(error, advice_on_size), not isinstance(error, RunFailed))
                outcome.failed.append(failure)
                if isinstance(error, Exists):
                    there.append(failure)
                    continue
                num_failed += 1
                if len(sources) > 1 and num_failed <= _SAID:  # one alone is in the error that follows
                    report.warn(str(failure))
                continue
            except MemoryError:
                advice = "end other programs, or cut it" if device == "cpu" else "try --device cpu"
                raise RunFailed(f"{device} ran out of memory at {source}; {advice}") from None
            height += sum(map(height_of, made.rows))  # more than fits leaves out all that follow, not a large one alone
            if sheet is not None and num_shown < MOST_ROWS and height <= most:
                rows, num_shown = rows + (_named(made.rows, source) if len(sources) > 1 else made.rows), num_shown + 1
        if len(sources) > 1 and there:
            report.warn(f"{len(there):,} of {len(sources):,} results are there already, and stay: {told(there)}")
        if num_failed > _SAID:
            report.warn(f"{num_failed:,} of {len(sources):,} failed, of which the first are named above")
        if sheet is not None and outcome.done:
            try:
                if not rows:
                    raise Refused(f"the first picture is higher than {most:,} pixels, which is all that it holds")
                _write([(draw(rows), sheet)])
            except (RunFailed, Refused, ValueError) as error:  # what was written stays, and is told
                outcome.failed.append(Failure(str(sheet), str(error), not isinstance(error, RunFailed)))
                report.warn(str(outcome.failed[-1]))
                return
            outcome.sheet = sheet
            if len(outcome.done) > num_shown:
                report.warn(f"{sheet} shows the first {num_shown} of {number_of(len(outcome.done), 'picture')}")


def _named(rows: list[list[Panel]], source: Source) -> list[list[Panel]]:
    """Rows of a sheet of many, the first of which says whose they are."""
    (first, *others), *below = rows
    name = shown(Path(str(source)).name, one_line=True)
    name = name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"
    return [[replace(first, caption=f"{name}: {first.caption}"), *others], *below]


def check_free(file: Path, *, force: bool) -> None:
    """See, before time is spent, that a result can be written.

    Raises:
        Exists: it does.
        DataError: there can be no file of this name.
        RunFailed: its folder cannot be made, or not be written to.
    """
    try:
        file.stat()
        if not force:
            raise Exists(f"{file} exists; --force replaces it")
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # a name that is too long
        reason = error.strerror or error
        raise DataError(f"cannot write {file}: {reason}; choose another name with --out or --suffix") from error
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFailed(f"cannot make {file.parent}: {error.strerror or error}") from error
    _try(file.parent)


@lru_cache
def _try(folder: Path) -> None:
    """Make a file in a folder and drop it; what went well is not tried again."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".partial"):
            pass
    except OSError as error:
        raise RunFailed(f"cannot write to {folder}: {error.strerror or error}; {_ADVICE}") from error


def _write(files: Sequence[tuple[list[Picture] | Image.Image, Path | None]]) -> None:
    """Write what comes of one picture: all of its files or none, or what is there would keep the rest from being made
    another time."""
    with ExitStack() as whole:
        for result, file in files:
            if file is None:
                content = io.BytesIO()
                _save(result, content, result[0].suffix if isinstance(result, list) else ".png")
                sys.stdout.buffer.write(content.getbuffer())
                sys.stdout.buffer.flush()
                continue
            with whole.enter_context(aside(file, _ADVICE)).open("wb") as stream:
                _save(result, stream, file.suffix.lower())


def _save(result: list[Picture] | Image.Image, stream: BinaryIO, suffix: str) -> None:
    if isinstance(result, list):
        pictures.write(result, stream, suffix)
    else:
        kind, options = pictures.WRITERS[suffix]
        result.save(stream, format=kind, **options)


def _reason(error: Exception, advice_on_size: str) -> str:
    if not isinstance(error, UnreadableImage):
        return str(error)
    more = advice_on_size if error.reason.endswith("million pixels") else ""
    return f"{error.reason}{more}"
