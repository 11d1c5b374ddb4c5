"""`parquet:PATH`: images in a column of Parquet files, read in place, a row group at a time. No torch here."""

from __future__ import annotations

import glob
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dsdmae_builtin.datasets import ParquetSettings
from dsdmae_builtin.folder import DEFAULT_SIDE, LARGEST_NATIVE_SIDE, RGB
from dsdmae_builtin.followed import followed
from dsdmae_builtin.parquet_columns import (
    image_column,
    is_text,
    label_column_of,
    labels_of_files,
    lacks_bytes,
    names_of,
    said_of_rows,
    split_column_of,
    unpacked_size,
)
from dsdmae_cli.data.archives import unpacks_too_far
from dsdmae_cli.data.base import UnreadableImage
from dsdmae_cli.data.files import FileImages, Files, Names, range_of_some, stamp_of
from dsdmae_cli.data.once import shared
from dsdmae_cli.data.splits import TEST_FOLDERS, TRAIN_FOLDERS, Arrangement, arrange, splits_of
from dsdmae_cli.data.square import common_side
from dsdmae_cli.data.values import Ranges, Reading, asked_bands
from dsdmae_cli.errors import DataError, PluginError
from dsdmae_cli.plugins import argument_of
from dsdmae_cli.settings.models import DataSettings

# Row groups that a process keeps, by the bytes of their images; one that is larger is kept alone.
KEPT_BYTES = 256 * 2**20
LARGE_GROUP = 64 * 2**20
# Bytes of the images of a row group that is read at all, and rows that are read at a time.
MOST_OF_GROUP = 2 * 2**30
_ROWS = 64


def build(settings: DataSettings, split: str) -> FileImages:
    """The images under `parquet:PATH`; split "train" (or "labelled", which is the same here) or "test".

    Raises:
        DataError: the path is missing or holds no Parquet, is damaged, or its columns cannot be told.
        PluginError: pyarrow is not installed.
    """
    files, found = _found(settings)
    part = found.test if split == "test" else found.train
    limits = value_range(settings) if settings.range == "auto" else settings.range
    reading = replace(_bands(settings), range=limits)
    return FileImages(files, part.indices, part.labels, part.classes, found.notes, reading)


def count(settings: DataSettings) -> tuple[int, int]:
    """Training images, and those with a label."""
    part = _found(settings)[1].train
    return len(part.indices), 0 if part.labels is None else int((part.labels >= 0).sum())


def native_size(settings: DataSettings) -> int:
    """The side that all images share if they are square and small (a sample of 64 is looked at), else 224."""
    return shared(_native_size, *_asked(settings))


def _bands(settings: DataSettings) -> Reading:
    return asked_bands(settings.bands, settings.channels, lambda: RGB)


def value_range(settings: DataSettings) -> Ranges | None:
    """What data.range = auto means: by the values of those of 64 pictures that have more than 8 bits."""
    return shared(_value_range, *_asked(settings), _bands(settings))


def _native_size(path: str, image: str | None, label: str | None, splits: str) -> int:
    files = shared(Tables, path, image, label, splits)
    side = common_side(FileImages(files, np.arange(len(files.names), dtype=np.int64)))
    return side if side is not None and side <= LARGEST_NATIVE_SIDE else DEFAULT_SIDE


def _value_range(path: str, image: str | None, label: str | None, splits: str, how: Reading) -> Ranges | None:
    files = shared(Tables, path, image, label, splits)
    return range_of_some(FileImages(files, np.arange(len(files.names), dtype=np.int64), reading=how))


def _asked(settings: DataSettings) -> tuple[str, str | None, str | None, str]:
    own = settings if isinstance(settings, ParquetSettings) else ParquetSettings.model_validate(settings.model_dump())
    path = str(Path(argument_of(own.dataset)).expanduser().absolute())
    return path, own.image_column, own.label_column, own.splits


def _found(settings: DataSettings) -> tuple[Tables, Arrangement]:
    return shared(_arranged, *_asked(settings), settings.holdout)


def _arranged(
    path: str, image: str | None, label: str | None, splits: str, holdout: float
) -> tuple[Tables, Arrangement]:
    files = shared(Tables, path, image, label, splits)
    found = arrange(files.names, holdout, splits, files.labels, path, files.splits_are)
    return files, replace(found, notes=(*files.notes, *found.notes))


