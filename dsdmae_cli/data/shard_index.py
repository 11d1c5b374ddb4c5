"""Where each image of a set of tar shards lies, and its label: one pass over the headers, kept in the user's cache.

WebDataset's form: members of one key (the name up to the first dot after the last slash) belong together, as
000123.jpg, 000123.cls, 000123.json. shards.py reads the images. No torch here.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from dsdmae_cli.data.archives import below_archive
from dsdmae_cli.data.files import is_image, name_bytes
from dsdmae_cli.data.tar_headers import TarHeaders
from dsdmae_cli.data.walk import is_hidden
from dsdmae_cli.errors import DataError, RunFailed
from dsdmae_cli.files import open_file, parsed_json, stamp_of, write_bytes

_FORMAT = 2
_LABEL_KEYS = ("cls", "label", "class", "class_id", "class_name", "category", "target")
_MOST_LABEL_BYTES = 1 << 16  # of a .cls or .json; what is larger is no label
_SHOWN = 3
_ARRAYS, _SAID = ("starts", "offsets", "sizes", "firsts", "labels"), ("words", "facts", "repeated")
_FACTS = ("doubled", "cut", "joined", "beyond")
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass
class ShardIndex:
    """The images of one shard, in the order in which they lie.

    Attributes:
        names: of their members.
        offsets, sizes: [n] of their bytes in the shard.
        labels: what .cls or .json says of each; "" = nothing.
        others: members that are neither images nor labels, by suffix.
        doubled: images of a key that has one already, which are left out.
        cut: the end mark of a tar is missing.
        joined: tars that stand behind the first.
        beyond: bytes behind the end that are no tar.
    """

    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    doubled: int = 0
    cut: bool = False
    joined: int = 0
    beyond: int = 0


class Index(NamedTuple):
    """The images of all shards, one after the other.

    Attributes:
        letters: all names in one buffer; starts: [n + 1] where each begins.
        offsets, sizes: [n] of their bytes.
        firsts: [shards + 1] number of each shard's first image.
        labels: [n] numbers of `words`, -1 = none.
        words: what labels say.
        facts: of each shard: "others", "doubled", "cut", "joined", "beyond".
        repeated: images whose name another shard of the same folder has too.
    """

    letters: bytes
    starts: Int64[np.ndarray, " n_plus_1"]
    offsets: Int64[np.ndarray, " n"]
    sizes: Int64[np.ndarray, " n"]
    firsts: Int64[np.ndarray, " shards_plus_1"]
    labels: Int64[np.ndarray, " n"]
    words: tuple[str, ...]
    facts: tuple[dict[str, Any], ...]
    repeated: int


def index_of(shards: Sequence[Path]) -> tuple[Index, tuple[str, ...]]:
    """The index of shards, from the cache where none of them has changed since, and what is to be said of that.

    Raises:
        DataError: shards that are torn, compressed or no tar; all of the first few are named.
    """
    stamps = [[str(path), *stamp_of(path)] for path in shards]
    kept = cache_folder() / f"{hashlib.sha256(repr([str(path) for path in shards]).encode()).hexdigest()[:24]}.npz"
    found = _from_cache(kept, stamps)
    if found is not None:
        return found, ()
    parts, wrong = [], []
    for path in shards:
        try:
            parts.append(scan(path))
        except DataError as error:
            wrong.append(str(error))
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise DataError(f"{'; '.join(wrong[:_SHOWN])}{more}; fetch or make these again, or name the others by a glob")
    made = _merged(parts, [path.parent for path in shards])
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(kept, _packed(made, stamps))
    except (OSError, RunFailed) as error:
        return made, (f"the index of the shards could not be kept and is made anew each time ({error})",)
    return made, ()


def cache_folder() -> Path:
    """Where indices are kept; all of them can be deleted."""
    from platformdirs import user_cache_path

    return user_cache_path("dsdmae") / "shards"


# ------------------------------------------------------------------------------------------------- one shard


def scan(path: Path) -> ShardIndex:
    """One pass over a shard's headers; of its contents only labels are read.

    Raises:
        DataError: it is torn, compressed, or no tar.
    """
    with open_file(path) as file:
        start = file.read(8)
        packed = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
        if packed is not None:
            raise DataError(f"shard {path} is compressed by {packed}, and read in place are plain tars; unpack it")
        file.seek(0)
        try:
            return _scan(file)
        except (tarfile.TarError, EOFError, ValueError) as error:
            reason = "is no tar" if isinstance(error, tarfile.ReadError) and not _begins_as_tar(file) else "is torn"
            raise DataError(f"shard {path} {reason} ({error})") from error


def _scan(file: io.BufferedReader) -> ShardIndex:
    found = ShardIndex()
    images: dict[str, list[tuple[str, int, int]]] = {}
    labels: dict[str, str] = {}
    headers = TarHeaders(file)
    for info in headers:
        name = below_archive(info.name)
        if not info.isreg() or is_hidden(name):
            continue
        key, suffix = split_key(name)
        if is_image(name):
            images.setdefault(key, []).append((name, info.offset_data, info.size))
        elif suffix == "cls" or (suffix == "json" and key not in labels):
            label = _label(file, info, suffix)
            if label:
                labels[key] = label
            else:
                found.others[f".{suffix}"] += 1
        else:
            found.others[os.path.splitext(name)[1].lower()] += 1  # noqa: PTH122
    found.cut, found.joined, found.beyond = headers.cut, headers.number - 1, headers.beyond
    for key, of_key in images.items():
        # 7.jpg is the image of key 7 and 7.mask.png something beside it; where no image is that plain, all are images.
        plain = [image for image in of_key if split_key(image[0])[1].count(".") == 0]
        taken = plain[:1] or of_key
        found.doubled += len(plain[1:])
        if plain and len(of_key) > len(plain):
            found.others[".*" + os.path.splitext(of_key[0][0])[1].lower()] += len(of_key) - len(plain)  # noqa: PTH122
        for name, offset, size in taken:
            found.names.append(name)
            found.offsets.append(offset)
            found.sizes.append(size)
            found.labels.append(labels.get(key, ""))
    return found


def split_key(name: str) -> tuple[str, str]:
    """A member's key and what follows the first dot of its last part, in small letters: ("a/7", "mask.png")."""
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def _label(file: io.BufferedReader, info: tarfile.TarInfo, suffix: str) -> str:
    if info.size > _MOST_LABEL_BYTES:
        return ""
    here = file.tell()
    file.seek(info.offset_data)
    text = file.read(info.size).decode("utf-8", "replace").strip()
    file.seek(here)
    if suffix == "cls":
        return text
    try:
        table = parsed_json(text)
    except ValueError:
        return ""
    if not isinstance(table, dict):
        return str(table) if isinstance(table, int | str) else ""
    value = next((table[key] for key in _LABEL_KEYS if isinstance(table.get(key), int | str)), "")
    return str(value).strip()


