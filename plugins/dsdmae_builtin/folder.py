"""`folder:PATH`: images from a folder, or from an archive that is read in place. No torch here.

What lies where is dsdmae_cli.data.files and archives, which split and class each image belongs to
dsdmae_cli.data.splits, and how an image is decoded dsdmae_cli.data.decode.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dsdmae_cli.data.files import FileImages, open_files
from dsdmae_cli.data.once import shared
from dsdmae_cli.data.splits import arrange
from dsdmae_cli.data.square import common_side
from dsdmae_cli.plugins import argument_of
from dsdmae_cli.settings.models import DataSettings

LARGEST_NATIVE_SIDE = 256
DEFAULT_SIDE = 224


def build(settings: DataSettings, split: str) -> FileImages:
    """The images under `folder:PATH`; split "train" (or "labelled", which is the same here) or "test".

    Raises:
        DataError: the path is missing, unreadable, not an archive, or holds no images.
    """
    files = open_files(_path(settings))
    part = arrange(files.names, settings.holdout)["test" if split == "test" else "train"]
    return FileImages(files, part.indices, part.labels, part.classes)


def native_size(settings: DataSettings) -> int:
    """The side that all images share if they are square and small (a sample of 64 is looked at), else 224."""
    return shared(_native_size, _path(settings))


def _native_size(path: Path) -> int:
    files = open_files(path)
    side = common_side(FileImages(files, np.arange(len(files.names), dtype=np.int64)))
    return side if side is not None and side <= LARGEST_NATIVE_SIDE else DEFAULT_SIDE


def _path(settings: DataSettings) -> Path:
    return Path(argument_of(settings.dataset)).expanduser().absolute()
