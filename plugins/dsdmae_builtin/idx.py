"""IDX files, the form of MNIST and of what came after it (Fashion-MNIST, KMNIST, EMNIST). No torch here.

A folder holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
`t10k-labels-idx1-ubyte`, each also as .gz. The form (Y. LeCun, yann.lecun.com/exdb/mnist): two zero bytes, the type
(8 = unsigned bytes), the number of dimensions, each dimension as four bytes with the highest first, and the values row
by row.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dsdmae_cli.data.archives import read_text
from dsdmae_cli.data.arrays import ArrayImages
from dsdmae_cli.data.once import shared
from dsdmae_cli.errors import DataError
from dsdmae_cli.plugins import argument_of
from dsdmae_cli.settings.models import DataSettings

_UNSIGNED_BYTES = 8
_CLASSES = "classes.txt"
MOST_BYTES = 4 * 2**30  # of a file, which is unpacked in memory
_PREFIX = {"train": "train", "labelled": "train", "test": "t10k"}


def build(settings: DataSettings, split: str) -> ArrayImages:
    """The images of a folder of IDX files, grey ones in three equal channels; split "train", "labelled" or "test".

    Raises:
        DataError: a file is missing, damaged or of another form, or images and labels differ in number.
    """
    return shared(_read, _folder(settings), _PREFIX[split])


def native_size(settings: DataSettings) -> int:
    """The longer side of the images in pixels."""
    _, (_, rows, columns) = _open(_folder(settings), "train-images-idx3-ubyte", 3)
    return max(rows, columns)


def _folder(settings: DataSettings) -> Path:
    return Path(argument_of(settings.dataset)).expanduser().absolute()


def _read(folder: Path, prefix: str) -> ArrayImages:
    grey = _values(folder, f"{prefix}-images-idx3-ubyte", 3)
    labels = _values(folder, f"{prefix}-labels-idx1-ubyte", 1).astype(np.int64)
    if len(grey) != len(labels):
        raise DataError(
            f"{folder} has {len(grey)} images and {len(labels)} labels in {prefix}-*; fetch both files anew"
        )
    # A view three channels deep: the values are in memory once.
    images = np.broadcast_to(grey[..., None], (*grey.shape, 3))
    # Of both splits, so that a label means the same in each.
    highest = max(int(_values(folder, f"{part}-labels-idx1-ubyte", 1).max()) for part in set(_PREFIX.values()))
    return ArrayImages(images, labels, _classes(folder, highest), f"{folder.name} {prefix}")


def _classes(folder: Path, highest: int) -> tuple[str, ...]:
    """The lines of classes.txt, or the labels themselves."""
    text = read_text(folder, _CLASSES)
    if text is None:
        return tuple(str(label) for label in range(highest + 1))
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(names) <= highest:
        raise DataError(
            f"{folder / _CLASSES} names {len(names)} classes and labels go up to {highest}; a line is a class, from 0"
        )
    return names


def _values(folder: Path, name: str, dimensions: int) -> UInt8[np.ndarray, ...]:
    values, shape = _open(folder, name, dimensions)
    if len(values) != math.prod(shape):
        most = len(values) > math.prod(shape)
        has = f"more than {math.prod(shape)}" if most else f"{len(values)}"
        raise DataError(f"{folder / name} has {has} values and its head says {math.prod(shape)}; fetch it anew")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _open(folder: Path, name: str, dimensions: int) -> tuple[bytes, tuple[int, ...]]:
    """A file's values, unpacked, as many as its head promises or one more, and the sizes that its head names."""
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise DataError(f"idx: {folder} has neither {name} nor {name}.gz; name the folder that holds the IDX files")
    length = 4 + 4 * dimensions
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(length)
            shape = _shape(path, head, dimensions)
            return file.read(math.prod(shape) + 1), shape
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"idx: cannot read {path}: {error}; fetch it anew") from error


def _shape(path: Path, head: bytes, dimensions: int) -> tuple[int, ...]:
    if head[:4] != bytes([0, 0, _UNSIGNED_BYTES, dimensions]) or len(head) < 4 + 4 * dimensions:
        raise DataError(
            f"idx: {path} is no IDX file of bytes with {dimensions} as its number of dimensions: it begins with"
            f" {head[:4].hex(' ') or 'nothing'}, expected 00 00 08 {dimensions:02x}"
        )
    shape = tuple(int(size) for size in np.frombuffer(head[4:], ">u4"))
    sizes = " x ".join(map(str, shape))
    if 0 in shape:
        raise DataError(f"idx: {path} is empty: its head says {sizes}")
    if math.prod(shape) > MOST_BYTES:
        raise DataError(
            f"idx: {path} says that it holds {sizes} values, more than the {MOST_BYTES // 2**30} GiB that are read into"
            " memory; fetch it anew, or take these images as files"
        )
    return shape
