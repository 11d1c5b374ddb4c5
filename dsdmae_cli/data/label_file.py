"""Labels of image files from a table: a CSV file with a column of file names and one of labels. No torch here."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Int64

from dsdmae_cli.errors import DataError
from dsdmae_cli.files import beside, read_within

_DELIMITERS = ",;\t|"
_SAYS_DELIMITER = re.compile(r'"?sep=(.)"?', re.IGNORECASE)  # the first line that Excel takes as a setting
# Headings that people give to a column of labels, in small letters.
LABEL_HEADINGS = ("label", "labels", "class", "class_name", "classname", "category", "target", "species", "breed", "y")
# Headings of a column that says which split a row belongs to, the likeliest first.
SPLIT_HEADINGS = ("split", "subset", "partition", "set", "fold")
# What programs write where there is no value.
_EMPTY = frozenset({"", "nan", "<na>", "n/a", "null"})
_LOOKED_AT = 1000  # rows that a guess stands on
_MOST_UNIQUE = 10  # with more images than this, labels that are all different are no classes
_SHOWN = 3


@dataclass(frozen=True)
class LabelFile:
    """What a table says of some files.

    Attributes:
        labels: [N] one for each file, -1 = none.
        classes: names by label, sorted; numbers by their value.
        notes: which columns were taken, and what did not fit, a sentence each.
        splits: what a column of that name says of each file, "" where it says nothing; empty where there is no such
            column. Whether its words are splits is not looked at.
        split_column: its heading.
    """

    labels: Int64[np.ndarray, " n"]
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    splits: tuple[str, ...] = ()
    split_column: str = ""


def read_labels(path: Path, names: Sequence[str], columns: str | None = None) -> LabelFile:
    """Labels of files by their names.

    A name may be given with or without folders in front of it and with or without its suffix; where two files fit, none
    of them is taken. The delimiter is guessed (one of , ; | and tab), and the columns unless they are named.

    Args:
        names: of the files, with "/" between folders.
        columns: "FILE,LABEL", the headings of the two, or their numbers from 1 up.

    Raises:
        DataError: the file cannot be read, its columns cannot be told, or none of its rows names one of the files.
    """
    rows, delimiter = _rows(path)
    files = _Files(names)
    file_column, label_column, heading, said = _columns(path, rows, files, columns)
    body = rows[1:] if heading else rows
    cells = [
        (row[file_column], label_of(row[label_column])) for row in body if len(row) > max(file_column, label_column)
    ]
    short = len(body) - len(cells)
    files.learn_prefix([cell for cell, _ in cells])
    given: defaultdict[int, list[str]] = defaultdict(list)
    unknown, ambiguous = list[str](), list[str]()
    for cell, label in cells:
        found = files.find(cell)
        if len(found) == 1:
            given[found[0]].append(label)
        else:
            (ambiguous if found else unknown).append(cell)
    if not given and ambiguous:
        cell = ambiguous[0]
        raise DataError(
            f"{len(ambiguous)} of the {len(cells)} rows of {path} fit several images and none fits one: {cell!r} may be"
            f" {' or '.join(names[index] for index in files.find(cell)[:_SHOWN])}; write their folders with the names"
        )
    if not given:
        shown = f"{cells[0][0]!r}" if cells else "nothing"
        raise DataError(
            f"none of the {len(cells)} rows of {path} names an image: its {said[0]} begins with {shown}, the images"
            f" with {names[0]!r}; name the columns by --set data.label_columns=FILE,LABEL"
        )
    differing = [index for index, labels in given.items() if len(set(labels)) > 1]
    kept = {index: labels[0] for index, labels in given.items() if len(set(labels)) == 1 and labels[0]}
    classes = _sorted(set(kept.values()))
    _check_classes(path, said[1], kept, classes)
    of_class = {name: label for label, name in enumerate(classes)}
    labels = np.full(len(names), -1, dtype=np.int64)
    for index, name in kept.items():
        labels[index] = of_class[name]
    repeated = sum(len(labels) - 1 for labels in given.values())
    empty = [names[index] for index, labels in given.items() if set(labels) == {""}]
    missing = [name for index, name in enumerate(names) if index not in given]
    named = {"\t": "tab"}.get(delimiter, f"'{delimiter}'")
    taken = f"file names in {said[0]}, labels in {said[1]}, between them {named}"
    split_column, splits = _splits(rows, files, file_column, label_column) if heading else ("", ())
    notes = [
        f"labels of {len(kept)} of {len(names)} images in {len(classes)} classes from {path}: {taken}",
        "they fit by any case" if files.any_case else "",
        "they fit by another Unicode form of their letters" if files.any_form else "",
        _counted(missing, "image has", "images have", "no row in it"),
        _counted(unknown, "row names", "rows name", "no image here"),
        _counted(ambiguous, "row names", "rows name", "several images and is not used"),
        _counted([names[i] for i in differing], "image has", "images have", "rows that differ, and no label"),
        _counted(empty, "image has", "images have", "an empty label"),
        f"{repeated} of its rows repeat an image" if repeated else "",
        f"{short} of its rows have too few columns" if short else "",
    ]
    return LabelFile(labels, classes, tuple(filter(None, notes)), splits, split_column)


def label_of(cell: str) -> str:
    """A label without blanks around it; "" for what stands for none."""
    label = cell.strip()
    return "" if label.lower() in _EMPTY else label


def _splits(rows: list[list[str]], files: _Files, file_column: int, label_column: int) -> tuple[str, tuple[str, ...]]:
    """The heading of a column that is called as one of splits, and what it says of each file."""
    headings = [cell.strip().lower() for cell in rows[0]]
    able = [n for n, name in enumerate(headings) if name in SPLIT_HEADINGS and n not in (file_column, label_column)]
    if not able:
        return "", ()
    column = min(able, key=lambda n: SPLIT_HEADINGS.index(headings[n]))
    said = [""] * files.number
    for row in rows[1:]:
        found = files.find(row[file_column]) if len(row) > max(file_column, column) else []
        if len(found) == 1:
            said[found[0]] = row[column].strip()
    return rows[0][column].strip(), tuple(said)


def _counted(names: list[str], one: str, many: str, what: str) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return f"{len(names)} {one if len(names) == 1 else many} {what}: {shown}"


def _sorted(classes: set[str]) -> tuple[str, ...]:
    try:
        return tuple(sorted(classes, key=lambda name: (float(name), name)))
    except ValueError:
        return tuple(sorted(classes))


def _check_classes(path: Path, column: str, kept: dict[int, str], classes: tuple[str, ...]) -> None:
    advice = "name the columns by --set data.label_columns=FILE,LABEL"
    if len(classes) < 2:
        only = f"only the label {classes[0]!r}" if classes else "no label at all"
        raise DataError(f"{path} has {only} in {column}; a classifier needs two or more; {advice}")
    if len(classes) == len(kept) > _MOST_UNIQUE:
        raise DataError(f"{path}: each of {len(kept)} images has a label of its own in {column}; {advice}")


# ----------------------------------------------------------------------------------------------- files by name


class _Files:
    """Files by whole or partial name."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self.number = len(names)
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
                for key in {tail, str(PurePosixPath(tail).with_suffix(""))}:
                    self._by_tail[key].append(index)

    @property
    def example(self) -> str:
        """One of them."""
        return self._names[0]

    def find(self, cell: str) -> list[int]:
        """The files that a cell may mean; its own folders count, but for those that all cells share and no file has."""
        return self._by_tail.get("/".join(self._parts(cell)[self._dropped :]), [])

    def forget(self, *, case: bool) -> None:
        """Let letters be one whose Unicode differs in form alone (macOS takes accents apart), and with `case` capital
        and small ones too: of a table whose names fit no file otherwise.
        """
        self.any_form, self.any_case = not case, case
        self._learn([self._plain(name) for name in self._names])

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


