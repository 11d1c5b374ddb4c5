"""`packed:PATH`: a folder that `dsdmae data pack` made, with the splits, classes and settings of its source. No torch
here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dsdmae_cli.data.files import FileImages
from dsdmae_cli.data.once import shared
from dsdmae_cli.data.packed import PackedFiles, images, range_of
from dsdmae_cli.data.values import Ranges, Reading, asked_bands
from dsdmae_cli.plugins import argument_of
from dsdmae_cli.settings.models import DataSettings
from dsdmae_cli.settings.size import Size


def build(settings: DataSettings, split: str) -> FileImages:
    """A split of the folder.

    Raises:
        DataError: it is no packed folder, an unfinished one, or damaged.
    """
    limits = value_range(settings) if settings.range == "auto" else settings.range
    return images(_files(settings), split, replace(_reading(settings), range=limits))


def value_range(settings: DataSettings) -> Ranges | None:
    """What data.range = auto means: what it meant for the source."""
    return shared(range_of, _files(settings), _reading(settings))


def channels(settings: DataSettings) -> int:
    """What data.channels = auto means: what it meant for the source."""
    return _files(settings).manifest.channels


def native_size(settings: DataSettings) -> Size:
    """The source's own."""
    return _files(settings).manifest.image_size


def count(settings: DataSettings) -> tuple[int, int]:
    """Training images, and those with a label."""
    labels = images(_files(settings), "train", Reading()).labels
    index = _files(settings).index
    return int((index.splits == 0).sum()), 0 if labels is None else int((labels >= 0).sum())


def _files(settings: DataSettings) -> PackedFiles:
    return shared(PackedFiles, Path(argument_of(settings.dataset)).expanduser().absolute())


def _reading(settings: DataSettings) -> Reading:
    own = _files(settings).manifest
    if settings.bands == "auto":
        asked = own.channels if settings.channels == "auto" else settings.channels
        return Reading(None, own.bands, asked)
    return asked_bands(settings.bands, settings.channels, lambda: own.channels)
