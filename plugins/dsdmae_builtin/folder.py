"""Images from a folder or from an archive that is read in place: `folder:PATH`. No torch here.

What lies where (Directory, Archive), which split and class each image belongs to (arrange), and the dataset
itself (FolderImages). Decoding and the list of image suffixes are in dsdmae_cli.data.decode.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import stat
import struct
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, NamedTuple, overload

import numpy as np
from jaxtyping import Int64, UInt8

from dsdmae_cli.data.base import ImageDataset, UnreadableImage
from dsdmae_cli.data.decode import IMAGE_SUFFIXES, decode, image_size
from dsdmae_cli.errors import DataError
from dsdmae_cli.plugins import argument_of
from dsdmae_cli.settings.models import DataSettings

TEST_FOLDERS = ("test", "val", "validation")
MAX_HELD_OUT = 1000
SIZE_SAMPLE = 64
LARGEST_NATIVE_SIDE = 256
DEFAULT_SIDE = 224
MAX_UNPACKED_BYTES = 4 * 2**30  # of a compressed tar, which has to be unpacked into a temporary file
MAX_FILE_BYTES = 2**30  # of one image in an archive
KINDS = "a folder of images, or a .tar, .tar.gz, .tar.bz2, .tar.xz or .zip of one"


def build(settings: DataSettings, split: str) -> FolderImages:
    """The images under `folder:PATH`; split "train" (or "labelled", which is the same here) or "test".

    Raises:
        DataError: the path is missing, unreadable, not an archive, or holds no images.
    """
    files = open_files(_path(settings))
    part = arrange(files.names, settings.holdout)["test" if split == "test" else "train"]
    return FolderImages(files, part.indices, part.labels, part.classes)


def native_size(settings: DataSettings) -> int:
    """The side that all images share if they are square and small (a sample of 64 is looked at), else 224."""
    files = open_files(_path(settings))
    sample = np.unique(np.linspace(0, len(files.names) - 1, SIZE_SAMPLE).astype(int)).tolist()
    sizes = {size for index in sample if (size := _size(files, index))}
    width, height = sizes.pop() if len(sizes) == 1 else (0, 1)
    return width if width == height <= LARGEST_NATIVE_SIDE else DEFAULT_SIDE


class FolderImages(ImageDataset):
    """Some of the files of a folder or archive, as images.

    Args:
        files: where they are.
        indices: which of them, in order.
        labels: one for each index, or None.
        classes: names by label, or None.
    """

    def __init__(
        self,
        files: Files,
        indices: Int64[np.ndarray, " n"],
        labels: Int64[np.ndarray, " n"] | None,
        classes: tuple[str, ...] | None,
    ) -> None:
        self._files = files
        self._indices = indices
        self.labels = labels
        self.classes = classes

    def __len__(self) -> int:
        return len(self._indices)

    def load(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        return decode(self._files.read(int(self._indices[index])), self.name(index))

    def name(self, index: int) -> str:
        return self._files.full_name(int(self._indices[index]))

    def fingerprint(self) -> str:
        """SHA-256 over each file's name below the folder, size, time of change and label; nothing is decoded.

        An archive counts by its own size and time, and its members by their names. So a million files take seconds;
        a folder that was copied without its times is a new one, and one that was moved is not. A file that is replaced
        by another of the same size and time (to the nanosecond) goes unnoticed.
        """
        digest = hashlib.sha256(json.dumps([len(self), self.classes]).encode())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        for index in self._indices.tolist():
            digest.update(b"%s\0%s\0" % (_encode(self._files.names[index]), repr(self._files.stamp(index)).encode()))
        return digest.hexdigest()


# ---------------------------------------------------------------------------------------- splits and classes


@dataclass(frozen=True)
class Part:
    """One split: which files, and what they show if the folders say so."""

    indices: Int64[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"] | None
    classes: tuple[str, ...] | None


def arrange(names: Sequence[str], holdout: float) -> dict[str, Part]:
    """Splits and classes from the names alone, so that a folder and an archive of it give the same.

    A folder that wraps everything is looked through. Folders train and test (or val, validation) are the
    splits; without them `holdout` of the images, at most 1000, are held out. Class folders are the first
    level of a split if every image lies in one and there are at least two.
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
    hashes = [hashlib.blake2b(_encode(name), digest_size=8).digest() for name in names]
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


# ------------------------------------------------------------------------------------------- where files lie


class Names(Sequence[str]):
    """Many strings in one buffer, shared by forked workers; a million names cost what their letters cost."""

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [_encode(name) for name in names]
        self._letters = b"".join(encoded)
        self._starts = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

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


def _encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")  # file names need not be valid UTF-8


