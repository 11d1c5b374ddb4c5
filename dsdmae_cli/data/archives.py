"""Image files inside a tar or zip, read where they lie. No torch here."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import posixpath
import struct
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np

from dsdmae_cli.data.base import MAX_FILE_BYTES, UnreadableImage
from dsdmae_cli.data.files import KINDS, Files, Names, by_suffix, is_image, require_images
from dsdmae_cli.data.tar_headers import TarHeaders
from dsdmae_cli.data.walk import is_hidden
from dsdmae_cli.errors import DataError
from dsdmae_cli.files import open_file, read_within, require_file, stamp_of

MAX_UNPACKED_BYTES = 4 * 2**30  # of a compressed tar, which has to be unpacked into a temporary file
_MOST_TEXT = 16 * 2**20  # bytes of a list of classes, or of files
# Deflate makes a thousandth of zeros at most, and of pictures that are not packed already a tenth.
_LARGE, _MOST_FOLD = 64 * 2**20, 200
_MOST_LINKS = 8  # one behind the other

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


def unpacks_too_far(size: int, stored: int) -> bool:
    """Whether bytes become so many that memory is at stake, and they cannot be pictures, which hardly shrink."""
    return size > max(_LARGE, _MOST_FOLD * stored)


class Archive(Files):
    """Image files inside a tar or zip, read where they lie.

    Reads go through `os.pread`, which has no file position that forked workers could fight over. A pickled
    copy opens the archive anew, and unpacks a compressed tar once more: for spawned workers a plain tar or a
    zip is the better choice.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = stamp_of(path)
        self._descriptor: int | None = None
        with os.fdopen(os.dup(self._open()), "rb") as file:
            members, self.passed_over, labelled, self.notes = _members(file, path)
        require_images(path, len(members), self.passed_over)
        plain_tar = members[0].crc is None and self._is_plain()
        self.has_labels = plain_tar and labelled
        self.names = Names([member.name for member in members])
        self._offsets = np.array([m.offset for m in members], dtype=np.int64)
        self._stored = np.array([m.stored for m in members], dtype=np.int64)
        self._sizes = np.array([m.size for m in members], dtype=np.int64)
        self._deflated = np.array([m.deflated for m in members])
        self._checksums = np.array([m.crc for m in members]) if members[0].crc is not None else None

    def _is_plain(self) -> bool:
        with self._path.open("rb") as file:
            return not file.read(8).startswith(tuple(_COMPRESSED))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}

    def full_name(self, index: int) -> str:
        return f"{self._path}!{self.names[index]}"

    def stamp(self, index: int) -> tuple[int, int]:
        return self._stamp

    def file_size(self, index: int) -> int:
        return int(self._sizes[index])

    def read(self, index: int) -> bytes:
        if max(self._sizes[index], self._stored[index]) > MAX_FILE_BYTES:
            raise UnreadableImage(self.full_name(index), f"file of more than {MAX_FILE_BYTES // 2**30} GiB")
        descriptor, offset, stored = self._open(), int(self._offsets[index]), int(self._stored[index])
        if self._deflated[index] and unpacks_too_far(int(self._sizes[index]), stored):
            fold = self._sizes[index] / max(1, stored)
            raise UnreadableImage(self.full_name(index), f"unpacks to {fold:,.0f} times its size, as no picture does")
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
            if stamp_of(self._path) != self._stamp:
                raise DataError(f"{self._path} changed while it was in use; start again")
            self._descriptor = _open_descriptor(self._path)
            weakref.finalize(self, os.close, self._descriptor)
        return self._descriptor


