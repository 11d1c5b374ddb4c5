"""Which split and class each image file belongs to, by its name. No torch here.

Names say what a folder is, and only some of them: where the first level looks like splits and is none that is known,
a person is asked, because to take splits for classes trains on the images that the result is judged by.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsdmae_cli.data.class_folders import Part as Part
from dsdmae_cli.data.class_folders import class_notes, images_words, indices_of, parts_by_folders, some
from dsdmae_cli.data.files import name_bytes
from dsdmae_cli.data.label_file import LabelFile
from dsdmae_cli.errors import DataError

TRAIN_FOLDERS = ("train", "training")
# Of several the first is taken: validation images are for choosing where there are others to test on.
TEST_FOLDERS = ("test", "testing", "eval", "evaluation", "val", "valid", "validation", "dev")
MAX_HELD_OUT = 1000
_LIKE_SPLIT = "^(.*[^a-z])?({})(set|[^a-z].*)?$"  # train2017, val_images, test-set, 01_train, birds-val
WORDLESS = "(none)"  # what a column of splits says of a row where it is empty
# Of more folders with the same ones below them nobody made splits: views of many classes look like that.
_MOST_SPLITS = 10


@dataclass(frozen=True)
class Arrangement:
    """What the names come to.

    Attributes:
        train, test: the splits.
        notes: what a person should know of how the names were taken, a sentence each.
    """

    train: Part
    test: Part
    notes: tuple[str, ...] = ()


def splits_of(column: str, values: Sequence[Any], wanted: str = "auto") -> tuple[list[str], str]:
    """The split of each row of a table by its column that is called as one, and what is to be said of that; none where
    the column says something else, or one split alone.

    Args:
        values: one a row.
        wanted: data.splits: by a "TRAIN,TEST" that the column says, the words are taken as they are; by "none" none.

    Raises:
        DataError: some of its words are splits and others are not known.
    """
    words = [("" if value is None else str(value).strip()) or WORDLESS for value in values]
    there = sorted(set(words))
    if wanted == "none":
        return [], f"column {column!r} is not taken for splits (data.splits = none)"
    if wanted != "auto":
        taken = {part.strip(" /") for part in wanted.split(",")} <= set(there)
        return (words, f"splits are those of column {column!r}") if taken else ([], "")
    known = {*TRAIN_FOLDERS, *TEST_FOLDERS}
    lower = [word.lower() for word in words]
    if (
        len(there) > 1
        and set(lower) <= {*known, WORDLESS}
        and set(lower) & {*TRAIN_FOLDERS}
        and set(lower) & {*TEST_FOLDERS}
    ):
        lower = [TRAIN_FOLDERS[0] if word in TRAIN_FOLDERS else word for word in lower]
        return lower, f"splits are those of column {column!r}, by its name (--splits none takes all rows as one set)"
    if len(there) > 1 and set(lower) & known:
        raise DataError(
            f"column {column!r} of splits says {some(there)}; understood is one of"
            f" {', '.join(TRAIN_FOLDERS)} beside one of {', '.join(TEST_FOLDERS)}; say which two they are by --splits"
            " TRAIN,TEST, or that all rows are one set by --splits none"
        )
    return [], ""


def arrange(
    names: Sequence[str],
    holdout: float,
    splits: str = "auto",
    labels: LabelFile | None = None,
    of: str = "the folder",
    what: str = "folders",
) -> Arrangement:
    """Splits and classes from the names alone, so that a folder and an archive of it give the same.

    A folder that wraps everything is looked through. Folders train and test (or their like, TRAIN_FOLDERS and
    TEST_FOLDERS, in any case) are the splits; without them `holdout` of the images, at most 1000, are held out. Class
    folders are the first level of a split if nearly every image lies in one and there are at least two; a folder around
    all of a split's is looked through, where both splits have the same classes below.

    Args:
        names: of files, relative, with "/" between folders; at least one.
        holdout: share of the images, above 0 and below 1.
        splits: "auto", "none" (no folder is a split), or "TRAIN,TEST", the names of the two.
        labels: in place of those that folders say.
        of: what the names are in, for messages.
        what: what the first level of the names is, for messages.

    Raises:
        DataError: folders look like splits and are not understood, or those of `splits` are not there.
    """
    names = list(names)
    wrapper = _wrapper(names)
    inner = [name[len(wrapper) :] for name in names]
    folders = _split_folders(inner, splits, of, what)
    notes = []
    if folders is not None:
        members = {split: _below(inner, f"{folder}/") for split, folder in zip(("train", "test"), folders, strict=True)}
        learned, judged = (f"{folder}/" if what == "folders" else f"{folder} ({what})" for folder in folders)
        notes.append(f"{learned} is learned from and {judged} evaluated on")
        left_out = len(names) - sum(map(len, members.values()))
        if left_out:
            others = sorted({name.partition("/")[0] for name in inner} - set(folders))
            notes.append(
                f"{images_words(left_out)} beside them left out ({some(others)}){_or_those(folders[0], others)}"
            )
    else:
        held_out = _held_out(inner, holdout)
        members = {
            "train": [(i, name) for i, name in enumerate(inner) if i not in held_out],
            "test": [(i, name) for i, name in enumerate(inner) if i in held_out],
        }
    if labels is not None and len(labels.classes) < 2:
        said = f"all that there are say {labels.classes[0]!r}" if labels.classes else "there are none"
        notes.append(f"no labels: {said}, and one class is none to tell apart")
        parts = {name: Part(indices_of(pairs), None, None) for name, pairs in members.items()}
    elif labels is not None:
        taken = {split: np.array([i for i, _ in pairs], dtype=np.int64) for split, pairs in members.items()}
        parts = {split: Part(indices, labels.labels[indices], labels.classes) for split, indices in taken.items()}
    else:
        parts, more = parts_by_folders(members, wrapper)
        notes += more
    notes += class_notes(parts["train"], parts["test"], said=folders is not None)
    return Arrangement(parts["train"], parts["test"], tuple(notes))


# ------------------------------------------------------------------------------------------------------ splits


def _split_folders(names: list[str], splits: str, of: str, what: str) -> tuple[str, str] | None:
    """The folders of the first level that are the training and the test images, or None if there are none.

    Raises:
        DataError: folders look like splits and are not understood, or those of `splits` are not there.
    """
    tops = sorted({name.partition("/")[0] for name in names if "/" in name})
    if splits == "none":
        return None
    if splits != "auto":
        return _asked_for(tops, splits, of, what)
    trains = [top for top in tops if top.lower() in TRAIN_FOLDERS]
    tests = sorted((top for top in tops if top.lower() in TEST_FOLDERS), key=lambda t: TEST_FOLDERS.index(t.lower()))
    twice = len({top.lower() for top in tests}) < len(tests)
    if len(trains) == 1 and tests and not twice:
        return trains[0], tests[0]
    like = [_like(tops, known) for known in (TRAIN_FOLDERS, TEST_FOLDERS)]
    if trains or tests or all(like):
        raise DataError(_which(of, what, tops, *like))
    below = _folders_below(names, tops)
    _check_no_splits(below, of)
    if what == "folders":
        _check_not_alike(names, below, of)
    return None


def _asked_for(tops: list[str], splits: str, of: str, what: str) -> tuple[str, str]:
    """The two that data.splits names, which have to be there."""
    train, _, test = (part.strip(" /") for part in splits.partition(","))
    if train == test or train not in tops or test not in tops:
        raise DataError(
            f"data.splits = {splits!r}: {of} has no two such {what} on its first level; there is"
            f" {some(tops, 12) or 'none'}; give those to learn from and to test on as TRAIN,TEST, or none"
        )
    return train, test


def _folders_below(names: list[str], tops: list[str]) -> dict[str, set[str]]:
    """The folders in each of the first level's; in one pass, for there may be a thousand of a million images."""
    below: dict[str, set[str]] = {top: set() for top in tops}
    for name in names:
        top, _, rest = name.partition("/")
        if "/" in rest:
            below[top].add(rest.partition("/")[0])
    return below