class Files(ABC):
    """Image files by index, sorted by name; for use from several threads and forked or spawned processes."""

    names: Names

    @abstractmethod
    def read(self, index: int) -> Path | bytes:
        """Where the file is, or what it holds.

        Raises:
            UnreadableImage: an archive is damaged at this file.
        """

    @abstractmethod
    def full_name(self, index: int) -> str:
        """What to call the file in messages."""

    @abstractmethod
    def stamp(self, index: int) -> tuple[int, int] | None:
        """Size and time of change (ns) of the file, or of the archive it is in; None if it cannot be looked at."""


class Directory(Files):
    """Files under a directory, by their names relative to it."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self._root = root
        self.names = Names(names)

    def read(self, index: int) -> Path:
        return self._root / self.names[index]

    def full_name(self, index: int) -> str:
        return str(self.read(index))

    def stamp(self, index: int) -> tuple[int, int] | None:
        try:
            return _stamp(self._root / self.names[index])
        except OSError:  # it is reported as unreadable when it is read
            return None


def open_files(path: Path) -> Files:
    """The image files in a folder or archive.

    Raises:
        DataError: the path is missing, unreadable, not an archive, or holds no images.
    """
    with _reading(path):
        found = path.stat() if path.exists() else None
        if found is None:
            raise DataError(f"{path} does not exist; folder:PATH takes {KINDS}")
        if stat.S_ISDIR(found.st_mode):
            files = sorted(_walk(path, "", ()))
            names = [name for name in files if _is_image(name)]
            _require_images(path, len(names), len(files))
            return Directory(path, names)
        return _archive(path, found.st_size, found.st_mtime_ns)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122  (ten times faster than Path)


def _require_images(path: Path, num_images: int, num_files: int) -> None:
    if not num_images:
        kinds = " ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{path} holds no images: {num_files} visible files, none of {kinds}; give another path")


def _walk(folder: Path | str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Names of visible files below a folder; a symbolic link back to a folder above is not followed."""
    found = os.stat(folder)  # noqa: PTH116
    identity = (found.st_dev, found.st_ino)
    if identity in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            kind = _kind(entry)
            if kind == "folder":
                yield from _walk(entry.path, f"{prefix}{entry.name}/", (*above, identity))
            elif kind == "file":
                yield prefix + entry.name


def _kind(entry: os.DirEntry[str]) -> Literal["folder", "file", "other"]:
    # A link that leads nowhere counts as a file, to be reported as unreadable like any other; a pipe or a
    # device is left out because it would block whoever opens it.
    try:
        if entry.is_dir():
            return "folder"
        dangling = entry.is_symlink() and not os.path.exists(entry)  # noqa: PTH110
        return "file" if dangling or entry.is_file() else "other"
    except OSError:  # a link to itself
        return "file"


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


# -------------------------------------------------------------------------------------------------- archives

# Compressed tars, by their first bytes: nothing in them can be reached before all in front of it is unpacked.
_COMPRESSED: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
_ZIP_LOCAL_HEADER = struct.Struct("<26xHH")  # its last two fields: lengths of the name and of the extra field


class _Member(NamedTuple):
    """Where one file lies in an archive: a tar's bytes begin at `offset`, a zip's local header does."""

    name: str
    offset: int
    stored: int
    size: int
    deflated: bool = False
    crc: int | None = None