def read_text(path: Path, name: str) -> str | None:
    """What a text file in a folder or archive says, by its name below it; None where there is no such file.

    Raises:
        DataError: it is there and cannot be read.
    """
    try:
        if path.is_dir():
            return read_within(path / name, _MOST_TEXT).decode("utf-8-sig") if (path / name).is_file() else None
        require_file(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                inner = next((info for info in packed.infolist() if below_archive(info.filename) == name), None)
                if inner is None:
                    return None
                with packed.open(inner) as text:
                    return _within(text, name).decode("utf-8-sig")
        with os.fdopen(_open_descriptor(path), "rb") as tar:
            member = next((info for info in TarHeaders(tar) if below_archive(info.name) == name and info.isreg()), None)
            if member is None:
                return None
            tar.seek(member.offset_data)
            return _within(tar, name, member.size).decode("utf-8-sig")
    except (
        OSError,
        ValueError,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        RuntimeError,
        tarfile.TarError,
        zipfile.BadZipFile,
    ) as error:
        raise DataError(f"cannot read {name} in {path}: {error}; mend it") from error


def _within(file: IO[bytes], name: str, size: int = _MOST_TEXT + 1) -> bytes:
    """At most so many bytes of a text, and no more than a text has."""
    content = file.read(min(size, _MOST_TEXT + 1))
    if len(content) > _MOST_TEXT:
        raise ValueError(f"it has more than {_MOST_TEXT:,} bytes")
    return content


def _open_descriptor(path: Path) -> int:
    with open_file(path) as file:
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


def _members(file: BinaryIO, path: Path) -> tuple[list[_Member], dict[str, int], bool, tuple[str, ...]]:
    """The images of an archive, sorted by name, how many of its visible files are none, by suffix, whether labels stand
    beside the images, as in WebDataset's shards, and what is to be said of it.
    """
    file.seek(0)
    if file.read(4) in _ZIP_STARTS:  # zipfile.is_zipfile would also take a tar that ends with a zip for one
        found = _zip_members(file, path)
        notes = _in_front(found, path)
    else:
        headers = TarHeaders(file)
        try:
            found = _tar_members(headers)
        except tarfile.ReadError as error:
            if file.seek(0) == 0 and tarfile.is_tarfile(file):
                raise
            message = f"{path} is neither a folder nor an archive; give {KINDS}"
            raise DataError(message) from error
        notes = headers.notes(str(path))
    # Of two with one name the later counts, as it does for tar.
    visible = {member.name: member for member in found if not is_hidden(member.name)}
    images = sorted((m for m in visible.values() if is_image(m.name)), key=lambda m: m.name)
    return images, by_suffix(visible), _are_labelled(images, visible), tuple(notes)


def _are_labelled(images: list[_Member], names: Iterable[str]) -> bool:
    """Whether there is a .cls, or as many images as not have a .json of their own name."""
    suffixes = {name: posixpath.splitext(name) for name in names}
    if any(suffix.lower() == ".cls" for _, suffix in suffixes.values()):
        return True
    tables = {stem for stem, suffix in suffixes.values() if suffix.lower() == ".json"}
    return bool(tables) and 2 * sum(suffixes[image.name][0] in tables for image in images) >= len(images) > 0


def below_archive(name: str) -> str:
    """A member's name as a folder would have it: without ./ and doubled slashes, which tar keeps as they were typed."""
    if not name.startswith("/") and "//" not in name and "./" not in name:
        return name
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _tar_members(headers: TarHeaders) -> list[_Member]:
    members, links = [], dict[str, str]()
    by_name: dict[str, tarfile.TarInfo] = {}
    for info in headers:
        if info.issym():  # to a member that may come later
            links[info.name] = posixpath.normpath(posixpath.join(posixpath.dirname(info.name), info.linkname))
            continue
        # tar stores the second name of a hard-linked file as a link to the first.
        source = by_name.get(info.linkname) if info.islnk() else info
        if source is None or not source.isreg():
            continue
        by_name[info.name] = source
        members.append(_Member(below_archive(info.name), source.offset_data, source.size, source.size))
    return members + (_linked(links, by_name) if links else [])


def _linked(links: dict[str, str], by_name: dict[str, tarfile.TarInfo]) -> list[_Member]:
    """What symbolic links lead to in the same archive, as in a folder; an empty file where that is nothing, to be named
    with the others that cannot be read.
    """
    files = {posixpath.normpath(name): info for name, info in by_name.items()}
    nexts = {posixpath.normpath(name): target for name, target in links.items()}
    members = []
    for name, target in links.items():
        for _ in range(_MOST_LINKS):
            target = nexts.get(target, target)
        found = files.get(target)
        if found is not None or not _is_folder(target, files):
            members.append(
                _Member(below_archive(name), *((found.offset_data, found.size, found.size) if found else (0, 0, 0)))
            )
    return members


def _is_folder(name: str, files: Iterable[str]) -> bool:
    return any(known.startswith(f"{name}/") for known in files)


def _in_front(members: list[_Member], path: Path) -> list[str]:
    """What is to be said of a zip whose first file does not stand at its beginning. Of two that `cat` has joined the
    last one's directory is all that any program looks at."""
    first = min((member.offset for member in members), default=0)
    return [f"{path} has {first:,} bytes before its first file, which are not read"] if first else []


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
            # Some programs of Windows' write their own separator, which the format does not know.
            name = info.filename if "/" in info.filename else info.filename.replace("\\", "/")
            members.append(_Member(below_archive(name), *place, deflated, info.CRC))
    return members