def _begins_as_tar(file: io.BufferedReader) -> bool:
    file.seek(257)
    return file.read(5) == b"ustar"


# ------------------------------------------------------------------------------------------------- all of them


def _merged(parts: Sequence[ShardIndex], folders: Sequence[Path]) -> Index:
    encoded = [[name_bytes(name) for name in part.names] for part in parts]
    words: dict[str, int] = {}
    labels = [words.setdefault(text, len(words)) if text else -1 for part in parts for text in part.labels]
    lengths = [len(name) for names in encoded for name in names]
    different = {hash((folder, name)) for folder, names in zip(folders, encoded, strict=True) for name in names}
    return Index(
        b"".join(b"".join(names) for names in encoded),
        np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        np.concatenate([np.array(part.offsets, dtype=np.int64) for part in parts]),
        np.concatenate([np.array(part.sizes, dtype=np.int64) for part in parts]),
        np.cumsum([0, *(len(part.names) for part in parts)], dtype=np.int64),
        np.array(labels, dtype=np.int64),
        tuple(words),
        tuple({"others": dict(part.others), **{name: getattr(part, name) for name in _FACTS}} for part in parts),
        len(lengths) - len(different),
    )


def _packed(index: Index, stamps: Sequence[Sequence[Any]]) -> bytes:
    about = json.dumps({"format": _FORMAT, "stamps": stamps, **{name: getattr(index, name) for name in _SAID}})
    content = io.BytesIO()
    np.savez(
        content,
        about=np.frombuffer(about.encode(), np.uint8),
        letters=np.frombuffer(index.letters, np.uint8),
        **{name: getattr(index, name) for name in _ARRAYS},
    )
    return content.getvalue()


def _from_cache(path: Path, stamps: Sequence[Sequence[Any]]) -> Index | None:
    """What was kept, if it is whole and of these shards as they are now."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            about = parsed_json(kept["about"].tobytes())
            if (about["format"], about["stamps"]) != (_FORMAT, [list(stamp) for stamp in stamps]):
                return None
            arrays = {name: kept[name] for name in _ARRAYS}
            words, facts, repeated = (about[name] for name in _SAID)
            return Index(kept["letters"].tobytes(), **arrays, words=tuple(words), facts=tuple(facts), repeated=repeated)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # none yet, or a damaged one, which is made again
        return None
