"""`folder:PATH`: images from a folder, or from an archive or tar shards that are read in place. No torch here.

What lies where is dsdmae_cli.data.files, archives and shards, which split and class each image belongs to
dsdmae_cli.data.splits, and how an image is decoded dsdmae_cli.data.decode.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from dsdmae_builtin.datasets import FolderSettings
from dsdmae_builtin.masks import CLASSES, Layout, almost, layout_of, legend_beside, no_png, with_masks
from dsdmae_cli.data.base import UnreadableImage
from dsdmae_cli.data.decode import AS_STORED, DEEP_SUFFIXES
from dsdmae_cli.data.files import FileImages, Files, open_files, passed_over_words, range_of_some
from dsdmae_cli.data.label_file import LabelFile, read_labels
from dsdmae_cli.data.masks import MaskedFiles
from dsdmae_cli.data.once import shared
from dsdmae_cli.data.shards import Shards
from dsdmae_cli.data.splits import Arrangement, Part, arrange, splits_of
from dsdmae_cli.data.square import common_side
from dsdmae_cli.data.values import Ranges, Reading, asked_bands
from dsdmae_cli.errors import DataError
from dsdmae_cli.plugins import argument_of
from dsdmae_cli.settings.models import DataSettings

_HEADERS = 512
RGB = 3
MANY_BANDS_SUFFIXES = frozenset({".tif", ".tiff"})
LARGEST_NATIVE_SIDE = 256
DEFAULT_SIDE = 224


def build(settings: DataSettings, split: str) -> FileImages | MaskedFiles:
    """The images under `folder:PATH`; split "train" (or "labelled", which is the same here) or "test".

    A folder of images/ and masks/ (masks.py) is a dataset for segmentation.

    Raises:
        DataError: the path is missing, unreadable, not an archive, or holds no images; its folders look like splits
            that are not known; the labels cannot be read.
    """
    files, found = _found(settings)
    part = found.test if split == "test" else found.train
    images = FileImages(files, part.indices, part.labels, part.classes, found.notes, _reading(settings))
    own, layout = _own(settings), _layout(_path(settings))
    if layout is None or own.labels is not None:
        return images
    legend = legend_beside(_path(settings), layout, own.void)
    if legend is None:
        notes = (*found.notes, f"masks/ is passed over: {CLASSES} beside it would name the classes of its values")
        return FileImages(files, part.indices, notes=notes, reading=_reading(settings))
    return with_masks(images, files, layout, part.indices, legend, own.without_mask == "skip")


def _open(path: Path) -> Files:
    try:
        return open_files(path)
    except DataError as error:
        if path.is_file() and path.suffix.lower() == ".parquet":
            raise DataError(f"{path} is a table of images: name it by parquet:{path}") from error
        if path.is_dir() and (table := next(path.rglob("*.parquet"), None)):
            raise DataError(
                f"{error}, or --dataset parquet:{path}, whose images are in tables such as {table.name}"
            ) from error
        raise


def _own(settings: DataSettings) -> FolderSettings:
    return settings if isinstance(settings, FolderSettings) else FolderSettings.model_validate(settings.model_dump())


def _layout(path: Path) -> Layout | None:
    return shared(_layout_of, path)


def _layout_of(path: Path) -> Layout | None:
    return layout_of(_open(path).names)


def _pictures(path: Path) -> Int64[np.ndarray, " n"]:
    """Which of the files are pictures to learn from."""
    layout = _layout(path)
    return np.arange(len(_open(path).names), dtype=np.int64) if layout is None else layout.pictures


def _found(settings: DataSettings) -> tuple[Files, Arrangement]:
    own = _own(settings)
    return shared(_arranged, _path(own), own.holdout, own.splits, own.labels, own.label_columns)


def _masked(path: Path, layout: Layout, holdout: float, splits: str) -> tuple[Files, Arrangement]:
    """Of images/ and masks/: the splits of the images, whose folders are no classes."""
    files = _open(path)
    found = arrange(layout.below(files.names, layout.pictures), holdout, splits, None, str(path))
    note = "images/ and masks/ are a dataset for segmentation: its pictures, without classes, and a mask each"
    train, test = (Part(layout.pictures[part.indices], None, None) for part in (found.train, found.test))
    about_folders = tuple(words for words in found.notes if not words.startswith("no labels"))
    aside = (f"{', '.join(files.left_out)} passed over",) if files.left_out else ()
    return files, Arrangement(train, test, (*files.notes, note, *about_folders, *aside))


def _arranged(
    path: Path, holdout: float, splits: str, labels: Path | None, columns: str | None
) -> tuple[Files, Arrangement]:
    files, layout = _open(path), _layout(path)
    if layout is not None and labels is None:
        return _masked(path, layout, holdout, splits)
    if layout is None and splits != "none":
        named = splits != "auto"
        wrong = no_png(files.names) if labels is None and not named else None
        if wrong := wrong or almost(files.names, below_splits=named):
            raise DataError(f"{path}: {wrong}")
    if layout is None:
        names, table = files.names, files.labels
        if labels is not None:
            table = read_labels(labels, names, columns)
        found = _by_names(files, names, table, path, holdout, splits)
    else:  # a table says what the pictures show, and nobody asks for masks
        assert labels is not None
        table = read_labels(labels, [files.names[i] for i in layout.pictures.tolist()], columns)
        found = _by_names(files, layout.below(files.names, layout.pictures), table, path, holdout, splits)
        train, test = (replace(part, indices=layout.pictures[part.indices]) for part in (found.train, found.test))
        note = f"masks/ is passed over: labels are those of {labels}"
        found = Arrangement(train, test, (note, *found.notes))
    others = dict(files.passed_over)
    if labels is not None and labels.expanduser().absolute().is_relative_to(path):
        suffix = labels.suffix.lower()  # it is no stray file, it was read
        others = {key: count - (key == suffix) for key, count in others.items() if count > (key == suffix)}
    said = passed_over_words(others, files.left_out)
    passed_over = (f"{said} passed over",) if said else ()
    return files, replace(found, notes=(*files.notes, *found.notes, *(table.notes if table else ()), *passed_over))


def _by_names(
    files: Files, names: Sequence[str], table: LabelFile | None, path: Path, holdout: float, splits: str
) -> Arrangement:
    """Splits and classes of files by a column of the table of labels, the names of shards, or these names."""
    rows, notes = _by_table(table, splits)
    if rows:
        assert table is not None
        below = [f"{split}/{name}" for split, name in zip(rows, names, strict=True)]
        found = arrange(below, holdout, splits, table, str(path), f"rows by column {table.split_column!r}")
    elif isinstance(files, Shards) and splits != "none" and (by_shards := files.names_by_split()) is not None:
        found = arrange(by_shards, holdout, splits, table, str(path), "shards")
    else:
        found = arrange(names, holdout, splits, table, str(path))
    return replace(found, notes=(*notes, *found.notes))


def _by_table(table: LabelFile | None, splits: str) -> tuple[list[str], list[str]]:
    """The split of each file by a column of the table of labels, and what is to be said of that."""
    if table is None or not table.split_column:
        return [], []
    rows, about = splits_of(table.split_column, table.splits, splits)
    return rows, [note for note in (about, table.split_note if rows else "") if note]


def count(settings: DataSettings) -> tuple[int, int]:
    """Training images, and those with a label."""
    part = _found(settings)[1].train
    return len(part.indices), 0 if part.labels is None else int((part.labels >= 0).sum())


def channels(settings: DataSettings) -> int:
    """What data.channels = auto means: 3, or the bands of most of some hundreds of pictures where these are neither
    grey nor RGB.
    """
    return shared(_channels, _path(settings))


def _channels(path: Path) -> int:
    images, counts = _able(path, MANY_BANDS_SUFFIXES), Counter[int]()
    others = len(_pictures(path)) - len(images)
    if not len(images):
        return RGB
    order = np.random.default_rng(0).permutation(len(images))[:_HEADERS].tolist()
    for index in order:
        with suppress(UnreadableImage):  # it is met again, and counted, when the dataset is read
            form = images.form(index)
            counts[RGB if form.colors else form.bands] += 1
    counts[RGB] += others * len(order) // len(images)  # whose suffixes say that they are grey or RGB
    number, count = counts.most_common(1)[0]
    return number if count > counts[RGB] else RGB


def value_range(settings: DataSettings) -> Ranges | None:
    """What data.range = auto means: by the values of those of 64 pictures that have more than 8 bits."""
    return shared(_value_range, _path(settings), replace(_bands(settings), range=None))


def _value_range(path: Path, how: Reading) -> Ranges | None:
    return range_of_some(_able(path, DEEP_SUFFIXES, how))


def _able(path: Path, suffixes: Collection[str], how: Reading = AS_STORED) -> FileImages:
    """The images whose suffix says that they may be what is looked for."""
    files = _open(path)
    able = [i for i in _pictures(path).tolist() if os.path.splitext(files.names[i])[1].lower() in suffixes]  # noqa: PTH122
    return FileImages(files, np.array(able, dtype=np.int64), reading=how)


def _reading(settings: DataSettings) -> Reading:
    """How the pictures are read; a range that is still to be decided is, so that everyone sees the same pixels."""
    limits = value_range(settings) if settings.range == "auto" else settings.range
    return replace(_bands(settings), range=limits)


def _bands(settings: DataSettings) -> Reading:
    """Which bands become channels, and how many there are of these."""
    return asked_bands(settings.bands, settings.channels, lambda: channels(settings))


def native_size(settings: DataSettings) -> int:
    """The side that all images share if they are square and small (a sample of 64 is looked at), else 224."""
    return shared(_native_size, _path(settings))


def _native_size(path: Path) -> int:
    files = _open(path)
    side = common_side(FileImages(files, _pictures(path)))
    return side if side is not None and side <= LARGEST_NATIVE_SIDE else DEFAULT_SIDE


def _path(settings: DataSettings) -> Path:
    return Path(argument_of(settings.dataset)).expanduser().absolute()
