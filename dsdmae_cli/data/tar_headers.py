"""The headers of a tar, to its very end. No torch here.

Python's tarfile ends where tar does: at the first end mark, and, saying nothing, at a header that it cannot read.
Behind either there may be as many images again.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO

BLOCK = 512
_MOST_HEADER = 2**20  # bytes that a header may have beside it: long names
_MOST_PADDING = 2**24  # bytes of zeros behind an end mark; tar pads to a record, of 10 KB unless asked for more


class TarHeaders:
    """The members of a tar that is not compressed, and of those that `cat` has put behind it; their contents are read
    from the file itself.

    Attributes (when all has been gone through):
        number: of tars, one behind the other.
        cut: the last one's end mark is missing.
        beyond: bytes behind it that are no tar and no padding.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.number = 0
        self.cut = False
        self.beyond = 0

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        """
        Raises:
            tarfile.TarError, ValueError: it is none, or damaged; here or on the way.
        """
        start: int | None = 0
        while start is not None:
            self._file.seek(start)
            with tarfile.open(fileobj=_Headers(self._file), mode="r:") as archive:  # type: ignore[call-overload]
                while (info := archive.next()) is not None:
                    archive.members = []  # it would keep a kilobyte of each
                    yield info
                end = archive.offset
            self.number += 1
            self._file.seek(end)
            mark = self._file.read(BLOCK)
            if mark.strip(b"\0") or 0 < len(mark) < BLOCK:
                raise tarfile.ReadError(f"no header can be read at byte {end}")
            self.cut = not mark
            start = self._next(end)

    def notes(self, name: str) -> list[str]:
        """What is to be said of a tar, a sentence each."""
        notes = []
        if self.number > 1:
            notes.append(f"{name} is {self.number} tars, one behind the other; all are read")
        if self.beyond:
            notes.append(f"{name} goes on for {self.beyond:,} bytes behind its end, which are no tar and not read")
        return notes

    def _next(self, end: int) -> int | None:
        """Where the next tar begins behind an end mark; None where there is none."""
        self._file.seek(end)
        zeros = 0
        while (some := self._file.read(2**20)) and zeros < _MOST_PADDING:
            if rest := some.lstrip(b"\0"):
                zeros += len(some) - len(rest)
                break
            zeros += len(some)
        else:
            return None
        start = end + zeros // BLOCK * BLOCK
        self._file.seek(start)
        try:
            tarfile.TarInfo.frombuf(self._file.read(BLOCK), tarfile.ENCODING, "surrogateescape")
        except tarfile.TarError:
            self.beyond = self._file.seek(0, 2) - end - zeros
            return None
        return start


class _Headers:
    """A tar to read headers of. tarfile takes what stands beside one, a long name or more, into memory whole, however
    long it claims to be."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int) -> bytes:
        if size > _MOST_HEADER:
            raise ValueError(f"a header of {size:,} bytes")
        return self._read(size)
