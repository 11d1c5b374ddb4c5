"""CIFAR-10, CIFAR-100, STL-10 and ImageNet, on torchvision's dataset classes.

From torchvision come the addresses, checksums, file formats and the verification of every file before it is
read (a CIFAR file is a pickle: one whose MD5 differs is never loaded). Ours are errors of one line and the
unpacking, which is atomic and refuses members that could land outside the folder.
"""

from __future__ import annotations

import io
import lzma
import os
import pickle
import shutil
import socket
import sys
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError, URLError

import numpy as np

from dsdmae_builtin.datasets import Stl10Settings
from dsdmae_cli.data.arrays import ArrayImages
from dsdmae_cli.data.files import Directory, FileImages
from dsdmae_cli.data.once import shared
from dsdmae_cli.errors import DataError
from dsdmae_cli.settings.models import DataSettings

STALL_TIMEOUT_SECONDS = 60
_DAMAGE = (
    OSError, RuntimeError, ValueError, EOFError, HTTPException,
    tarfile.TarError, zlib.error, lzma.LZMAError, pickle.UnpicklingError,
)  # fmt: skip


def build_cifar10(settings: DataSettings, split: str) -> ArrayImages:
    """CIFAR-10; split "train" (or "labelled", which is the same here) or "test"."""
    from torchvision.datasets import CIFAR10

    return _cifar("cifar10", CIFAR10, settings, split)


def build_cifar100(settings: DataSettings, split: str) -> ArrayImages:
    """CIFAR-100 with its fine labels; split "train" (or "labelled", which is the same here) or "test"."""
    from torchvision.datasets import CIFAR100

    return _cifar("cifar100", CIFAR100, settings, split)


def build_stl10(settings: Stl10Settings, split: str) -> ArrayImages:
    """STL-10; split "train" (what stl10_split says; label -1 for the unlabelled), "labelled" or "test"."""
    from torchvision.datasets import STL10

    part = {"train": settings.stl10_split, "labelled": "train"}.get(split, split)
    found = _torchvision("stl10", STL10, settings, lambda root: STL10(root, split=part))
    images = found.data.transpose(0, 2, 3, 1)  # a view: a copy would be another 2.8 GB
    return ArrayImages(images, found.labels.astype(np.int64), tuple(found.classes), f"stl10 {part}")


def build_imagenet(settings: DataSettings, split: str) -> FileImages:
    """ImageNet-1k; split "train" (or "labelled", which is the same here) or "test" (its validation images).

    The folder holds train/, val/ and meta.bin as torchvision prepares them, or the official archives.
    """
    root = _root(settings) if settings.data_dir else _root(settings) / "imagenet"
    return shared(_imagenet, root, "val" if split == "test" else "train")


def _imagenet(root: Path, part: str) -> FileImages:
    from torchvision.datasets import ImageNet

    with _one_line("imagenet", root):
        _prepare_imagenet(root, part)
        found = ImageNet(root, split=part)
    folder = root / part
    names = [path.removeprefix(f"{folder}{os.sep}") for path, _ in found.samples]
    classes = tuple(", ".join(synonyms) for synonyms in found.classes)
    labels = np.array(found.targets, dtype=np.int64)
    return FileImages(Directory(folder, names), np.arange(len(names), dtype=np.int64), labels, classes)


def _cifar(name: str, kind: Any, settings: DataSettings, split: str) -> ArrayImages:
    def make(root: Path) -> Any:
        with warnings.catch_warnings():
            # NumPy 2.4 and later find the way in which Python 2 pickled dtypes worth a warning.
            warnings.filterwarnings("ignore", message=r"dtype\(\): align")
            return kind(root, train=split != "test")

    found = _torchvision(name, kind, settings, make)
    labels = np.array(found.targets, dtype=np.int64)
    return ArrayImages(np.ascontiguousarray(found.data), labels, tuple(found.classes), f"{name} {split}")


def _root(settings: DataSettings) -> Path:
    from platformdirs import user_cache_path

    return (settings.data_dir or user_cache_path("dsdmae") / "datasets").expanduser().absolute()


# ------------------------------------------------------------------------------ downloaded: CIFAR and STL-10


def _torchvision(name: str, kind: Any, settings: DataSettings, make: Callable[[Path], Any]) -> Any:
    """What `make` gives once verified files are in place: those there, else unpacked, else downloaded."""
    from torchvision.datasets.utils import check_integrity

    root = _root(settings)
    with _one_line(name, root):
        try:
            return make(root)
        except RuntimeError:
            pass  # torchvision's word for missing or damaged files
        archive = root / kind.filename
        if not check_integrity(archive, kind.tgz_md5):
            if not settings.download:
                raise DataError(_absent(name, kind, root))
            _download(name, kind, root)
        _unpack_files(archive, root, kind.base_folder)
        try:
            return make(root)
        except RuntimeError as error:
            raise DataError(
                f"{name}: the files in {root / kind.base_folder} do not have the official checksums although"
                f" {archive.name} has; delete both and run again"
            ) from error


def _absent(name: str, kind: Any, root: Path) -> str:
    there = (root / kind.base_folder).exists() or (root / kind.filename).exists()
    state = "is damaged or incomplete" if there else "was not found"
    return (
        f"{name} {state} in {root} and data.download is false; allow the download, put {kind.filename} from"
        f" {kind.url} there, or name another folder with --data-dir"
    )