def pyarrow() -> Any:
    """pyarrow.parquet.

    Raises:
        PluginError: it is not installed.
    """
    try:
        import pyarrow.parquet as found
    except ImportError as error:
        raise PluginError("parquet:PATH needs pyarrow; pip install 'dsdmae[parquet]'") from error
    return found


def paths_of(text: str) -> list[Path]:
    """The Parquet files that a file, a folder or a glob stands for.

    Raises:
        DataError: there are none.
    """
    path = Path(text)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() == ".parquet" and not _is_hidden(p, path))
    elif path.is_file():
        found = [path]
    else:
        found = [Path(name) for name in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207
    if not found:
        what = "holds no .parquet files" if path.is_dir() else "matches nothing" if "*" in text else "does not exist"
        raise DataError(f"{text} {what}; give a Parquet file, a folder of them or a glob")
    return found


def _is_hidden(path: Path, below: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(below).parts)


class Tables(Files):
    """Rows of Parquet files, one after the other; what is held of them is at most some row groups.

    Args:
        text: a file, a folder or a glob.
        image, label: columns; None = guessed by type and name, and said.
        wanted_splits: data.splits.

    Raises:
        DataError: a file is damaged, or its columns cannot be told.
    """

    def __init__(self, text: str, image: str | None, label: str | None, wanted_splits: str = "auto") -> None:
        parquet = pyarrow()
        self._paths = paths_of(text)
        try:
            self._stamps = [stamp_of(path) for path in self._paths]
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {(error.strerror or str(error)).lower()}") from error
        groups: list[tuple[int, int, int]] = []  # file, row group, rows
        labels: list[tuple[Path, list[Any], tuple[str, ...] | None]] = []
        splits: list[Any] = []
        largest = 0
        self._by_path = False
        self.part = image or ""
        for number, path in enumerate(self._paths):
            try:
                with parquet.ParquetFile(path) as table:
                    schema = table.schema_arrow
                    if number == 0:
                        self._column, _ = image_column(schema, image, path)
                        label_column, words = label_column_of(schema, label, self._column, path)
                        split_column = split_column_of(schema, {self._column, label_column})
                    missing = {self._column, label_column or self._column} - set(schema.names)
                    if missing:
                        raise DataError(f"{path} has no column {missing.pop()!r}, which {self._paths[0]} has")
                    image_column(schema, self._column, path)  # whose type may be another one here
                    self._by_path |= is_text(schema.field(self._column).type)
                    for group in range(table.num_row_groups):
                        about = table.metadata.row_group(group)
                        self._by_path |= lacks_bytes(about, self._column)
                        groups.append((number, group, about.num_rows))
                        largest = max(largest, about.total_byte_size)
                if label_column:
                    labels.append((path, said_of_rows(path, label_column), names_of(schema, label_column)))
                if split_column in schema.names:
                    splits += said_of_rows(path, split_column)
            except (OSError, ValueError) as error:  # pyarrow's errors are of both
                raise DataError(f"{path} is no whole Parquet file ({str(error).splitlines()[0]})") from error
        self._groups = np.array(groups, dtype=np.int64).reshape(-1, 3)
        self._firsts = np.concatenate([[0], np.cumsum(self._groups[:, 2])]).astype(np.int64)
        if not self._firsts[-1]:
            raise DataError(f"{text} holds no rows")
        said_splits, about_splits = list[str](), ""
        if split_column and len(splits) == self._firsts[-1]:
            said_splits, about_splits = splits_of(split_column, splits, wanted_splits)
        elif split_column:
            about_splits = f"column {split_column!r} is not taken for splits: not every file has it"
        self.splits_are = f"rows by column {split_column!r}" if said_splits else "folders"
        self.names = self._named(said_splits, by_file=wanted_splits != "none")
        self.labels = labels_of_files(labels) if label_column else None
        said = [f"images are in column {self._column!r}", words, about_splits]
        if largest > LARGE_GROUP:
            said.append(
                f"row groups of up to {largest / 2**20:.0f} MiB are read whole for an image of theirs; where training"
                " waits for images, write smaller ones (row_group_size=100)"
            )
        self.notes = tuple(note for note in said if note)
        self._prepare()

    def _prepare(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, tuple[list[bytes | str | None], int]] = OrderedDict()  # rows, and their bytes

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def _named(self, splits: Sequence[str], *, by_file: bool) -> Names:
        """A row's name: below the folder of its split, where a column says one, or the file is in one or is named after
        one.

        Args:
            splits: of each row; empty where no column says them.
            by_file: files may say them in their names.
        """
        common = self._paths[0].parent
        while not all(path.is_relative_to(common) for path in self._paths):
            common = common.parent
        prefixes = []
        for path in self._paths:
            folders = path.relative_to(common).parent.parts
            split = path.stem.split("-")[0].lower()
            if by_file and len(self._paths) > 1 and not folders and split in (*TRAIN_FOLDERS, *TEST_FOLDERS):
                folders = (split,)  # train-00000-of-00002.parquet, as the Hub has them
            prefixes.append("/".join((*folders, path.stem)))
        if splits:  # of files too, whose folders then say nothing
            return Names([f"{split}/{row:09d}" for row, split in enumerate(splits)])
        rows: list[str] = []
        seen = [0] * len(self._paths)
        for number, _, count_ in self._groups.tolist():
            rows += [f"{prefixes[number]}-{row:09d}" for row in range(seen[number], seen[number] + count_)]
            seen[number] += count_
        return Names(rows)

    def full_name(self, index: int) -> str:
        group = self._group(index)
        before = self._groups[:group][self._groups[:group, 0] == self._groups[group, 0], 2].sum()
        return f"{self._paths[self._groups[group, 0]]}!row {int(before) + index - int(self._firsts[group])}"

    def stamp(self, index: int) -> tuple[int, int] | None:
        if self._by_path:
            try:
                if isinstance(found := self.read(index), Path):
                    return stamp_of(found)
            except (OSError, UnreadableImage):
                return None
        return self._stamps[int(self._groups[self._group(index), 0])]

    def file_size(self, index: int) -> int | None:
        return None  # only the pages know, and each would have to be read

    def read(self, index: int) -> bytes | Path:
        group = self._group(index)
        content = self._rows(group)[index - int(self._firsts[group])]
        if not content:
            raise UnreadableImage(self.full_name(index), "neither bytes nor a path in its row")
        if isinstance(content, str):
            return followed(content, self._paths[int(self._groups[group, 0])], self.full_name(index))
        return content

    def _group(self, index: int) -> int:
        return int(np.searchsorted(self._firsts, index, side="right")) - 1

    def _rows(self, group: int) -> list[bytes | str | None]:
        with self._lock:
            if group in self._kept:
                self._kept.move_to_end(group)
                return self._kept[group][0]
            number, of_file, _ = self._groups[group].tolist()
            path = self._paths[number]
            try:
                if stamp_of(path) != self._stamps[number]:
                    raise DataError(f"{path} changed while it was in use; start again")
                rows, size = self._read_group(path, of_file)
            except (OSError, ValueError) as error:
                raise DataError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
            self._kept[group] = rows, size
            while len(self._kept) > 1 and sum(size for _, size in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
            return rows

    def _read_group(self, path: Path, group: int) -> tuple[list[bytes | str | None], int]:
        """What a row group's images are, and their bytes; some rows at a time, since a page may say in a few bytes that
        a large image stands in each of them."""
        rows: list[bytes | str | None] = []
        size = 0
        with pyarrow().ParquetFile(path) as table:
            about, stored = unpacked_size(table.metadata.row_group(group), self._column)
            if unpacks_too_far(about, stored):
                raise DataError(
                    f"{path} has a row group of images that unpacks to {about // max(1, stored):,} times its size, as"
                    " no pictures do; write it anew from the pictures"
                )
            some = max(1, min(_ROWS, MOST_OF_GROUP // 8 // max(1, about)))
            asked = {"batch_size": some, "row_groups": [group], "columns": [self._column], "use_threads": False}
            _, in_struct = image_column(table.schema_arrow, self._column, path)
            for batch in table.iter_batches(**asked) if about <= MOST_OF_GROUP else ():
                values: list[Any] = batch.column(0).to_pylist()
                if in_struct:  # a path counts where there are no bytes
                    values = [row and (row["bytes"] or row.get("path")) for row in values]
                rows += values
                size += sum(len(row) for row in values if row is not None)
                if size > MOST_OF_GROUP:
                    break
        if max(size, about) > MOST_OF_GROUP:
            raise DataError(
                f"{path} has more than {MOST_OF_GROUP // 2**30} GiB of images in a row group, which is read whole;"
                " write smaller ones (row_group_size=100)"
            )
        return rows, size
