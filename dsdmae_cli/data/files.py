"""Image files by index, in a folder or in an archive, and a dataset of them. No torch here.

`open_files` lists what is there; archives.py reads archives, splits.py says which split and class a file belongs to by
its name, decode.py turns a file into pixels.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import overload

import numpy as np
from jaxtyping import Int64, UInt8

from dsdmae_cli.data.base import MAX_FILE_BYTES, Form, ImageDataset, UnreadableImage, raise_shortage
from dsdmae_cli.data.decode import (
    AS_STORED,
    HEIF_ADVICE,
    HEIF_SUFFIXES,
    IMAGE_SUFFIXES,
    decode,
    deep_values,
    image_form,
    image_size,
)
from dsdmae_cli.data.kinds import ADVICE
from dsdmae_cli.data.label_file import LabelFile
from dsdmae_cli.data.once import shared
from dsdmae_cli.data.values import Ranges, Reading, Values, range_for
from dsdmae_cli.data.walk import LeftOut, walk
from dsdmae_cli.errors import DataError
from dsdmae_cli.files import beside, is_pattern, read_within
from dsdmae_cli.files import stamp_of as stamp_of

# Pictures whose values say the range of all, of at most so many headers that are read to find them.
_LOOKED_AT, _HEADERS = 64, 512
_RGB = 3
# A pipe that has taken a file's place since it was listed keeps nobody waiting.
_READING = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)

KINDS = "a folder of images or of .tar shards, or a .tar, .tar.gz, .tar.bz2, .tar.xz or .zip of one"


# ------------------------------------------------------------------------------------------------- the dataset


class FileImages(ImageDataset):
    """Some image files as a dataset.

    Args:
        files: where they are.
        indices: which of them, in order.
        labels: one for each index (-1 = none), or None.
        classes: names by label, or None.
        notes: what is to be said of how they were found.
        reading: what their channels are, and what is black and white in those of more than 8 bits.
    """

    def __init__(
        self,
        files: Files,
        indices: Int64[np.ndarray, " n"],
        labels: Int64[np.ndarray, " n"] | None = None,
        classes: tuple[str, ...] | None = None,
        notes: tuple[str, ...] = (),
        reading: Reading = AS_STORED,
    ) -> None:
        self.reading: Reading = reading
        self.channels = reading.channels
        self._files = files
        self._indices = indices
        self.labels = labels
        self.classes = classes
        self.notes = notes

    def __len__(self) -> int:
        return len(self._indices)

    def load(self, index: int) -> UInt8[np.ndarray, "height width c"]:
        return decode(self._files.read(int(self._indices[index])), self.name(index), self.reading)

    def deep_values(self, index: int) -> Values | None:
        return deep_values(self._files.read(int(self._indices[index])), self.name(index), self.reading)

    def size(self, index: int) -> tuple[int, int]:
        return image_size(self._files.read(int(self._indices[index])), self.name(index))

    def form(self, index: int) -> Form:
        return image_form(self._files.read(int(self._indices[index])), self.name(index))

    def name(self, index: int) -> str:
        return self._files.full_name(int(self._indices[index]))

    def file_size(self, index: int) -> int | None:
        return self._files.file_size(int(self._indices[index]))

    def file_bytes(self, index: int) -> bytes | None:
        content = self._files.read(int(self._indices[index]))
        if isinstance(content, bytes):
            return content
        try:
            return read_within(content, MAX_FILE_BYTES)
        except OSError as error:
            raise_shortage(error, self.name(index))
            raise UnreadableImage(self.name(index), (error.strerror or str(error)).lower()) from error

    def encoded(self, index: int) -> bytes | memoryview | None:
        if self.channels != _RGB or self.reading.bands is not None:
            return None
        return self._files.content(int(self._indices[index]))

    def fingerprint(self) -> str:
        """SHA-256 over each file's name below the folder, size, time of change and label; nothing is decoded.

        An archive counts by its own size and time, and its members by their names. So a million files take seconds;
        a folder that was copied without its times is a new one, and one that was moved is not. A file that is replaced
        by another of the same size and time (to the nanosecond) goes unnoticed.
        """
        digest = hashlib.sha256(json.dumps([len(self), self.classes]).encode() + self._files.part.encode())
        if self.reading != AS_STORED:  # other pixels of the same files
            digest.update(repr(self.reading).encode())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        for index in self._indices.tolist():
            digest.update(b"%s\0%s\0" % (name_bytes(self._files.names[index]), repr(self._files.stamp(index)).encode()))
        return digest.hexdigest()

    def _identity(self, index: int) -> bytes:
        return b"%s\0%s\0" % (
            name_bytes(self._files.names[int(self._indices[index])]),
            repr(self.file_size(index)).encode(),
        )


# --------------------------------------------------------------------------------------------- where files lie


def name_bytes(name: str) -> bytes:
    """A file's name as the system has it, which need not be valid UTF-8."""
    return name.encode("utf-8", "surrogateescape")


