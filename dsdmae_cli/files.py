"""Reading files that somebody names, and writing files so that they are whole or as they were before, with an error
that says what to do. No torch here."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import secrets
import shlex
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dsdmae_cli.errors import AGAIN as AGAIN
from dsdmae_cli.errors import RESUME as RESUME
from dsdmae_cli.errors import SAME as SAME
from dsdmae_cli.errors import RunFailed, nearest

if sys.platform != "win32":
    import fcntl

# Where this process has looked for what others left; a folder of many files is listed once.
_swept: set[Path] = set()
_PARTIAL = re.compile(r"\..*\.[0-9a-f]{16}\.partial")
_HALF = re.compile("[\ud800-\udfff]")
_HEAD = 512
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head)\b", re.IGNORECASE)
_PATTERN = re.compile(r"[*?]|\[[^\]]+\]|\{[^{}]+\}")


@contextmanager
def explained(path: Path, advice: str = RESUME) -> Iterator[None]:
    """Turn the system's refusal to write `path` into RunFailed: no space, no permission, a file that is too large."""
    try:
        yield
    except OSError as error:
        raise RunFailed(f"cannot write {path}: {error.strerror or error}; {advice}") from error


@contextmanager
def aside(path: Path, advice: str = RESUME) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` when the block ends well, else it is removed.

    Raises:
        RunFailed: it cannot be written; `path` is as it was before.
    """
    with explained(path, advice):
        sweep(path.parent)
        partial = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.partial")
        held: list[int] = []
        try:  # from before it is there: a signal may come as soon as it is
            _make(partial, held)
            yield partial
            partial.replace(path)
            sync_directory(path.parent)
        finally:
            partial.unlink(missing_ok=True)
            for descriptor in held:
                os.close(descriptor)


def _make(partial: Path, held: list[int]) -> None:
    """An empty file of a name that nobody could foresee, made by us: in a folder of several people, a link that lies
    at its name would lead our writing elsewhere. While its descriptor is held, nobody sweeps it."""
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
    if sys.platform == "win32":  # which renames no file that is open
        os.close(descriptor)
        return
    held.append(descriptor)
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_partial(path: Path) -> bool:
    """Whether a file or folder is, by its name, what a process writes, or was writing when it was killed."""
    return path.name.startswith(".") and path.name.endswith(".partial")


def sweep(folder: Path) -> None:
    """Remove what processes that were killed have left in a folder: partial files that nobody holds."""
    if sys.platform == "win32" or folder in _swept:
        return
    _swept.add(folder)
    for path in filter(lambda path: _PARTIAL.fullmatch(path.name), folder.glob(".*.partial")):
        with suppress(OSError):
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)


@contextmanager
def folder_at_once(folder: Path, advice: str, *, replace: bool) -> Iterator[Path]:
    """A folder to write files to, which take their places in `folder` together when the block ends well; else none of
    them does, and a folder that was not there is not there. Nobody else writes there by this function meanwhile.

    Args:
        replace: files may be there.

    Raises:
        RunFailed: they cannot be written, or another process writes there.
    """
    new = not folder.exists()
    with explained(folder, advice):
        folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder), explained(folder, advice):
        if not replace and not all(map(is_partial, folder.iterdir())):
            raise RunFailed(f"{folder} is not empty any more: another process has written there; {advice}")
        for left in folder.glob(".*.partial"):
            shutil.rmtree(left, ignore_errors=True)  # of a process that was killed, since we are alone
        draft = folder / f".{secrets.token_hex(8)}.partial"
        try:
            draft.mkdir()
            yield draft
            for path in draft.iterdir():  # before the first of them takes its place
                if (folder / path.name).is_dir():
                    raise IsADirectoryError(errno.EISDIR, f"{path.name} is a folder there")
            for path in sorted(draft.iterdir()):
                path.replace(folder / path.name)
            sync_directory(folder)
        except RunFailed as error:
            error.args = (str(error).replace(str(draft), str(folder)),)
            raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            if new:
                with suppress(OSError):  # it holds what was written
                    folder.rmdir()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """A block in which no other process is in such a block with this folder; where it cannot be locked, any may be.

    Raises:
        RunFailed: another one is.
    """
    if sys.platform == "win32":  # which opens no folders
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunFailed(
                f"another process is writing {folder}; wait until it has ended, or choose another folder"
            ) from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


@contextmanager
def not_resumable(advice: str) -> Iterator[None]:
    """A block of a command that has no --resume: what advises it says `advice` instead. Where nothing else is said, the
    words of such a command are to start again (__main__.py)."""
    try:
        yield
    except RunFailed as error:
        error.args = (str(error).replace(RESUME, advice),)
        raise


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_bytes(path: Path, content: bytes, advice: str = RESUME) -> None:
    """Write a file, whole or not at all, so that it survives a crash of the machine.

    Raises:
        RunFailed: no space, no permission.
    """
    with aside(path, advice) as partial:
        write_synced(partial, content)


def sync_directory(folder: Path) -> None:
    """Wait until the disk knows of renamed files."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def typed(path: Path | str) -> str:
    """A path as a person types it into a shell, in words that say how to go on."""
    return shlex.quote(str(path))


def is_text(value: object) -> bool:
    """Whether what a value says is text everywhere: names of files may be bytes that are no UTF-8, which Python holds
    as halves of a pair (surrogates), and which TOML, Parquet, fonts and safetensors' paths do not take."""
    if isinstance(value, str | os.PathLike):
        return not _HALF.search(str(value))
    return all(map(is_text, value)) if isinstance(value, list | tuple) else True


# What is no file, by stat's kinds.
_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
# Where a shell hands over what it reads itself: `< FILE`, `<(COMMAND)`. Somebody writes there, or has.
_HANDED_OVER = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")


def require_file(path: Path | str, *, handed_over: bool = False) -> os.stat_result:
    """What the system says of a file; OSError where a path leads to a pipe, a socket or a device: whoever opens a named
    pipe waits until somebody writes into it, for ever if nobody does, and a device may have no end. Every file that a
    person may have named is held to this before anything opens it; what opens by itself (safetensors, zipfile, pyarrow)
    knows nothing of pipes.

    Args:
        handed_over: what the shell reads for the program is taken too, and /dev/null: for small texts, read once.
    """
    found = os.stat(path)  # noqa: PTH116  (of a name too)
    kind = _KINDS.get(stat.S_IFMT(found.st_mode))
    if kind is None or (handed_over and (str(path) == os.devnull or str(path).startswith(_HANDED_OVER))):
        return found
    raise OSError(errno.ENODEV, f"it is {kind}, no file", str(path))


def is_file(path: Path) -> bool:
    """Whether a name leads to a file; False too where the system will not say, of a name that is too long, or in a
    folder that may not be looked into: whoever opens it then says why."""
    try:
        return path.is_file()
    except OSError:
        return False


def require_folder(path: Path) -> None:
    """See that a folder is there, or can be made, and takes files; nothing is written.

    Raises:
        OSError: it does not, in the system's words.
    """
    at = path.absolute()
    while True:
        try:
            found = os.stat(at)  # noqa: PTH116  (the very name: Path.exists knows no link that leads nowhere)
            break
        except FileNotFoundError:
            if at.is_symlink():
                raise OSError(errno.ENOENT, "a link that leads nowhere", str(at)) from None
            at = at.parent
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(at))
    if not os.access(at, os.W_OK | os.X_OK):
        read_only = hasattr(os, "statvfs") and os.statvfs(at).f_flag & os.ST_RDONLY
        number = errno.EROFS if read_only else errno.EACCES
        raise OSError(number, os.strerror(number), str(at))


def stamp_of(path: Path) -> tuple[int, int]:
    """Size and time of change (ns) of a file.

    Raises:
        OSError: there is none (require_file).
    """
    found = require_file(path)
    return found.st_size, found.st_mtime_ns


def open_file(path: Path) -> io.BufferedReader:
    """A file that somebody named, opened for reading.

    Raises:
        OSError: it cannot be read, or is none (require_file).
    """
    require_file(path)
    return path.open("rb")


def read_within(path: Path, most: int = 256 * 2**20, *, handed_over: bool = False) -> bytes:
    """What a file holds, up to a size: a file may be as large as it likes and take no place on a disk.

    Args:
        most: bytes.
        handed_over: as of require_file.

    Raises:
        OSError: it cannot be read, is no file, or is larger.
    """
    require_file(path, handed_over=handed_over)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > most else file.read(size + 1)
        while size <= most and len(content) <= most and (more := file.read(2**20)):  # a pipe says no size
            content += more
    if max(size, len(content)) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    return content


def instead(source: Path | bytes | object) -> str:
    """What lies in a file's place, where it is known: what Git leaves of large files, and pages that say that a
    download failed. It follows a sentence that says what the file is not; nothing of any other file.
    """
    head = source[:_HEAD] if isinstance(source, bytes) else b""
    if isinstance(source, Path):
        with suppress(OSError), open_file(source) as file:
            head = file.read(_HEAD)
    if head.startswith(b"version https://git-lfs"):
        return "; it is what Git LFS leaves in a file's place: `git lfs pull` fetches the file itself"
    if _PAGE.match(head):
        return "; it is a web page, as a download that failed leaves one: fetch the file again"
    return ""


def parsed_json(text: str | bytes) -> Any:
    """What JSON from outside holds.

    Raises:
        ValueError: it is none, or nested too deep to be read.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def is_pattern(text: str) -> bool:
    """Whether a name stands for several files: a glob, or braces as in {0000..0127}."""
    return bool(_PATTERN.search(text))


def looks_like_path(text: str) -> bool:
    """Whether a name must be meant for a file or folder, whether it is there or not."""
    return text.startswith((".", "~", "/")) or (os.sep in text and ":" not in text.partition(os.sep)[0])


def beside(path: Path) -> str:
    """The "did you mean" of a path that is not there: what lies beside it under a name much like its own; nothing where
    it is there, or cannot be looked at."""
    try:
        if path.exists():
            return ""
        return nearest(path.name, sorted(entry.name for entry in path.parent.iterdir()))
    except OSError:
        return ""
