"""A packed folder: images made ready for training, end to end in shards, with all that is known of them. No torch here.

pack.py writes it. `packed.json` is written last, so that a folder that has it is whole; it names the shards with their
sizes and SHA-256, and `index.npz` says where in them each image lies, its name, label and split. Sizes are looked at
whenever the folder is opened; `verify` reads everything.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from pydantic import TypeAdapter, ValidationError

from dsdmae_cli.data.base import UnreadableImage
from dsdmae_cli.data.files import FileImages, Files, Names, range_of_some
from dsdmae_cli.data.kept_open import KeptOpen
from dsdmae_cli.data.values import Ranges, Reading
from dsdmae_cli.errors import DataError
from dsdmae_cli.files import parsed_json, read_within
from dsdmae_cli.settings.size import Size, as_size, height_width

MANIFEST, INDEX, JOURNAL = "packed.json", "index.npz", "unfinished.json"
FORMAT = 1
SPLITS = ("train", "test")
# Of mapped shards a process keeps so many, since each holds a file open.
_MOST_OPEN = 256
_AGAIN = "pack it again into another folder (dsdmae data pack)"


@dataclass(frozen=True)
class Shard:
    """A file of a packed folder, and what it was when it was packed."""

    file: str
    bytes: int
    images: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a packed folder says of itself.

    Attributes:
        made_by: program and version.
        source: the dataset's name and what was found there: account, notes, unreadable images.
        options: of the packing: size, format, quality.
        image_size: that the source's images have for a network, in pixels.
        channels, bands: that the network sees, and data.bands, unless somebody asks for others.
        range: data.range = auto for these.
        classes: names by label, or None.
        as_they_were: how many images are the files that they were.
        index: the index.
        shards: all of them, in order.
    """

    made_by: str
    source: dict[str, Any]
    options: dict[str, Any]
    image_size: Size
    channels: int
    bands: tuple[int, ...] | None
    range: Ranges | None
    classes: tuple[str, ...] | None
    as_they_were: int
    index: Shard
    shards: tuple[Shard, ...]

    def to_json(self) -> str:
        """As it is written."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"


def read_manifest(root: Path) -> Manifest:
    """What the folder says of itself.

    Raises:
        DataError: it is no packed folder, an unfinished one, of another version, or damaged.
    """
    path = root / MANIFEST
    try:
        said = parsed_json(read_within(path))
        if said.pop("format") != FORMAT:
            raise DataError(f"{path} is of a form that another version of dsdmae writes; {_AGAIN}")
        manifest: Manifest = TypeAdapter(Manifest).validate_python(said)
        if not isinstance(manifest.source.get("notes"), list):
            raise ValueError("its source has no notes")
        return replace(manifest, image_size=as_size(*height_width(manifest.image_size)))
    except FileNotFoundError as error:
        if (root / JOURNAL).exists():
            raise DataError(
                f"{root} is not packed to its end; give the same `dsdmae data pack` again to go on"
            ) from error
        raise DataError(f"{root} is no packed folder: it has no {MANIFEST}; `dsdmae data pack` makes one") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = error
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"  # type: ignore[assignment]
        raise DataError(f"{path} is damaged ({why}); {_AGAIN}") from error


@dataclass(frozen=True, eq=False)
class Index:
    """Where images lie: those of a shard one after the other, training images before the test images.

    Attributes:
        letters, starts: of their names.
        offsets, sizes: in bytes, within their shard.
        firsts: [shards + 1] the first image of each.
        labels: -1 = none.
        splits: number in SPLITS.
        kept: 1 = the file as it was.
    """

    letters: UInt8[np.ndarray, " letters"]
    starts: Int64[np.ndarray, " n_plus_1"]
    offsets: Int64[np.ndarray, " n"]
    sizes: Int64[np.ndarray, " n"]
    firsts: Int64[np.ndarray, " shards_plus_1"]
    labels: Int64[np.ndarray, " n"]
    splits: UInt8[np.ndarray, " n"]
    kept: UInt8[np.ndarray, " n"]

    def to_bytes(self) -> bytes:
        """As it is written."""
        stream = io.BytesIO()
        np.savez(stream, **vars(self))
        return stream.getvalue()


def read_index(root: Path, about: Shard) -> Index:
    """The index, which has to be the very one that was packed.

    Raises:
        DataError: it is missing or damaged.
    """
    path = root / about.file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); {_AGAIN}") from error
    if hashlib.sha256(content).hexdigest() != about.sha256:
        raise DataError(f"{path} is damaged: it is not what was packed; {_AGAIN}")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return Index(**{name: arrays[name] for name in Index.__dataclass_fields__})
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged ({error}); {_AGAIN}") from error


class PackedFiles(Files):
    """The images of a packed folder, as the files that they are.

    Args:
        root: the folder.

    Raises:
        DataError: a shard is missing or of another size; the manifest or the index is damaged.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest = read_manifest(root)
        for shard in self.manifest.shards:
            _check_size(root, shard)
        self.index = read_index(root, self.manifest.index)
        self.names = Names.of(self.index.letters.tobytes(), self.index.starts)
        self._open: KeptOpen[mmap.mmap] = KeptOpen(_MOST_OPEN)

    def full_name(self, index: int) -> str:
        return f"{self.root}!{self.names[index]}"

    def stamp(self, index: int) -> tuple[int, int]:
        # Which bytes these are is said by their shard's digest; a copy of the folder has the same.
        return int(self.index.sizes[index]), int(self.manifest.shards[self._shard(index)].sha256[:15], 16)

    def file_size(self, index: int) -> int:
        return int(self.index.sizes[index])

    def read(self, index: int) -> bytes:
        start = int(self.index.offsets[index])
        content = self._mapped(self._shard(index))[start : start + int(self.index.sizes[index])]
        if len(content) != self.index.sizes[index]:
            raise UnreadableImage(self.full_name(index), "it lies beyond the end of its shard")
        return content

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self.index.firsts, index, side="right")) - 1

    def _mapped(self, shard: int) -> mmap.mmap:
        return self._open.get(shard, self._map)

    def _map(self, shard: int) -> mmap.mmap:
        about = self.manifest.shards[shard]
        _check_size(self.root, about)  # what is mapped beyond its end would end the process
        with (self.root / about.file).open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _check_size(root: Path, shard: Shard) -> None:
    path = root / shard.file
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"shard {path} is missing or cannot be read ({error.strerror or error}); {_AGAIN}") from error
    if size != shard.bytes:
        raise DataError(f"shard {path} is damaged: it has {size} bytes, and {shard.bytes} were packed; {_AGAIN}")