class Archive(Files):
    """Image files inside a tar or zip, read where they lie.

    Reads go through `os.pread`, which has no file position that forked workers could fight over. A pickled
    copy opens the archive anew, and unpacks a compressed tar once more: for spawned workers a plain tar or a
    zip is the better choice.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = _stamp(path)
        self._descriptor: int | None = None
        with os.fdopen(os.dup(self._open()), "rb") as file:
            members, num_files = _members(file, path)
        _require_images(path, len(members), num_files)
        self.names = Names([member.name for member in members])
        self._offsets = np.array([m.offset for m in members], dtype=np.int64)
        self._stored = np.array([m.stored for m in members], dtype=np.int64)
        self._sizes = np.array([m.size for m in members], dtype=np.int64)
        self._deflated = np.array([m.deflated for m in members])
        self._checksums = np.array([m.crc for m in members]) if members[0].crc is not None else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}

    def full_name(self, index: int) -> str:
        return f"{self._path}!{self.names[index]}"

    def stamp(self, index: int) -> tuple[int, int]:
        return self._stamp

    def read(self, index: int) -> bytes:
        if max(self._sizes[index], self._stored[index]) > MAX_FILE_BYTES:
            raise UnreadableImage(self.full_name(index), f"file of more than {MAX_FILE_BYTES // 2**30} GiB")
        descriptor, offset, stored = self._open(), int(self._offsets[index]), int(self._stored[index])
        if self._checksums is None:
            return os.pread(descriptor, stored, offset)
        try:
            # The local header may differ in length from the entry in the zip's directory.
            header = _ZIP_LOCAL_HEADER.unpack(os.pread(descriptor, _ZIP_LOCAL_HEADER.size, offset))
            content = os.pread(descriptor, stored, offset + _ZIP_LOCAL_HEADER.size + sum(header))
            if self._deflated[index]:
                size = int(self._sizes[index])  # a bound: what promises less than it holds fails the checksum
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size or 1)
        except (struct.error, zlib.error) as error:
            raise UnreadableImage(self.full_name(index), "damaged in the archive") from error
        if zlib.crc32(content) != self._checksums[index]:
            raise UnreadableImage(self.full_name(index), "damaged in the archive")
        return content

    def _open(self) -> int:
        if self._descriptor is None:
            if _stamp(self._path) != self._stamp:
                raise DataError(f"{self._path} changed while it was in use; start again")
            self._descriptor = _open_descriptor(self._path)
            weakref.finalize(self, os.close, self._descriptor)
        return self._descriptor


@lru_cache(maxsize=1)
def _archive(path: Path, size: int, modified_ns: int) -> Archive:
    """Listing costs seconds and both splits want it; size and time make a changed file a new one."""
    return Archive(path)


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _open_descriptor(path: Path) -> int:
    with path.open("rb") as file:
        start = file.read(8)
        opener = next((opener for magic, opener in _COMPRESSED.items() if start.startswith(magic)), None)
        if opener is None:
            return os.dup(file.fileno())
    with opener(path) as packed, tempfile.TemporaryFile(prefix="dsdmae-") as unpacked:
        _copy(packed, unpacked, path)
        unpacked.flush()
        return os.dup(unpacked.fileno())


def _copy(packed: io.BufferedIOBase, unpacked: IO[bytes], path: Path) -> None:
    copied = 0
    while chunk := packed.read(2**20):
        copied += len(chunk)
        if copied > MAX_UNPACKED_BYTES:
            limit = MAX_UNPACKED_BYTES / 2**30
            raise DataError(
                f"{path} unpacks to more than {limit:g} GiB; unpack it, or make it a plain .tar or a .zip,"
                " which are read in place"
            )
        unpacked.write(chunk)


def _members(file: BinaryIO, path: Path) -> tuple[list[_Member], int]:
    """The images of an archive, sorted by name, and the number of all its visible files."""
    file.seek(0)
    if file.read(4) in _ZIP_STARTS:  # zipfile.is_zipfile would also take a tar that ends with a zip for one
        found = _zip_members(file, path)
    else:
        file.seek(0)
        try:
            found = _tar_members(file)
        except tarfile.ReadError as error:
            if file.seek(0) == 0 and tarfile.is_tarfile(file):
                raise
            message = f"{path} is neither a folder nor an archive; folder:PATH takes {KINDS}"
            raise DataError(message) from error
    # Of two with one name the later counts, as it does for tar.
    visible = {member.name: member for member in found if not _is_hidden(member.name)}
    images = sorted((m for m in visible.values() if _is_image(m.name)), key=lambda m: m.name)
    return images, len(visible)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or "/." in name


def _clean(name: str) -> str:
    return name.removeprefix("./").lstrip("/")


def _tar_members(file: BinaryIO) -> list[_Member]:
    members = []
    by_name: dict[str, tarfile.TarInfo] = {}
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for info in archive:
            # tar stores the second name of a hard-linked file as a link to the first.
            source = by_name.get(info.linkname) if info.islnk() else info
            if source is None or not source.isreg():
                continue
            by_name[info.name] = source
            members.append(_Member(_clean(info.name), source.offset_data, source.size, source.size))
    return members


def _zip_members(file: BinaryIO, path: Path) -> list[_Member]:
    members = []
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                how = "encrypted" if info.flag_bits & 1 else f"compressed by method {info.compress_type}"
                raise DataError(f"{path}!{info.filename} is {how}; make the zip again with plain deflate")
            deflated = info.compress_type == zipfile.ZIP_DEFLATED
            place = (info.header_offset, info.compress_size, info.file_size)
            members.append(_Member(_clean(info.filename), *place, deflated, info.CRC))
    return members


# ----------------------------------------------------------------------------------------------------- small


def _path(settings: DataSettings) -> Path:
    return Path(argument_of(settings.dataset)).expanduser().absolute()


def _size(files: Files, index: int) -> tuple[int, int] | None:
    try:
        return image_size(files.read(index), files.full_name(index))
    except UnreadableImage:
        return None  # it is reported when the run meets it
