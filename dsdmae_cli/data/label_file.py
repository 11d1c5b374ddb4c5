"""Labels of image files: from a CSV file with a column of file names and one of labels, or the values of a column that
has one a file. No torch here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from dsdmae_cli.data.label_table import LABEL_HEADINGS as LABEL_HEADINGS
from dsdmae_cli.data.label_table import Columns, NamedFiles, Row, columns_of, rows_of
from dsdmae_cli.errors import DataError
from dsdmae_cli.report import number_of

# Headings of a column that says which split a row belongs to, the likeliest first.
SPLIT_HEADINGS = ("split", "subset", "partition", "set", "fold")
# What programs write where there is no value.
_EMPTY = frozenset({"", "nan", "<na>", "n/a", "null"})
_MOST_UNIQUE = 10  # with more images than this, labels that are all different are no classes
_SHOWN = 3
_ADVICE = "name the columns by --set data.label_columns=FILE,LABEL"


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
        split_note: what is to be said of it where it is taken for splits; empty = nothing.
    """

    labels: Int64[np.ndarray, " n"]
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    splits: tuple[str, ...] = ()
    split_column: str = ""
    split_note: str = ""


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
    rows, delimiter = rows_of(path)
    files = NamedFiles(names)
    taken = columns_of(path, rows, files, columns)
    said = _said(rows[1:] if taken.headings else rows, taken, files)
    said.require_some(path, taken, files)
    kept = said.kept()
    classes = _sorted(set(kept.values()))
    _check_classes(path, taken.word(taken.label), kept, classes)
    of_class = {name: label for label, name in enumerate(classes)}
    labels = np.full(len(names), -1, dtype=np.int64)
    for index, name in kept.items():
        labels[index] = of_class[name]
    named = {"\t": "tab"}.get(delimiter, f"'{delimiter}'")
    first = (
        f"labels of {len(kept):,} of {number_of(len(names), 'image')} in {number_of(len(classes), 'class')} from"
        f" {path}: file names in {taken.word(taken.file)}, labels in {taken.word(taken.label)}, between them {named}"
    )
    return LabelFile(labels, classes, (first, *said.notes(files)), *_splits(rows, taken, files))


def label_of(cell: str) -> str:
    """A label without blanks around it; "" for what stands for none."""
    label = cell.strip()
    return "" if label.lower() in _EMPTY else label


@dataclass
class _Said:
    """What rows say of files.

    Attributes:
        labels: of each file that rows name, one a row; "" = the row has none.
        rows: how many could be read.
        short: how many have too few columns.
        unknown, ambiguous: names that fit no file, or several.
    """

    labels: defaultdict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    rows: list[str] = field(default_factory=list)
    short: int = 0
    unknown: list[str] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)

    def kept(self) -> dict[int, str]:
        """The label of each file of which rows say one, and the same."""
        return {index: labels[0] for index, labels in self.labels.items() if len(set(labels)) == 1 and labels[0]}

    def require_some(self, path: Path, columns: Columns, files: NamedFiles) -> None:
        """Raise DataError if no row names one file."""
        if self.labels:
            return
        if self.ambiguous:
            cell = self.ambiguous[0]
            meant = " or ".join(files.names[index] for index in files.find(cell)[:_SHOWN])
            raise DataError(
                f"{len(self.ambiguous):,} of the {len(self.rows):,} rows of {path} fit several images and none fits"
                f" one: {cell!r} may be {meant}; write their folders with the names"
            )
        shown = f"{self.rows[0]!r}" if self.rows else "nothing"
        raise DataError(
            f"none of the {len(self.rows):,} rows of {path} names an image: its {columns.word(columns.file)} begins"
            f" with {shown}, the images with {files.names[0]!r}; {_ADVICE}"
        )

    def notes(self, files: NamedFiles) -> list[str]:
        """What did not fit, or not as it is written, a sentence each."""
        names = files.names
        differing = [names[index] for index, labels in self.labels.items() if len(set(labels)) > 1]
        empty = [names[index] for index, labels in self.labels.items() if set(labels) == {""}]
        missing = [name for index, name in enumerate(names) if index not in self.labels]
        repeated = sum(len(labels) - 1 for labels in self.labels.values())
        notes = [
            "they fit by any case" if files.any_case else "",
            "they fit by another Unicode form of their letters" if files.any_form else "",
            _counted(missing, "image has", "images have", "no row in it"),
            _counted(self.unknown, "row names", "rows name", "no image here"),
            _counted(self.ambiguous, "row names", "rows name", "several images and is not used"),
            _counted(differing, "image has", "images have", "rows that differ, and no label"),
            _counted(empty, "image has", "images have", "an empty label"),
            f"{repeated:,} of its rows repeat an image" if repeated else "",
            f"{self.short:,} of its rows have too few columns" if self.short else "",
        ]
        return list(filter(None, notes))


