"""A second dataset: image files whose classes are in tables, PATH/train.csv and PATH/test.csv. No torch."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from dsdmae_cli.data.files import Directory, FileImages
from dsdmae_cli.errors import DataError
from dsdmae_cli.plugins import argument_of
from dsdmae_cli.settings.models import DataSettings


def build(settings: DataSettings, split: str) -> FileImages:
    """The images that a table names, in its order.

    Raises:
        DataError: there is no such table, or it lacks a column.
    """
    folder = Path(argument_of(settings.dataset)).absolute()
    try:
        with (folder / f"{split}.csv").open(newline="", encoding="utf-8") as table:
            rows = [(row["file"], row["class"]) for row in csv.DictReader(table)]
    except (OSError, KeyError) as error:
        raise DataError(
            f"{folder / split}.csv must be a table with columns file and class: {error}"
        ) from error
    classes = tuple(sorted({kind for _, kind in rows}))
    labels = np.array([classes.index(kind) for _, kind in rows], dtype=np.int64)
    files = Directory(folder, [name for name, _ in rows])
    return FileImages(files, np.arange(len(rows)), labels, classes)