class Names(Sequence[str]):
    """Many strings in one buffer, shared by forked workers; a million names cost what their letters cost."""

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [name_bytes(name) for name in names]
        self._letters = b"".join(encoded)
        self._starts = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    @classmethod
    def of(cls, letters: bytes, starts: Int64[np.ndarray, " n_plus_1"]) -> Names:
        """Names that are in one buffer already; `starts` says where each begins, and its last where all end."""
        made = cls.__new__(cls)
        made._letters, made._starts = letters, starts
        return made

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._letters[self._starts[index] : self._starts[index + 1]].decode("utf-8", "surrogateescape")


class Files(ABC):
    """Image files by index, sorted by name; for use from several threads and forked or spawned processes."""

    names: Names
    passed_over: Mapping[str, int] = MappingProxyType({})  # visible files that are no images, by suffix
    left_out: tuple[str, ...] = ()  # what else lies there and is no file, in words
    labels: LabelFile | None = None  # what lies beside the images says of them
    notes: tuple[str, ...] = ()  # what is to be said of the files, a sentence each
    part: str = ""  # which part of each file is the image, where it may have several

    @abstractmethod
    def read(self, index: int) -> Path | bytes:
        """Where the file is, or what it holds.

        Raises:
            UnreadableImage: an archive is damaged at this file.
        """

    def content(self, index: int) -> bytes | None:
        """What the file holds; None where it cannot be read, which whoever decodes it says in words.

        Raises:
            UnreadableImage: as read.
        """
        found = self.read(index)
        if isinstance(found, bytes):
            return found
        try:
            return read_within(found, MAX_FILE_BYTES)
        except OSError:
            return None

    @abstractmethod
    def full_name(self, index: int) -> str:
        """What to call the file in messages."""

    @abstractmethod
    def stamp(self, index: int) -> tuple[int, int] | None:
        """Size and time of change (ns) of the file, or of the archive it is in; None if it cannot be looked at."""

    @abstractmethod
    def file_size(self, index: int) -> int | None:
        """Bytes of the file itself; None if it cannot be looked at."""


class Directory(Files):
    """Files under a directory.

    Args:
        root: the directory.
        names: of the files, relative to it, with "/" between folders.
        passed_over: how many files of which suffix lie there that are no images.
    """

    def __init__(self, root: Path, names: Sequence[str], passed_over: Mapping[str, int] | None = None) -> None:
        self._root = root
        self.names = Names(names)
        self.passed_over = dict(passed_over or {})

    def read(self, index: int) -> Path:
        return self._root / self.names[index]

    def content(self, index: int) -> bytes | None:
        # Without pathlib and by one read, since to decode a small JPEG takes only ten times as long as to read it.
        try:
            descriptor = os.open(f"{self._root}{os.sep}{self.names[index]}", _READING)
        except (OSError, ValueError):
            return None
        try:
            about = os.fstat(descriptor)
            size = about.st_size
            if size > MAX_FILE_BYTES or not stat.S_ISREG(about.st_mode):
                return None
            found = os.read(descriptor, size)
            return found if len(found) == size else None
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def full_name(self, index: int) -> str:
        return str(self.read(index))

    def stamp(self, index: int) -> tuple[int, int] | None:
        try:
            return stamp_of(self._root / self.names[index])
        except OSError:  # it is reported as unreadable when it is read
            return None

    def file_size(self, index: int) -> int | None:
        found = self.stamp(index)
        return None if found is None else found[0]


# ------------------------------------------------------------------------------------------- what there is


def open_files(path: Path) -> Files:
    """The image files in a folder, an archive or tar shards; listed once within `once.opened_once`.

    Args:
        path: a folder, an archive, or a pattern of shards (a glob, braces).

    Raises:
        DataError: the path is missing, unreadable, not an archive, or holds no images.
    """
    return shared(_open_files, path.absolute())


_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")


