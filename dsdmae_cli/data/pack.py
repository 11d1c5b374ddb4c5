"""Make a packed folder of a dataset: each image decoded once, made smaller, and written end to end into shards.

packed.py says what the folder is, and reads it. A shard is written aside and takes its name when it is whole; beside
it lies its part of the index, and `unfinished.json` says what is being packed, so that the same command goes on after
the last whole shard. Only at the end there is a `packed.json`. No torch here.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import UInt8
from PIL import Image

from dsdmae_cli.data.base import ImageDataset, UnreadableImage
from dsdmae_cli.data.cores import usable_cores
from dsdmae_cli.data.files import name_bytes
from dsdmae_cli.data.packed import FORMAT, INDEX, JOURNAL, MANIFEST, SPLITS, Index, Manifest, Shard, read_manifest
from dsdmae_cli.data.plain import Odd, plain
from dsdmae_cli.errors import DataError
from dsdmae_cli.files import aside, explained, is_partial, parsed_json, read_within, sync_directory, write_bytes

SHARD_BYTES = 256 * 2**20
_GO_ON = "whole shards are kept. Make room, then give the same command again to go on"


@dataclass(frozen=True)
class Options:
    """How images are packed.

    Attributes:
        size: the shorter side in pixels; smaller images stay as they are.
        format: "jpeg", or "array": pixels as they are, each image a binary PPM.
        quality: of JPEG, 1 to 100.
    """

    size: int = 256
    format: Literal["jpeg", "array"] = "jpeg"
    quality: int = 90


class Record(NamedTuple):
    """An image as it is written.

    Attributes:
        kept: it is the file that it was.
    """

    content: bytes
    kept: bool


@dataclass
class _Part:
    """What is known of a shard: a row an image, and how far in the source it reaches."""

    shard: Shard
    rows: list[tuple[str, int, int, int, int, int]]  # name, offset, size, label, split, kept
    reached: int
    unreadable: dict[str, str]

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def read(cls, path: Path) -> _Part:
        said = parsed_json(read_within(path))
        return cls(Shard(**said["shard"]), [tuple(row) for row in said["rows"]], said["reached"], said["unreadable"])


def pack(
    splits: Mapping[str, ImageDataset],
    out: Path,
    options: Options,
    manifest: Manifest,
    *,
    rewritten: bool,
    unreadable: Callable[[str, str], None],
    advance: Callable[[int, int], None],
    shard_bytes: int = SHARD_BYTES,
) -> Manifest:
    """Write the folder, or the rest of it.

    Args:
        splits: "train" and "test".
        out: a new or empty folder, or one that was not packed to its end.
        manifest: what is known before: all but index and shards.
        rewritten: images of 8 bits may be written anew as RGB; else every file is kept as it is.
        unreadable: told the name of an image that cannot be read, and why; it raises where they are too many.
        advance: told how many images are done, of how many.

    Raises:
        DataError: the folder holds something else; an image can be held by no form; a shard of before is damaged;
            another process packs into the folder.
        RunFailed: it cannot be written.
    """
    with _alone(out):
        return _packed(splits, out, options, manifest, rewritten, unreadable, advance, shard_bytes)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    lock = out.absolute().parent / f".{out.name}.packing"
    held = FileLock(lock, timeout=0)
    with explained(lock, "choose another --out"):
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.acquire()
        except Timeout as error:  # an OSError, too
            taken = f"{out} is being packed by another process; wait for it, or choose another --out"
            raise DataError(taken) from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # before it is let go: nobody can have taken it yet
        held.release()


def _packed(
    splits: Mapping[str, ImageDataset], out: Path, options: Options, manifest: Manifest, rewritten: bool,
    unreadable: Callable[[str, str], None], advance: Callable[[int, int], None], shard_bytes: int,
) -> Manifest:  # fmt: skip
    _begin(splits, out, options, manifest)
    if (out / MANIFEST).exists():
        return _cleared(out, read_manifest(out))
    places = [(number, index) for number, name in enumerate(SPLITS) for index in range(len(splits[name]))]
    parts = list(parts_of_before(out))
    for part in parts:
        for name, reason in part.unreadable.items():
            unreadable(name, reason)
    reached, common = parts[-1].reached if parts else 0, _common(splits)

    def tell(done: int) -> None:
        advance(done, len(places))

    tell(reached)
    while reached < len(places):
        path = out / f"{len(parts):05d}.shard"
        records = _records(splits, places[reached:], options, rewritten)
        part = _shard(path, records, splits, common, reached, shard_bytes, unreadable, tell)
        parts.append(part)
        reached = part.reached
        write_bytes(_part_path(path), part.to_bytes(), _GO_ON)
    return _finish(out, parts, manifest)


# ------------------------------------------------------------------------------------------------- one image


def record(dataset: ImageDataset, index: int, options: Options, rewritten: bool) -> Record:
    """An image as it is to be written.

    Raises:
        UnreadableImage: it cannot be decoded.
        DataError: it has more than 8 bits or other bands than RGB, and there is no file to keep.
    """
    form = dataset.form(index)
    if not rewritten or form.is_deep or not form.colors:
        if options.format == "array":
            raise DataError(
                f"{dataset.name(index)} is {form}, seen as {dataset.channels} channels, which an array of RGB in 8 bits"
                " cannot hold; leave out --format, and such files are kept as they are"
            )
        content = dataset.file_bytes(index)
        if content is None:
            raise DataError(f"{dataset.name(index)} is {form}, and there is no file of it to keep; it cannot be packed")
        dataset.load(index)  # what cannot be read is found now
        return Record(content, True)
    pixels = dataset.load(index)
    if options.format == "jpeg":
        content = _jpeg_as_it_is(dataset, index, options.size)
        if content is not None:
            return Record(content, True)
    image = Image.fromarray(smaller(pixels, options.size))
    stream = io.BytesIO()
    if options.format == "array":
        image.save(stream, format="PPM")
    else:
        # Grey of three equal channels is decoded to just that.
        (image.convert("L") if form.is_grey else image).save(stream, format="JPEG", quality=options.quality)
    return Record(stream.getvalue(), False)


def _jpeg_as_it_is(dataset: ImageDataset, index: int, size: int) -> bytes | None:
    """The JPEG itself where it is small enough and upright: to write it anew would only lose something."""
    content = dataset.file_bytes(index)
    found = None if content is None else plain(content)
    if content is None or found is None or not found.shrinks or min(found.width, found.height) > size:
        return None
    if getattr(found, "turn", 1) != 1:
        return None
    try:
        found.pixels()
    except Odd:
        return None
    return bytes(content)


def smaller(pixels: UInt8[np.ndarray, "h w c"], size: int) -> UInt8[np.ndarray, "h2 w2 *rgb"]:
    """RGB, or grey, with a shorter side of `size` pixels (bicubic, antialiased), where it is longer."""
    pixels = pixels if pixels.shape[2] > 1 else pixels[..., 0]
    height, width = pixels.shape[:2]
    short = min(height, width)
    if short <= size:
        return pixels
    sides = (max(1, round(width * size / short)), max(1, round(height * size / short)))
    return np.asarray(Image.fromarray(pixels).resize(sides, Image.Resampling.BICUBIC))


# ------------------------------------------------------------------------------------------------ many images

_Made = Record | UnreadableImage


def _records(
    splits: Mapping[str, ImageDataset], places: list[tuple[int, int]], options: Options, rewritten: bool
) -> Iterator[tuple[tuple[int, int], _Made]]:
    """Records in order, made by as many threads as there are cores, some ahead of the one that is wanted."""

    def one(place: tuple[int, int]) -> _Made:
        try:
            return record(splits[SPLITS[place[0]]], place[1], options, rewritten)
        except UnreadableImage as error:
            return error

    threads = usable_cores()
    with ThreadPoolExecutor(threads) as pool:
        rest = iter(places)
        waiting: list[tuple[tuple[int, int], Future[_Made]]] = [
            (place, pool.submit(one, place)) for place in islice(rest, 4 * threads)
        ]
        try:
            while waiting:
                place, made = waiting.pop(0)
                yield place, made.result()
                waiting += [(place, pool.submit(one, place)) for place in islice(rest, 1)]
        finally:
            pool.shutdown(cancel_futures=True)


def _shard(
    path: Path,
    records: Iterator[tuple[tuple[int, int], _Made]],
    splits: Mapping[str, ImageDataset],
    common: str,
    reached: int,
    most: int,
    unreadable: Callable[[str, str], None],
    advance: Callable[[int], None],
) -> _Part:
    """Write one shard, as many images as make it full."""
    rows: list[tuple[str, int, int, int, int, int]] = []
    bad: dict[str, str] = {}
    digest, offset = hashlib.sha256(), 0
    try:
        with aside(path, _GO_ON) as beside, beside.open("wb") as file:
            for (split, index), made in records:
                reached += 1
                dataset = splits[SPLITS[split]]
                if isinstance(made, UnreadableImage):
                    unreadable(made.name, made.reason)
                    bad[made.name] = made.reason
                else:
                    label = -1 if dataset.labels is None else int(dataset.labels[index])
                    name = dataset.name(index).removeprefix(common)
                    rows.append((name, offset, len(made.content), label, split, int(made.kept)))
                    file.write(made.content)
                    digest.update(made.content)
                    offset += len(made.content)
                advance(reached)
                if offset >= most:
                    break
            file.flush()
            os.fsync(file.fileno())
    finally:
        records.close()  # type: ignore[attr-defined]
    return _Part(Shard(path.name, offset, len(rows), digest.hexdigest()), rows, reached, bad)


def _common(splits: Mapping[str, ImageDataset]) -> str:
    """The folder or archive that all images are in, as their names begin: by the first and last of each split."""
    some = [s.name(i) for s in splits.values() if len(s) for i in (0, len(s) - 1)]
    archives = {name.partition("!")[0] for name in some if "!" in name}
    if len(archives) == 1 and all("!" in name for name in some):
        return f"{archives.pop()}!"
    folders = [os.path.dirname(name) for name in some]  # noqa: PTH120
    if not all(Path(folder).is_absolute() for folder in folders):
        return ""
    shared = os.path.commonpath(folders)
    return shared if shared.endswith(os.sep) else f"{shared}{os.sep}"


# ----------------------------------------------------------------------------------------- beginning and end


def _part_path(shard: Path) -> Path:
    return shard.with_suffix(".part")


def _begin(splits: Mapping[str, ImageDataset], out: Path, options: Options, manifest: Manifest) -> None:
    """Take the folder, or take it up again."""
    journal = out / JOURNAL
    if (out / MANIFEST).exists() and not journal.exists():
        raise DataError(f"{out} holds a packed dataset already; delete it, or choose another --out")
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; --out takes a folder, new or empty")
    said = {
        "format": FORMAT,
        "options": asdict(options),
        "classes": manifest.classes,
        "images": {name: [len(splits[name]), splits[name].identity()] for name in SPLITS},
    }
    plan = json.loads(json.dumps(said))
    try:
        found = list(out.iterdir()) if out.is_dir() else []
        torn = list(filter(is_partial, found))  # what a killed process was writing
        there = [path.name for path in found if path not in torn]
        before = parsed_json(read_within(journal)) if JOURNAL in there else None
    except (OSError, ValueError) as error:
        raise DataError(f"{out} cannot be looked at ({error}); choose another --out") from error
    if before is None and there:
        raise DataError(f"{out} is not empty, and holds no dataset that is being packed; choose another --out")
    if before is not None and before != plan:
        what = ", ".join(key for key in plan if before.get(key) != plan[key])
        raise DataError(
            f"{out} holds a part of another packing (other {what}); give that command again to end it, or delete the"
            " folder"
        )
    for path in torn:
        path.unlink(missing_ok=True)
    if before is None:
        with explained(out, "choose another --out"):
            out.mkdir(parents=True, exist_ok=True)
        write_bytes(journal, json.dumps(plan, indent=2).encode(), _GO_ON)


def parts_of_before(out: Path) -> Iterator[_Part]:
    """The parts of whole shards, as far as they follow each other; what lies beyond is written anew."""
    number = 0
    while (path := out / f"{number:05d}.part").exists():
        try:
            part = _Part.read(path)
            size = (out / part.shard.file).stat().st_size
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged ({error}); delete the folder and pack again") from error
        if size != part.shard.bytes:
            raise DataError(f"shard {out / part.shard.file} is damaged; delete the folder and pack again")
        yield part
        number += 1


def _finish(out: Path, parts: list[_Part], manifest: Manifest) -> Manifest:
    """Index and manifest; from then on the folder is a dataset."""
    # A shard may have ended up without images, where none of its could be read.
    rows = [row for part in parts for row in part.rows]
    names = [name_bytes(row[0]) for row in rows]
    columns = np.array([row[1:] for row in rows], dtype=np.int64).reshape(-1, 5).T
    index = Index(
        np.frombuffer(b"".join(names), np.uint8),
        np.cumsum([0, *map(len, names)], dtype=np.int64),
        columns[0],
        columns[1],
        np.cumsum([0, *(part.shard.images for part in parts)], dtype=np.int64),
        columns[2],
        columns[3].astype(np.uint8),
        columns[4].astype(np.uint8),
    )
    content = index.to_bytes()
    about = Shard(INDEX, len(content), len(rows), hashlib.sha256(content).hexdigest())
    bad: dict[str, Any] = {name: reason for part in parts for name, reason in part.unreadable.items()}
    done = replace(
        manifest,
        source={**manifest.source, "unreadable": bad},
        as_they_were=int(index.kept.sum()),
        index=about,
        shards=tuple(part.shard for part in parts),
    )
    write_bytes(out / INDEX, content, _GO_ON)
    write_bytes(out / MANIFEST, done.to_json().encode(), _GO_ON)
    return _cleared(out, done)


def _cleared(out: Path, done: Manifest) -> Manifest:
    """Without what only an unfinished one needs; the journal is the last of it."""
    for path in (*(_part_path(out / shard.file) for shard in done.shards), out / JOURNAL):
        path.unlink(missing_ok=True)
    sync_directory(out)
    return done