def _download(name: str, kind: Any, root: Path) -> None:
    from torchvision.datasets.utils import download_url

    root.mkdir(parents=True, exist_ok=True)
    remedy = f"fetch it in another way, put {kind.filename} into {root} and run again"
    # It gets its name only when it is whole: neither an interruption nor a second process leaves half a file.
    with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as folder:
        try:
            with _silent_stdout(), _no_endless_wait():
                download_url(kind.url, folder, filename=kind.filename, md5=kind.tgz_md5)
        except (URLError, TimeoutError, ConnectionError, HTTPException) as error:
            reason = _network_reason(error)
            raise DataError(f"{name} could not be downloaded from {kind.url}: {reason}; {remedy}") from error
        except RuntimeError as error:
            raise DataError(f"{name}: what {kind.url} sent is not the official file; {remedy}") from error
        (Path(folder) / kind.filename).replace(root / kind.filename)


def _network_reason(error: Exception) -> object:
    if isinstance(error, HTTPError):
        error.close()  # it is the server's answer too, with its connection
        return error
    return error.reason if isinstance(error, URLError) else error


@contextmanager
def _silent_stdout() -> Iterator[None]:
    # stdout is for results; the progress bar goes to stderr, and only where a person can see it move.
    with redirect_stdout(sys.stderr), redirect_stderr(sys.stderr if sys.stderr.isatty() else io.StringIO()):
        yield


@contextmanager
def _no_endless_wait() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _unpack_files(archive: Path, root: Path, base_folder: str) -> None:
    """Unpack aside and then put each file of `base_folder` into its place."""
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=root) as folder:
        with tarfile.open(archive) as packed:
            _unpack(packed, Path(folder))
        (root / base_folder).mkdir(exist_ok=True)
        for file in (Path(folder) / base_folder).iterdir():
            file.replace(root / base_folder / file.name)


# -------------------------------------------------------------------------------------------------- ImageNet


def _prepare_imagenet(root: Path, part: str) -> None:
    from torchvision.datasets.imagenet import META_FILE, parse_devkit_archive

    if not (root / META_FILE).is_file():
        devkit = _official_archive(root, "devkit")
        with tarfile.open(devkit) as packed:
            for member in packed:
                _require_plain(member)
        parse_devkit_archive(root)
    if not (root / part).is_dir():
        archive = _official_archive(root, part)
        with tempfile.TemporaryDirectory(prefix=".unpack-", dir=root) as folder:
            made = Path(folder) / part
            made.mkdir()
            (_unpack_train if part == "train" else _unpack_val)(archive, made)
            made.replace(root / part)


def _official_archive(root: Path, part: str) -> Path:
    from torchvision.datasets.imagenet import ARCHIVE_META
    from torchvision.datasets.utils import check_md5

    filename, md5 = ARCHIVE_META[part]
    archive = root / filename
    if not archive.is_file():
        raise DataError(
            f"imagenet: {root} holds neither {filename} nor what torchvision makes of it; fetch the archives"
            " of ILSVRC 2012 (train, val, devkit) from https://image-net.org and name their folder with"
            " --data-dir, or use folder:PATH for a folder of train/ and val/ without the devkit"
        )
    if not check_md5(archive, md5):
        raise DataError(f"imagenet: {archive} is damaged (its MD5 is not {md5}); fetch it again")
    return archive


def _unpack_train(archive: Path, folder: Path) -> None:
    with tarfile.open(archive, "r:") as outer:
        for member in outer:
            _require_plain(member)
            content = outer.extractfile(member)
            if content is None:
                continue
            with tarfile.open(fileobj=content, mode="r:") as inner:
                _unpack(inner, folder / PurePosixPath(member.name).stem)


def _unpack_val(archive: Path, folder: Path) -> None:
    from torchvision.datasets.imagenet import load_meta_file

    with tarfile.open(archive, "r:") as packed:
        _unpack(packed, folder)
    images = sorted(folder.iterdir())
    _, wnids = load_meta_file(folder.parent.parent)
    for image, wnid in zip(images, wnids, strict=True):
        (folder / wnid).mkdir(exist_ok=True)
        image.replace(folder / wnid / image.name)


# ---------------------------------------------------------------------------------------------------- common


def _unpack(packed: tarfile.TarFile, folder: Path) -> None:
    """Take names and bytes alone from an archive.

    tarfile's own "data" filter is missing from Python 3.11.0 to 3.11.3, and allows links.
    """
    for member in packed:
        _require_plain(member)
        target = folder / member.name
        content = packed.extractfile(member)
        if content is None:
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with content, target.open("wb") as file:
            shutil.copyfileobj(content, file)


def _require_plain(member: tarfile.TarInfo) -> None:
    """The official archives hold files and folders that stay inside, never links."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or not (member.isreg() or member.isdir()):
        raise DataError(f"archive member {member.name!r} is not a plain file inside the archive; nothing was unpacked")


@contextmanager
def _one_line(name: str, root: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{name} cannot be prepared in {root}: {reason}; mend that or name another folder with --data-dir"
        ) from error