def _said(rows: list[Row], columns: Columns, files: NamedFiles) -> _Said:
    long_enough = [row for row in rows if len(row) > max(columns.file, columns.label)]
    said = _Said(rows=[row[columns.file] for row in long_enough], short=len(rows) - len(long_enough))
    files.learn_prefix(said.rows)
    for row in long_enough:
        cell = row[columns.file]
        found = files.find(cell)
        if len(found) == 1:
            said.labels[found[0]].append(label_of(row[columns.label]))
        else:
            (said.ambiguous if found else said.unknown).append(cell)
    return said


def _splits(rows: list[Row], columns: Columns, files: NamedFiles) -> tuple[tuple[str, ...], str, str]:
    """What a column that is called as one of splits says of each file, its heading, and what is to be said of it."""
    headings = [heading.lower() for heading in columns.headings]
    taken = {columns.file, columns.label}
    able = [n for n, name in enumerate(headings) if name in SPLIT_HEADINGS and n not in taken]
    if not able:
        return (), "", ""
    column = min(able, key=lambda n: SPLIT_HEADINGS.index(headings[n]))
    said = [""] * len(files.names)
    torn = set[int]()  # an image in both would be learned from and judged by
    for row in rows[1:]:
        word = row[column].strip() if len(row) > max(columns.file, column) else ""
        found = files.find(row[columns.file]) if word else []
        if len(found) == 1:
            if said[found[0]].lower() not in ("", word.lower()):
                torn.add(found[0])
            said[found[0]] = word
    for index in torn:
        said[index] = ""
    note = _counted([files.names[i] for i in sorted(torn)], "image has", "images have", "rows of several splits")
    return tuple(said), columns.headings[column], f"{note}; taken for none of them" if torn else ""


def _counted(names: list[str], one: str, many: str, what: str) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")
    return f"{len(names):,} {one if len(names) == 1 else many} {what}: {shown}"


def _sorted(classes: set[str]) -> tuple[str, ...]:
    try:
        return tuple(sorted(classes, key=lambda name: (float(name), name)))
    except ValueError:
        return tuple(sorted(classes))


def _check_classes(path: Path, column: str, kept: dict[int, str], classes: tuple[str, ...]) -> None:
    if len(classes) < 2:
        only = f"only the label {classes[0]!r}" if classes else "no label at all"
        raise DataError(f"{path} has {only} in {column}; a classifier needs two or more; {_ADVICE}")
    if len(classes) == len(kept) > _MOST_UNIQUE:
        raise DataError(f"{path}: each of {len(kept):,} images has a label of its own in {column}; {_ADVICE}")


# ----------------------------------------------------------------------------------------------- values of a column


def labels_in(values: Sequence[Any], names: Sequence[str] | None = None) -> LabelFile:
    """Labels of rows that are files, by the values of a column: numbers, words, or bytes that are words.

    Args:
        values: one a row.
        names: what its numbers mean, where somebody says so.
    """
    found = [_label(value) for value in values]
    if names is not None:
        able = [value if isinstance(value, int) and 0 <= value < len(names) else -1 for value in found]
        return LabelFile(np.array(able, dtype=np.int64), tuple(names), ())
    there = {value for value in found if value is not None}
    numbers = all(isinstance(value, int) for value in there)
    classes = sorted(there) if numbers else sorted({str(value) for value in there})
    place = {value: label for label, value in enumerate(classes)}
    labels = [-1 if value is None else place[value if numbers else str(value)] for value in found]
    return LabelFile(np.array(labels, dtype=np.int64), tuple(map(str, classes)), ())


def _label(value: Any) -> Any:
    """A label as it is sorted and named; None for what stands for none: null, -1, what is no number, an empty word."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if value is None or value == -1 or label_of(str(value)) == "":
        return None
    whole = isinstance(value, float) and value.is_integer()  # what pandas makes of integers beside missing ones
    return int(value) if whole else value
