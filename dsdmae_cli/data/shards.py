"""Tar shards as one set of image files, read in place: WebDataset's form. shard_index.py says where. No torch here.

Images are reached by their number, so that an epoch's order is a permutation of all of them, over all shards, and a
step is shared out and resumed as with any other dataset.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dsdmae_cli.data.base import MAX_FILE_BYTES, UnreadableImage
from dsdmae_cli.data.files import Files, Names, require_images
from dsdmae_cli.data.kept_open import KeptOpen
from dsdmae_cli.data.label_file import LabelFile
from dsdmae_cli.data.shard_index import Index, index_of
from dsdmae_cli.data.splits import TEST_FOLDERS, TRAIN_FOLDERS
from dsdmae_cli.errors import DataError
from dsdmae_cli.files import stamp_of
from dsdmae_cli.report import number_of

SUFFIX = ".tar"
# A process may hold some hundreds of files open, and there may be thousands of shards.
_MOST_OPEN = 64
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_NAMED = 100_000
_SHOWN = 3


def expanded(pattern: str) -> list[Path]:
    """The shards that a pattern with * ? [] {a,b} {0000..0127} stands for.

    Raises:
        DataError: it stands for none, for files that are no .tar, or some of those that braces name are not there.
    """
    found: list[Path] = []
    missing: list[str] = []
    for name in _without_braces(pattern):
        if any(mark in name for mark in "*?["):
            found += (Path(path) for path in sorted(glob.glob(name, recursive=True)))  # noqa: PTH207
        elif Path(name).exists():
            found.append(Path(name))
        else:
            missing.append(name)
    if not found:
        raise DataError(
            f"{pattern} matches nothing; give a folder of shards, or a glob or braces that match .tar files"
        )
    if missing:
        raise DataError(
            f"{len(missing)} of the shards of {pattern} {'is' if len(missing) == 1 else 'are'} not there"
            f" ({_some(missing)}); fetch them, or name others"
        )
    others = [str(path) for path in found if path.suffix.lower() != SUFFIX or not path.is_file()]
    if others:
        raise DataError(f"{pattern} matches what is no {SUFFIX} file ({_some(others)}); name the shards alone")
    return list(dict.fromkeys(path.absolute() for path in found))


def _without_braces(pattern: str) -> list[str]:
    parts = _BRACES.split(pattern)
    choices = [[part] if number % 2 == 0 else _choices(part) for number, part in enumerate(parts)]
    count = int(np.prod([len(choice) for choice in choices], dtype=np.int64))
    if count > _MOST_NAMED:
        raise DataError(f"{pattern} stands for {count} files, more than {_MOST_NAMED}; name fewer")
    return ["".join(words) for words in itertools.product(*choices)]


def _choices(inside: str) -> list[str]:
    numbers = _RANGE.fullmatch(inside)
    if numbers is None:
        return inside.split(",")
    first, last = numbers.groups()
    if int(last) - int(first) > _MOST_NAMED:
        raise DataError(f"{{{inside}}} stands for more than {_MOST_NAMED} files; name fewer")
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]


class Shards(Files):
    """The images of tar shards, one after the other.

    An image's name is that of its member, below the folder that its shard lies in (train/0003.tar holds train/KEY.jpg),
    so that folders are splits as ever; messages say SHARD!KEY.jpg.

    Args:
        shards: plain tars.

    Attributes:
        labels: what .cls and .json members say; None where they say nothing.
        notes: what is to be said of the shards.

    Raises:
        DataError: a shard is torn, compressed or no tar, or none holds an image.
    """

    def __init__(self, shards: Sequence[Path]) -> None:
        self._shards = list(shards)
        self._stamps = [stamp_of(path) for path in shards]
        index, notes = index_of(self._shards)
        self._firsts, self._offsets, self._sizes = index.firsts, index.offsets, index.sizes
        self.passed_over = dict(sum((Counter(fact["others"]) for fact in index.facts), Counter()).most_common())
        where = str(shards[0]) if len(shards) == 1 else f"the set of {len(shards)} shards that begins with {shards[0]}"
        require_images(Path(where), len(index.offsets), self.passed_over)
        self.members = Names.of(index.letters, index.starts)
        self.names = _placed(index, self._shards)
        self.labels = _labels(index)
        self.notes = (*notes, *_notes(index, self._shards))
        self._open: KeptOpen[_Descriptor] = KeptOpen(_MOST_OPEN)

    def names_by_split(self) -> Names | None:
        """Names below folders that stand for what the shards' own names say: of train-0000.tar and val-0000.tar train/
        and val/, of others the name without its number. None where shards lie in folders, or are named all alike.
        """
        groups = [_split_word(path.stem) or path.stem.rstrip("0123456789").strip("-_. ") for path in self._shards]
        one_folder = len({path.parent for path in self._shards}) == 1
        if not one_folder or len(set(groups)) < 2 or not any(_split_word(path.stem) for path in self._shards):
            return None
        counts = np.diff(self._firsts).tolist()
        group_of = (group or "other" for group, count in zip(groups, counts, strict=True) for _ in range(count))
        return Names([f"{group}/{name}" for group, name in zip(group_of, self.names, strict=True)])

    def full_name(self, index: int) -> str:
        return f"{self._shards[self._shard(index)]}!{self.members[index]}"

    def stamp(self, index: int) -> tuple[int, int]:
        return self._stamps[self._shard(index)]

    def file_size(self, index: int) -> int:
        return int(self._sizes[index])

    def read(self, index: int) -> bytes:
        size = int(self._sizes[index])
        if size > MAX_FILE_BYTES:
            raise UnreadableImage(self.full_name(index), f"file of more than {MAX_FILE_BYTES // 2**30} GiB")
        held = self._descriptor(self._shard(index))  # it would be closed under the call's feet
        return os.pread(held.number, size, int(self._offsets[index]))

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._firsts, index, side="right")) - 1

    def _descriptor(self, shard: int) -> _Descriptor:
        return self._open.get(shard, self._opened)

    def _opened(self, shard: int) -> _Descriptor:
        path = self._shards[shard]
        try:
            if stamp_of(path) != self._stamps[shard]:
                raise DataError(f"shard {path} changed while it was in use; start again")
            return _Descriptor(path)
        except OSError as error:
            raise DataError(f"shard {path} cannot be read: {error.strerror or error}") from error


class _Descriptor:
    """An open file, closed when nobody holds it any more. `os.pread` has no position that forks could fight over."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def _split_word(name: str) -> str | None:
    """The split that a file says in its name, as imagenet-train-0003 does; None where it says none, or several."""
    found = {word for word in re.findall("[a-z]+", name.lower()) if word in TRAIN_FOLDERS or word in TEST_FOLDERS}
    return found.pop() if len(found) == 1 else None