# ------------------------------------------------------------------------------------------------------- the table


def _rows(path: Path) -> tuple[list[list[str]], str]:
    """The rows of the table that are not empty, and its delimiter."""
    try:
        content = read_within(path.expanduser())
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


def _columns(
    path: Path, rows: list[list[str]], files: _Files, wanted: str | None
) -> tuple[int, int, bool, tuple[str, str]]:
    """Column of the file names, column of the labels, whether the first row is a heading, and words for the two."""
    looked_at = rows[1 : _LOOKED_AT + 1]
    width = Counter(map(len, rows[: _LOOKED_AT + 1])).most_common(1)[0][0]
    first = [cell.strip() for cell in rows[0]]
    if wanted is not None:
        file_column, label_column, by_number = _named(path, wanted, first, width)
        cells = [row[file_column] for row in looked_at or rows if len(row) > file_column]
        files.learn_prefix(cells)
        for case in (False, True):
            if not any(map(files.find, cells)):
                files.forget(case=case)
                files.learn_prefix(cells)
        heading = not by_number or not files.find(first[file_column] if file_column < len(first) else "")
        return (
            file_column,
            label_column,
            heading,
            (_word(first, file_column, heading), _word(first, label_column, heading)),
        )
    hits = _hits(looked_at or rows, width, first, files)
    for case in (False, True):
        if not any(hits):
            files.forget(case=case)
            hits = _hits(looked_at or rows, width, first, files)
    file_column = max(range(width), key=hits.__getitem__)
    if not hits[file_column]:
        raise DataError(
            f"no column of {path} ({', '.join(first[:8])}) holds names of the images, which are called as"
            f" {files.example!r}; its first row is {', '.join((looked_at or rows)[0][:8])!r}; write them alike, with or"
            " without folders and suffixes"
        )
    files.learn_prefix([row[file_column] for row in looked_at or rows if len(row) > file_column])
    heading = len(first) > file_column and not files.find(first[file_column])
    others = [column for column in range(width) if column != file_column]
    known = [c for c in others if heading and c < len(first) and first[c].lower() in LABEL_HEADINGS]
    choice = known or others
    if len(choice) != 1:
        there = ", ".join(first) if heading else f"{width} columns without headings"
        raise DataError(
            f"which column of {path} holds the labels? it has {there}; name the two by --set"
            " data.label_columns=FILE,LABEL, or their numbers from 1 up"
        )
    words = (_word(first, file_column, heading), _word(first, choice[0], heading))
    return file_column, choice[0], heading, words


def _hits(rows: list[list[str]], width: int, first: list[str], files: _Files) -> list[int]:
    """How many values of each column name files."""
    hits = []
    for column in range(width):
        cells = [row[column] for row in rows if len(row) > column]
        files.learn_prefix(cells)
        # Labels may look like names too, 1 like 1.png; but they repeat, and names do not.
        is_label = column < len(first) and first[column].lower() in LABEL_HEADINGS
        hits.append(0 if is_label else sum(bool(files.find(cell)) for cell in set(cells)))
    return hits


def _word(first: list[str], column: int, heading: bool) -> str:
    return f"column {first[column]!r}" if heading and column < len(first) else f"column {column + 1}"


def _named(path: Path, wanted: str, first: list[str], width: int) -> tuple[int, int, bool]:
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
