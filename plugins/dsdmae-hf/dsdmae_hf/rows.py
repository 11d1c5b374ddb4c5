"""Rows of a dataset of Hugging Face's library as image files of dsdmae. No torch here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dsdmae_cli.data.base import UnreadableImage
from dsdmae_cli.data.decode import AS_STORED
from dsdmae_cli.data.files import FileImages, Files, Names, range_of_some
from dsdmae_cli.data.label_file import LABEL_HEADINGS, labels_in
from dsdmae_cli.data.once import shared
from dsdmae_cli.data.splits import TEST_FOLDERS, TRAIN_FOLDERS, Arrangement, arrange
from dsdmae_cli.data.square import common_side
from dsdmae_cli.data.values import Ranges, Reading, asked_bands
from dsdmae_cli.errors import DataError
from dsdmae_cli.plugins import argument_of
from dsdmae_cli.settings.models import DataSettings
from dsdmae_hf.spec import HFSettings

LARGEST_NATIVE_SIDE, DEFAULT_SIDE = 256, 224
_RGB = 3
Asked = tuple[str, str | None, str | None, str | None, str | None]


def build(settings: DataSettings, split: str) -> FileImages:
    """The images of `hf:NAME`; split "train" (or "labelled", which is the same here) or "test".

    Raises:
        DataError: there is no such dataset, or its columns or splits cannot be told.
    """
    rows, found = _found(settings)
    part = found.test if split == "test" else found.train
    limits = value_range(settings) if settings.range == "auto" else settings.range
    reading = replace(_bands(settings), range=limits)
    return FileImages(rows, part.indices, part.labels, part.classes, found.notes, reading)


def count(settings: DataSettings) -> tuple[int, int]:
    """Training images, and those with a label."""
    part = _found(settings)[1].train
    return len(part.indices), 0 if part.labels is None else int((part.labels >= 0).sum())


def native_size(settings: DataSettings) -> int:
    """The side that all images share if they are square and small (a sample of 64 is looked at), else 224."""
    side = common_side(_all(settings))
    return side if side is not None and side <= LARGEST_NATIVE_SIDE else DEFAULT_SIDE


def _bands(settings: DataSettings) -> Reading:
    return asked_bands(settings.bands, settings.channels, lambda: _RGB)


def value_range(settings: DataSettings) -> Ranges | None:
    """What data.range = auto means: by the values of those of 64 pictures that have more than 8 bits."""
    return shared(_value_range, _asked(settings), _bands(settings))


def _value_range(asked: Asked, how: Reading) -> Ranges | None:
    return range_of_some(_images(asked, how))


def _asked(settings: DataSettings) -> Asked:
    own = settings if isinstance(settings, HFSettings) else HFSettings.model_validate(settings.model_dump())
    return argument_of(own.dataset), own.hf_config, own.hf_splits, own.image_column, own.label_column


def _images(asked: Asked, how: Reading = AS_STORED) -> FileImages:
    rows = shared(Rows, *asked)
    return FileImages(rows, np.arange(len(rows.names), dtype=np.int64), reading=how)


def _all(settings: DataSettings) -> FileImages:
    return _images(_asked(settings))


def _found(settings: DataSettings) -> tuple[Rows, Arrangement]:
    return shared(_arranged, _asked(settings), settings.holdout)


def _arranged(asked: Asked, holdout: float) -> tuple[Rows, Arrangement]:
    rows = shared(Rows, *asked)
    splits = "train,test" if len(rows.parts) == 2 else "none"
    found = arrange(rows.names, holdout, splits, rows.labels, asked[0])
    # The splits, which the first note is about, are told by the dataset's own names for them.
    about_splits = 1 if len(rows.parts) == 2 else 0
    return rows, replace(found, notes=(*rows.notes, *found.notes[about_splits:]))


def open_splits(name: str, config: str | None) -> dict[str, Any]:
    """The dataset's splits by name; {"": rows} of one that has none.

    Raises:
        DataError: there is no such dataset, or it cannot be fetched.
    """
    import datasets

    folder = Path(name).expanduser()
    try:
        if folder.is_dir() and any((folder / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
            found = datasets.load_from_disk(folder)
        else:
            found = datasets.load_dataset(name, config)
    except Exception as error:  # the library's errors are of many kinds: what a person needs is their first line
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"hf:{name} cannot be opened: {reason}; give a name on the Hub, or a folder that save_to_disk wrote"
        ) from error
    return dict(found) if isinstance(found, dict) else {"": found}


def two_splits(found: dict[str, Any], wanted: str | None, name: str) -> list[str]:
    """The split to learn from and, if there is one, that to test on.

    Raises:
        DataError: they cannot be told.
    """
    there = ", ".join(found)
    if wanted is not None:
        named = [part.strip() for part in wanted.split(",")]
        if len(named) != 2 or not set(named) <= set(found) or named[0] == named[1]:
            raise DataError(f"data.hf_splits = {wanted!r}: hf:{name} has {there}; give two of them as TRAIN,TEST")
        return named
    if len(found) == 1:
        return list(found)
    train = [split for split in found if split.lower() in TRAIN_FOLDERS]
    tests = [split for known in TEST_FOLDERS for split in found if split.lower() == known]
    if len(train) != 1:
        raise DataError(
            f"which splits of hf:{name} ({there}) to learn from and to test on? --set data.hf_splits=TRAIN,TEST"
        )
    return [train[0], *tests[:1]]


class Rows(Files):
    """Rows of the one or two splits that are used, one after the other; the library maps them into memory.

    Raises:
        DataError: see build.
    """

    def __init__(self, name: str, config: str | None, splits: str | None, image: str | None, label: str | None) -> None:
        import datasets

        found = open_splits(name, config)
        used = two_splits(found, splits, name)
        features = found[used[0]].features
        column = _image_column(features, image, name)
        label_column, about_labels = _label_column(features, label, column, name)
        self._name, self._splits = name, used
        as_files = [found[split].select_columns([column]) for split in used]
        if isinstance(features[column], datasets.Image):
            as_files = [part.cast_column(column, datasets.Image(decode=False)) for part in as_files]
        self.parts, self._column = as_files, column
        self._firsts = np.cumsum([0, *map(len, as_files)], dtype=np.int64)
        if not self._firsts[-1]:
            raise DataError(f"hf:{name} has no rows")
        folders = ("train/", "test/") if len(used) == 2 else ("",)
        self.names = Names([
            f"{folder}{row:09d}" for folder, part in zip(folders, as_files, strict=True) for row in range(len(part))
        ])  # fmt: skip
        self.labels = None
        notes = [f"images are in column {column!r}", *([about_labels] if about_labels else [])]
        if label_column:
            values = [value for split in used for value in found[split].with_format(None)[label_column]]
            self.labels = labels_in(values, getattr(features[label_column], "names", None))
        if len(used) == 2:
            notes.append(f"split {used[0]} is learned from and {used[1]} evaluated on")
            left_out = sorted(set(found) - set(used))
            notes += [f"left out: {', '.join(left_out)}"] if left_out else []
        self.notes = tuple(notes)

    def _place(self, index: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return part, index - int(self._firsts[part])

    def full_name(self, index: int) -> str:
        part, row = self._place(index)
        split = f" {self._splits[part]}" if self._splits[part] else ""
        return f"hf:{self._name}{split} row {row}"

    def stamp(self, index: int) -> tuple[int, int]:
        return int(self.parts[self._place(index)[0]]._fingerprint, 16), 0

    def file_size(self, index: int) -> int | None:
        return None

    def read(self, index: int) -> Path | bytes:
        part, row = self._place(index)
        value = self.parts[part][row][self._column]
        content = value.get("bytes") if isinstance(value, dict) else value
        if content is None and isinstance(value, dict) and value.get("path"):
            return Path(value["path"])
        if not isinstance(content, bytes):
            raise UnreadableImage(self.full_name(index), "no bytes in its row")
        return content


def _is_bytes(kind: Any) -> bool:
    return getattr(kind, "dtype", "") in ("binary", "large_binary")


def _image_column(features: Any, wanted: str | None, name: str) -> str:
    import datasets

    able = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    # Files whose writer did not know the library have its structs without its types.
    able = able or [
        key for key, kind in features.items() if _is_bytes(kind.get("bytes") if isinstance(kind, dict) else kind)
    ]
    if wanted in able:
        return str(wanted)
    if wanted is not None or len(able) != 1:
        asked = f"data.image_column = {wanted!r}: " if wanted is not None else ""
        raise DataError(
            f"{asked}which column of hf:{name} ({', '.join(features)}) holds the images? it could be"
            f" {', '.join(able) or 'none: none is of images or bytes'}; name it by --set data.image_column=NAME"
        )
    return able[0]


def _label_column(features: Any, wanted: str | None, image: str, name: str) -> tuple[str | None, str]:
    """The column of labels, and what is to be said of it."""
    import datasets

    if wanted is not None and wanted not in features:
        raise DataError(f"data.label_column = {wanted!r}: hf:{name} has the columns {', '.join(features)}")
    able = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    found = wanted or (
        able[0]
        if len(able) == 1
        else next((key for key in features if key.lower() in LABEL_HEADINGS and key != image), None)
    )
    if found is None or isinstance(features[found], datasets.ClassLabel | datasets.Value):
        return found, f"labels are those of column {found!r}" if found else ""
    reason = f"column {found!r} holds {type(features[found]).__name__}, and a label is a number or a word"
    if wanted is not None:
        raise DataError(f"data.label_column = {wanted!r}: in hf:{name} {reason}")
    return None, f"no labels: {reason}"