def _open_files(path: Path) -> Files:
    from dsdmae_cli.data.archives import Archive  # they are made of Files, and must not be needed to define them
    from dsdmae_cli.data.shards import SUFFIX, Shards, expanded

    with _reading(path):
        if not path.exists():
            if is_pattern(str(path)):
                return Shards(expanded(str(path)))
            raise DataError(f"{path} does not exist{beside(path)}; give {KINDS}")
        if not stat.S_ISDIR(path.stat().st_mode):
            archive = Archive(path)
            return Shards([path]) if archive.has_labels else archive
        left_out = LeftOut()
        files = sorted(walk(path, left_out))
        names = [name for name in files if is_image(name)]
        others = by_suffix(files)
        if not names and others.get(SUFFIX):
            shards = Shards([path / name for name in files if name.lower().endswith(SUFFIX)])
            here = {suffix: count for suffix, count in others.items() if suffix != SUFFIX}
            shards.left_out = tuple(left_out.words())
            shards.passed_over = here | {key: n + here.get(key, 0) for key, n in shards.passed_over.items()}
            return shards
        if names and len(names) <= others.get(SUFFIX, 0):
            raise DataError(
                f"{path} holds {others[SUFFIX]} {SUFFIX} and {len(names)} images beside them ({names[0]}); for shards,"
                f" name them by {str(path / '*.tar')!r}, or put one kind elsewhere"
            )
        packed = [name for name in files if name.lower().endswith(_COMPRESSED)]
        if not names and packed:
            as_tar = f"decompress them to {SUFFIX} (gunzip, unxz, unzstd)"
            unpacked = "unpack them" if packed[0].lower().endswith(".zip") else as_tar
            raise DataError(
                f"{path} holds no images but {len(packed)} compressed archive{'s' * (len(packed) > 1)} ({packed[0]}),"
                f" which cannot be read in place as shards are; {unpacked}, or name one of them alone"
            )
        require_images(path, len(names), others, left_out.words())
        directory = Directory(path, names, others)
        directory.left_out = tuple(left_out.words())
        return directory


def is_image(name: str) -> bool:
    """Whether a file's suffix is one of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122  (ten times faster than Path)


def by_suffix(names: Iterable[str]) -> dict[str, int]:
    """How many files of which suffix are no images, the most frequent first; "" = without a suffix."""
    suffixes = (os.path.splitext(name)[1].lower() for name in names if not is_image(name))  # noqa: PTH122
    return dict(sorted(Counter(suffixes).items(), key=lambda item: (-item[1], item[0])))


def passed_over_words(others: Mapping[str, int], left_out: Sequence[str] = (), most: int = 6) -> str:
    """ "12 .heic, 3 .txt", the most frequent first, what would read them, and what is left out."""
    known = ADVICE | dict.fromkeys(HEIF_SUFFIXES - IMAGE_SUFFIXES, HEIF_ADVICE)
    said = {one: f"'{one}'" if any(map(str.isspace, one)) else one or "without a suffix" for one in others}
    words = [": ".join([f"{count} {said[one]}", *filter(None, [known.get(one)])]) for one, count in others.items()]
    rest = sum(list(others.values())[most:])
    some = ", ".join(words[:most]) + (f" and {rest} more" if rest else "")
    return ", ".join([*([some] if some else []), *left_out])


def require_images(path: Path, num_images: int, others: Mapping[str, int], left_out: Sequence[str] = ()) -> None:
    """Raise DataError if there are none among the visible files of a folder or archive; the others are counted."""
    if not num_images:
        kinds = " ".join(sorted(IMAGE_SUFFIXES))
        there = f" ({passed_over_words(others, left_out)})" if others or left_out else ""
        raise DataError(
            f"{path} holds no images: {sum(others.values())} visible files{there}, none of {kinds}; give another path"
        )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong on the way to a list of files, in one line."""
    try:
        yield
    except OSError as error:
        if not error.strerror:
            raise DataError(f"{path} is damaged: {error}; make or fetch it again") from error
        what = f"{error.filename or path}: {error.strerror.lower()}"
        raise DataError(f"cannot read {what}; mend that or give another path") from error
    except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, ValueError) as error:
        raise DataError(f"{path} is a damaged archive: {error}; make or fetch it again") from error


def range_of_some(images: FileImages) -> Ranges | None:
    """By the values of those of 64 pictures that have more than 8 bits, of some hundreds that are looked at."""
    how, pictures = images.reading, islice(_deep_ones(images), _LOOKED_AT)
    return range_for(pictures, how)


def _deep_ones(images: FileImages) -> Iterator[Values]:
    """Values of those of some hundreds of pictures that have more than 8 bits; of the others a header is read."""
    order = np.random.default_rng(0).permutation(len(images))[:_HEADERS]
    for index in order.tolist():
        try:
            values = images.deep_values(index)
        except UnreadableImage:
            continue  # it is met again, and counted, when the dataset is read
        if values is not None:
            yield values