def _placed(index: Index, shards: Sequence[Path]) -> Names:
    """Names of members below the folders of their shards, as far as these differ."""
    common = Path(os.path.commonpath([path.parent for path in shards]))
    prefixes = [path.parent.relative_to(common).as_posix() for path in shards]
    prefixes = ["" if prefix == "." else f"{prefix}/" for prefix in prefixes]
    members = Names.of(index.letters, index.starts)
    if not any(prefixes):
        return members
    counts = np.diff(index.firsts).tolist()
    prefix_of = (prefix for prefix, count in zip(prefixes, counts, strict=True) for _ in range(count))
    return Names([prefix + name for prefix, name in zip(prefix_of, members, strict=True)])


def _labels(index: Index) -> LabelFile | None:
    """Classes sorted by their names, or by their value where all are whole numbers."""
    if not index.words:
        return None
    numbers = all(re.fullmatch(r"-?\d+", word) for word in index.words)
    classes = tuple(sorted(index.words, key=int) if numbers else sorted(index.words))
    place = {word: label for label, word in enumerate(classes)}
    table = np.array([*(place[word] for word in index.words), -1], dtype=np.int64)  # -1 stays -1
    labels = table[index.labels]
    without = int((labels < 0).sum())
    notes = (f"{without:,} of {len(labels):,} images have no label beside them",) if without else ()
    return LabelFile(labels, classes, ("labels are those of .cls or .json beside the images", *notes))


def _notes(index: Index, shards: Sequence[Path]) -> tuple[str, ...]:
    notes = []
    counts = np.diff(index.firsts)
    empty = [str(path) for path, count in zip(shards, counts, strict=True) if not count]
    if empty:
        notes.append(f"{len(empty)} of {len(shards)} shards hold no images ({_some(empty)})")
    doubled = [(str(path), fact["doubled"]) for path, fact in zip(shards, index.facts, strict=True) if fact["doubled"]]
    if doubled:
        total = sum(count for _, count in doubled)
        notes.append(
            f"{number_of(total, 'image')} {'has' if total == 1 else 'have'} the key of another in the same shard"
            f" ({_some([name for name, _ in doubled])}); of each key the first is taken"
        )
    if index.repeated:
        have = "has" if index.repeated == 1 else "have"
        notes.append(
            f"{number_of(index.repeated, 'image')} {have} a key that another shard has too; each is an image of its own"
        )
    cut = [str(path) for path, fact in zip(shards, index.facts, strict=True) if fact["cut"]]
    if cut:
        notes.append(
            f"{len(cut)} of {len(shards)} shards end without tar's end mark and may have been cut ({_some(cut)})"
        )
    for fact, said in (
        ("joined", "are several tars, one behind the other; all are read"),
        ("beyond", "go on behind their end with what is no tar and is not read"),
    ):
        if named := [str(path) for path, about in zip(shards, index.facts, strict=True) if about[fact]]:
            notes.append(f"{len(named)} of {len(shards)} shards {said} ({_some(named)})")
    return tuple(notes)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
