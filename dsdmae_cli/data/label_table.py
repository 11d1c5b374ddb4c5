"""A CSV file that names image files: its rows, and which of its columns hold names and labels. No torch here."""

from __future__ import annotations

import csv
import io
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dsdmae_cli.errors import DataError
from dsdmae_cli.files import beside, read_within

_DELIMITERS = ",;\t|"
_SAYS_DELIMITER = re.compile(r'"?sep=(.)"?', re.IGNORECASE)  # the first line that Excel takes as a setting
# Headings that people give to a column of labels, in small letters.
LABEL_HEADINGS = ("label", "labels", "class", "class_name", "classname", "category", "target", "species", "breed", "y")
# And to one of names of files.
_FILE_HEADINGS = frozenset({
    "file", "files", "filename", "file_name", "filepath", "file_path", "path", "image", "images", "image_name",
    "image_id", "image_path", "imageid", "img", "picture", "photo", "name", "id",
})  # fmt: skip
_LOOKED_AT = 1000  # rows that a guess stands on

Row = list[str]


# ----------------------------------------------------------------------------------------------- files by name


class NamedFiles:
    """Files by whole or partial name.

    Args:
        names: with "/" between folders; at least one.

    Attributes:
        any_case, any_form: names fit whatever the case, or the Unicode form, of their letters.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.any_case = False
        self.any_form = False
        self._learn(names)

    def _learn(self, names: Sequence[str]) -> None:
        self._by_tail: defaultdict[str, list[int]] = defaultdict(list)
        self._dropped = 0
        for index, name in enumerate(names):
            parts = name.split("/")
            for start in range(len(parts)):
                tail = "/".join(parts[start:])
                # A name without its suffix is another key; of two keys that are equal one is enough.
                for key in {tail, posixpath.splitext(tail)[0]}:
                    self._by_tail[key].append(index)

    def find(self, cell: str) -> list[int]:
        """The files that a cell may mean; its own folders count, but for those that all cells share and no file has."""
        return self._by_tail.get("/".join(self._parts(cell)[self._dropped :]), [])

    def is_whole(self, cell: str) -> bool:
        """Whether a cell that names files does so with their suffix."""
        suffix = posixpath.splitext(self._parts(cell)[-1])[1]
        return bool(suffix) and any(self._plain(self.names[index]).endswith(suffix) for index in self.find(cell))

    def forget(self, *, case: bool) -> None:
        """Let letters be one whose Unicode differs in form alone (macOS takes accents apart), and with `case` capital
        and small ones too: of a table whose names fit no file otherwise.
        """
        self.any_form, self.any_case = not case, case
        self._learn([self._plain(name) for name in self.names])

    def _plain(self, name: str) -> str:
        composed = unicodedata.normalize("NFC", name) if self.any_form or self.any_case else name
        return composed.lower() if self.any_case else composed

    def _parts(self, cell: str) -> list[str]:
        return _parts(self._plain(cell))

    def learn_prefix(self, cells: Sequence[str]) -> None:
        """How many leading folders to drop: those of another place, which all cells begin with.

        The same number of all cells, so that train/1.png is never taken for test/1.png.
        """
        split = [self._parts(cell) for cell in cells]
        shared = 0
        while split and all(len(parts) > shared + 1 and parts[shared] == split[0][shared] for parts in split):
            shared += 1
        self._dropped = 0
        for dropped in range(shared + 1):
            if any("/".join(parts[dropped:]) in self._by_tail for parts in split):
                self._dropped = dropped
                return


def _parts(cell: str) -> list[str]:
    """Of a name as people write it: with either slash, and with ./ in front or not."""
    return [part for part in cell.strip().replace("\\", "/").split("/") if part not in ("", ".")] or [""]


# -------------------------------------------------------------------------------------------------------- rows


def rows_of(path: Path) -> tuple[list[Row], str]:
    """The rows of a table that are not empty, and its delimiter.

    Raises:
        DataError: it cannot be read, or is no table.
    """
    try:
        content = read_within(path.expanduser(), handed_over=True)
    except OSError as error:
        meant = beside(path.expanduser())
        raise DataError(f"cannot read the labels {path}: {(error.strerror or str(error)).lower()}{meant}") from error
    utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))  # as spreadsheets save "Unicode text"
    try:
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8; save it as CSV in UTF-8") from error
    # Lines end as in a file: a name may hold what str.splitlines takes for an end, and in quotes any of them.
    every = list(io.StringIO(text, newline=None))
    lines = [line for line in every if line.strip()][:_LOOKED_AT]
    if not lines or "\0" in text:
        raise DataError(
            f"{path} is {'no text' if lines else 'empty'}; give a CSV file with a file name and a label a row"
        )
    delimiter = max(_DELIMITERS, key=lambda d: _lines_alike(lines, d))
    body = list(io.StringIO(text, newline=""))
    if said := _SAYS_DELIMITER.fullmatch(body[0].strip()):
        delimiter, body = said[1], body[1:]
    try:
        rows = [row for row in csv.reader(body, delimiter=delimiter) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{path} is no CSV file: {error}") from error
    if max(map(len, rows), default=0) < 2:
        raise DataError(f"{path} has one column; give a CSV file with a file name and a label a row")
    return rows, delimiter


def _lines_alike(lines: list[str], delimiter: str) -> int:
    """How many lines have the delimiter equally often."""
    return max(Counter(line.count(delimiter) for line in lines if delimiter in line).values(), default=0)


# ----------------------------------------------------------------------------------------------------- columns


@dataclass(frozen=True)
class Columns:
    """Which columns hold what, by their numbers from 0 up.

    Attributes:
        file, label: names of files, and labels.
        headings: the first row, where it is one of headings; empty where it is a row like the others.
    """

    file: int
    label: int
    headings: tuple[str, ...]

    def word(self, column: int) -> str:
        """What to call a column in messages."""
        return f"column {self.headings[column]!r}" if column < len(self.headings) else f"column {column + 1}"


def columns_of(path: Path, rows: list[Row], files: NamedFiles, wanted: str | None) -> Columns:
    """The columns of file names and labels; `files` learns how the names are written.

    Args:
        wanted: data.label_columns; None = guessed.

    Raises:
        DataError: they cannot be told, or are not there.
    """
    first = [cell.strip() for cell in rows[0]]
    some = rows[1 : _LOOKED_AT + 1] or rows
    width = Counter(map(len, rows[: _LOOKED_AT + 1])).most_common(1)[0][0]
    if wanted is not None:
        file, label, by_number = _named(path, wanted, first, width)
        _hits([file], some, files)
        heading = not by_number or _is_heading(first, file, some, files)
        return Columns(file, label, tuple(first) if heading else ())
    file = _guessed_file(path, first, some, width, files)
    heading = _is_heading(first, file, some, files)
    others = [column for column in range(width) if column != file]
    choice = [column for column in others if heading and _is_label(first, column)] or others
    if len(choice) != 1:
        there = ", ".join(first) if heading else f"{width} columns without headings"
        raise DataError(
            f"which column of {path} holds the labels? it has {there}; name the two by --set"
            " data.label_columns=FILE,LABEL, or their numbers from 1 up"
        )
    return Columns(file, choice[0], tuple(first) if heading else ())


def _guessed_file(path: Path, first: Row, rows: list[Row], width: int, files: NamedFiles) -> int:
    """The column whose cells are names of files.

    Numbers may be names, as 7 of 7.png, and another column may hold numbers too: that of rows, which pandas writes. So
    names with their suffixes go before others, and of columns that name other files one with a heading for it.
    """
    # Labels may look like names too; but they repeat, and names do not.
    hits = _hits([column for column in range(width) if not _is_label(first, column)], rows, files)
    best = max(hits.values(), default=(0, 0))
    if not any(best):
        raise DataError(
            f"no column of {path} ({', '.join(first[:8])}) holds names of the images, which are called as"
            f" {files.names[0]!r}; its first row is {', '.join(rows[0][:8])!r}; write them alike, with or without"
            " folders and suffixes"
        )
    able = [column for column, found in hits.items() if found == best]
    if len({tuple(_found(rows, column, files)) for column in able}) > 1:
        called = [column for column in able if column < len(first) and first[column].lower() in _FILE_HEADINGS]
        if len(called) != 1:
            which = " and ".join(f"column {column + 1} ({_cells(rows, column)[0]!r}, ...)" for column in able)
            raise DataError(
                f"which column of {path} holds names of the images? {which} do, and not of the same ones; name it and"
                " that of the labels by --set data.label_columns=FILE,LABEL, or their numbers from 1 up"
            )
        able = called
    files.learn_prefix(_cells(rows, able[0]))
    return able[0]


def _found(rows: list[Row], column: int, files: NamedFiles) -> list[tuple[int, ...]]:
    """The files that each cell of a column may mean."""
    files.learn_prefix(_cells(rows, column))
    return [tuple(files.find(row[column])) if len(row) > column else () for row in rows]


def _hits(columns: Sequence[int], rows: list[Row], files: NamedFiles) -> dict[int, tuple[int, int]]:
    """How many values of each column name files with their suffixes, and how many at all; in any Unicode form, and then
    in any case, where none does as it is written.
    """
    found = _hits_as_written(columns, rows, files)
    for case in (False, True):
        if not any(map(any, found.values())):
            files.forget(case=case)
            found = _hits_as_written(columns, rows, files)
    return found


def _hits_as_written(columns: Sequence[int], rows: list[Row], files: NamedFiles) -> dict[int, tuple[int, int]]:
    hits = {}
    for column in columns:
        cells = _cells(rows, column)
        files.learn_prefix(cells)
        named = [cell for cell in set(cells) if files.find(cell)]
        hits[column] = sum(map(files.is_whole, named)), len(named)
    return hits


def _cells(rows: list[Row], column: int) -> list[str]:
    return [row[column] for row in rows if len(row) > column]


def _is_label(first: Row, column: int) -> bool:
    return column < len(first) and first[column].lower() in LABEL_HEADINGS


def _is_heading(first: Row, file: int, rows: list[Row], files: NamedFiles) -> bool:
    """Whether the first row holds headings: what stands above the names is none, nor of an image that is not there."""
    if file >= len(first) or files.find(first[file]):
        return False
    suffix = PurePosixPath(first[file]).suffix.lower()
    return not suffix or suffix not in {PurePosixPath(cell.strip()).suffix.lower() for cell in _cells(rows, file)}


def _named(path: Path, wanted: str, first: Row, width: int) -> tuple[int, int, bool]:
    """The two columns that a person named, and whether by their numbers."""
    asked = [part.strip() for part in wanted.split(",")]
    if len(asked) == 2 and asked[0] != asked[1]:
        if set(asked) <= set(first):
            return first.index(asked[0]), first.index(asked[1]), False
        if all(part.isdecimal() and 1 <= int(part) <= width for part in asked):
            return int(asked[0]) - 1, int(asked[1]) - 1, True
    raise DataError(
        f"data.label_columns = {wanted!r}: {path} has the columns {', '.join(first[:12])}; give two of them as"
        " FILE,LABEL, or their numbers from 1 up"
    )
