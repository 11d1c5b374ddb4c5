"""Which split and class each image file belongs to, by its name. No torch here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from dsdmae_cli.data.files import name_bytes

TEST_FOLDERS = ("test", "val", "validation")
MAX_HELD_OUT = 1000


@dataclass(frozen=True)
class Part:
    """One split: which files, and what they show if the folders say so.

    Attributes:
        indices: of the names, ascending.
        labels: one for each index, or None.
        classes: names by label, or None.
    """

    indices: Int64[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"] | None
    classes: tuple[str, ...] | None


def arrange(names: Sequence[str], holdout: float) -> dict[str, Part]:
    """Splits "train" and "test" and classes from the names alone, so that a folder and an archive of it give the same.

    A folder that wraps everything is looked through. Folders train and test (or val, validation) are the
    splits; without them `holdout` of the images, at most 1000, are held out. Class folders are the first
    level of a split if every image lies in one and there are at least two.

    Args:
        names: of files, relative, with "/" between folders; at least one.
        holdout: share of the images, above 0 and below 1.
    """
    names = list(names)
    wrapper = len(_wrapper(names))
    inner = [name[wrapper:] for name in names]
    tops = {name.partition("/")[0] for name in inner if "/" in name}
    test_folder = next((folder for folder in TEST_FOLDERS if folder in tops), None)
    if "train" in tops and test_folder:
        members = {"train": _below(inner, "train/"), "test": _below(inner, f"{test_folder}/")}
    else:
        held_out = _held_out(inner, holdout)
        members = {
            "train": [(i, name) for i, name in enumerate(inner) if i not in held_out],
            "test": [(i, name) for i, name in enumerate(inner) if i in held_out],
        }
    return _label(members)


def _wrapper(names: Sequence[str]) -> str:
    """The folder that all names lie in, with its slash, or an empty string."""
    # The folders that the first and the last name share are shared by all between them.
    folder = os.path.commonpath([os.path.dirname(min(names)), os.path.dirname(max(names))])  # noqa: PTH120
    return f"{folder}/" if folder else ""


def _below(names: list[str], prefix: str) -> list[tuple[int, str]]:
    return [(i, name.removeprefix(prefix)) for i, name in enumerate(names) if name.startswith(prefix)]


def _held_out(names: list[str], share: float) -> set[int]:
    # The order of hashes depends on nothing but the names, and hardly changes when images are added.
    count = min(MAX_HELD_OUT, max(1, round(share * len(names))), len(names) - 1)
    hashes = [hashlib.blake2b(name_bytes(name), digest_size=8).digest() for name in names]
    return set(sorted(range(len(names)), key=hashes.__getitem__)[:count])


def _label(members: dict[str, list[tuple[int, str]]]) -> dict[str, Part]:
    # Classes are gathered over both splits, so that a label means the same in each.
    in_folders = {split: all("/" in name for _, name in pairs) for split, pairs in members.items()}
    structured = [pairs for split, pairs in members.items() if in_folders[split]]
    classes = tuple(sorted({name.partition("/")[0] for pairs in structured for _, name in pairs}))
    label_of = {name: label for label, name in enumerate(classes)}
    parts = {}
    for split, pairs in members.items():
        indices = np.array([i for i, _ in pairs], dtype=np.int64)
        if len(classes) < 2 or not in_folders[split]:
            parts[split] = Part(indices, None, None)
            continue
        labels = np.array([label_of[name.partition("/")[0]] for _, name in pairs], dtype=np.int64)
        parts[split] = Part(indices, labels, classes)
    return parts