def _check_no_splits(below: dict[str, set[str]], of: str) -> None:
    """See that there are no splits on the second level, where they are not looked for.

    Raises:
        DataError: it looks like that.
    """
    for top, folders in below.items():
        trains, tests = (_like(sorted(folders), known) for known in (TRAIN_FOLDERS, TEST_FOLDERS))
        if trains and tests:
            raise DataError(
                f"{of} has splits below its folders ({top}/{trains[0]}, {top}/{tests[0]}), which are looked for on"
                f" the first level; name a folder that holds them, such as {top}, or take what is there as it lies by"
                " --splits none"
            )


def _check_not_alike(names: list[str], below: dict[str, set[str]], of: str) -> None:
    """See that the first level is not splits by names that no list has: two, of the same classes.

    Raises:
        DataError: it looks like that.
    """
    if not 2 <= len(below) <= _MOST_SPLITS:
        return
    small = [{folder.lower() for folder in folders} for folders in below.values()]
    shared, every = set.intersection(*small), set.union(*small)
    if len(shared) < 2 or 2 * len(shared) <= len(every):  # a class more or less is no other arrangement
        return
    most = sorted(below, key=lambda top: (-sum(name.startswith(f"{top}/") for name in names), top))
    raise DataError(
        f"{of} holds the folders {some(list(below), 8)} with the same ones below each ({some(sorted(shared))}), as"
        f" splits have; say which two they are by --splits {shlex.quote(f'{most[0]},{most[1]}')} (TRAIN,TEST), or that"
        " every folder is a class by --splits none"
    )


def _or_those(train: str, others: Sequence[str]) -> str:
    """How to take what is left out for the test images, where its name says that it may be."""
    meant = [other for other in _like(others, TEST_FOLDERS) if other.lower() not in TEST_FOLDERS]
    return f"; to evaluate on it, --splits {shlex.quote(f'{train},{meant[0]}')}" if meant else ""


def _like(folders: Collection[str], known: Sequence[str]) -> list[str]:
    pattern = re.compile(_LIKE_SPLIT.format("|".join(known)))
    return [folder for folder in folders if pattern.match(folder.lower())]


def _which(of: str, what: str, tops: list[str], trains: list[str], tests: list[str]) -> str:
    """What was seen, what is understood, and how to say it."""
    known = {"TRAIN": trains, "TEST": tests}
    rest = [top for top in tops if top not in (*trains, *tests)]
    for role, there in known.items():  # two alone can but be the two
        known[role] = there or (rest if len(tops) == 2 else [])
    train, test = (there[0] if len(there) == 1 else role for role, there in known.items())
    meant = "every folder is a class" if what == "folders" else "they are one set"
    return (
        f"{of} holds the {what} {some(tops, 8)}, of which {some([*trains, *tests])} may be splits; understood is one"
        f" of {', '.join(TRAIN_FOLDERS)} beside one of {', '.join(TEST_FOLDERS)}; say which two they are by --splits"
        f" {shlex.quote(f'{train},{test}')}, or that {meant} by --splits none"
    )


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