def images(files: PackedFiles, split: str, how: Reading) -> FileImages:
    """A split as a dataset.

    Args:
        split: "train" (or "labelled", which is the same) or "test".
    """
    number = SPLITS.index("test" if split == "test" else "train")
    indices = np.flatnonzero(files.index.splits == number)
    classes = files.manifest.classes
    labels = None if classes is None else files.index.labels[indices]
    return FileImages(files, indices, labels, classes, tuple(files.manifest.source["notes"]), how)


def range_of(files: PackedFiles, how: Reading) -> Ranges | None:
    """data.range = auto: what it was for the source, or, of other bands or channels, by the pictures of many bits."""
    if (how.bands, how.channels) == (files.manifest.bands, files.manifest.channels):
        return files.manifest.range
    return range_of_some(FileImages(files, np.flatnonzero(files.index.kept), reading=how))


def verify(root: Path) -> tuple[int, int]:
    """Read all shards; how many there are, and their bytes.

    Raises:
        DataError: one is not what was packed.
    """
    files = PackedFiles(root)
    for shard in files.manifest.shards:
        path = root / shard.file
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"shard {path} cannot be read ({error.strerror or error}); {_AGAIN}") from error
        if found != shard.sha256:
            raise DataError(f"shard {path} is damaged: its bytes are not those that were packed; {_AGAIN}")
    return len(files.manifest.shards), sum(shard.bytes for shard in files.manifest.shards)
