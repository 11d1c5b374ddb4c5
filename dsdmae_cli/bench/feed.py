"""What a photograph costs a core, from its JPEG file to a uint8 crop of the network's size: this program and its peers.

All cut the same boxes (of RandomResizedCrop, a fifth to all of the area), bicubic and antialiased, from files in the
system's cache, on one thread; contenders come in a new random order for each photograph, and of each photograph the
least of the rounds counts. Seconds are of the processor, so that a core that others use too gives the same. "scaled"
has the JPEG decoded at 1/2, 1/4 or 1/8 of its size where the crop stays at least 1.5 times as large as asked for, by
one rule for all. "levels off" is the mean distance of the crop from that of Pillow's whole decoding, in levels of 255.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch
from PIL import ExifTags, Image

from dsdmae_cli.bench.machine import described
from dsdmae_cli.bench.turns import Finding, last_words
from dsdmae_cli.data.augment import Augmentation, crop_boxes
from dsdmae_cli.data.cutting import LEAST_REDUCTION, Box, Picture, resampled
from dsdmae_cli.data.decode import opened
from dsdmae_cli.data.files import Directory, FileImages
from dsdmae_cli.data.source import Batching, Unreadable
from dsdmae_cli.data.streaming import StreamingSource
from dsdmae_cli.errors import SettingsError

if TYPE_CHECKING:
    from dsdmae_cli.data.base import ImageDataset

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)
OURS = "dsdmae"
_BICUBIC = Image.Resampling.BICUBIC
_BATCH, _STEPS = 64, 32
_ORIENTATION = ExifTags.Base.Orientation
Crop = Callable[[int, Box, int], "np.ndarray | torch.Tensor"]


def shrink_of(box: Box, size: int) -> int:
    """1, 2, 4 or 8, by the rule that this program has."""
    return next((n for n in (8, 4, 2) if min(box.height, box.width) >= n * LEAST_REDUCTION * size), 1)


def part(pixels: np.ndarray, box: Box, shrink: int = 1) -> np.ndarray:
    """The box out of a picture that was decoded at 1/shrink of its size."""
    top, left, bottom, right = (
        round(x / shrink) for x in (box.top, box.left, box.top + box.height, box.left + box.width)
    )
    return pixels[top:bottom, left:right]


def pillows(paths: list[Path]) -> dict[str, Crop]:
    """Pillow's way, whole and scaled."""

    def pil(index: int, box: Box, size: int) -> np.ndarray:
        with Image.open(paths[index]) as image:
            top, left, height, width = box
            cut = image.convert("RGB").crop((left, top, left + width, top + height))
            return np.array(cut.resize((size, size), _BICUBIC))

    def draft(index: int, box: Box, size: int) -> np.ndarray:
        with Image.open(paths[index]) as image:
            shrink = shrink_of(box, size)
            # Pillow divides whole by whole, so that a side rounded up would not be halved.
            image.draft("RGB", (max(1, image.width // shrink), max(1, image.height // shrink)))
            edges = [round(x / shrink) for x in (box.left, box.top, box.left + box.width, box.top + box.height)]
            within = (edges[0], edges[1], min(edges[2], image.width), min(edges[3], image.height))
            return np.array(image.convert("RGB").crop(within).resize((size, size), _BICUBIC))

    return {"PIL": pil, "PIL, scaled (draft)": draft}


def torchvisions(paths: list[Path]) -> dict[str, Crop]:
    """torchvision.io's decoder and its crop; it has no scaled decoding."""
    from torchvision.io import decode_jpeg
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    def crop(index: int, box: Box, size: int) -> torch.Tensor:
        content = torch.frombuffer(bytearray(paths[index].read_bytes()), dtype=torch.uint8)
        kind = InterpolationMode.BICUBIC
        whole: torch.Tensor = decode_jpeg(content)
        cut: torch.Tensor = functional.resized_crop(whole, *box, [size, size], kind, antialias=True)
        return cut.permute(1, 2, 0)

    return {"torchvision.io": crop}


def simplejpegs(paths: list[Path]) -> dict[str, Crop]:
    """simplejpeg's decoder, whole and scaled, and our resampling."""
    import simplejpeg

    def whole(index: int, box: Box, size: int) -> torch.Tensor:
        pixels = simplejpeg.decode_jpeg(paths[index].read_bytes(), strict=False)
        return resampled(part(pixels, box), size, "bicubic")

    def scaled(index: int, box: Box, size: int) -> torch.Tensor:
        content, shrink = paths[index].read_bytes(), shrink_of(box, size)
        if shrink == 1:
            return resampled(part(simplejpeg.decode_jpeg(content, strict=False), box), size, "bicubic")
        height, width, *_ = simplejpeg.decode_jpeg_header(content, strict=False)
        least = {"min_height": -(-height // shrink), "min_width": -(-width // shrink), "min_factor": shrink}
        return resampled(part(simplejpeg.decode_jpeg(content, strict=False, **least), box, shrink), size, "bicubic")

    return {"simplejpeg": whole, "simplejpeg, scaled": scaled}


def turbojpegs(paths: list[Path]) -> dict[str, Crop]:
    """PyTurboJPEG's, which needs libturbojpeg of the system."""
    turbojpeg = import_module("turbojpeg")  # nobody's dependency
    library, rgb = turbojpeg.TurboJPEG(), turbojpeg.TJPF_RGB

    def whole(index: int, box: Box, size: int) -> torch.Tensor:
        return resampled(part(library.decode(paths[index].read_bytes(), rgb), box), size, "bicubic")

    def scaled(index: int, box: Box, size: int) -> torch.Tensor:
        shrink = shrink_of(box, size)
        factor = None if shrink == 1 else (1, shrink)
        pixels = library.decode(paths[index].read_bytes(), rgb, scaling_factor=factor)
        return resampled(part(pixels, box, shrink), size, "bicubic")

    return {"PyTurboJPEG": whole, "PyTurboJPEG, scaled": scaled}


def contenders(paths: list[Path], dataset: ImageDataset) -> tuple[dict[str, Crop], list[str]]:
    """Who can be measured here, and sentences on who cannot."""
    found: dict[str, Crop] = {}
    notes = []
    for makes in (pillows, torchvisions, simplejpegs, turbojpegs):
        try:
            found |= makes(paths)
        except (ImportError, RuntimeError, OSError) as error:
            notes.append(f"Without {makes.__name__.removesuffix('s')}: {last_words(error)}.")

    def ours(index: int, box: Box, size: int) -> torch.Tensor:
        return Picture(dataset, index).crops([box], size, "bicubic")[0]

    return found | {OURS: ours}, notes


def photographs(folder: Path, most: int, pack: ImageDataset | None = None) -> tuple[list[Path], FileImages, int]:
    """At most `most` JPEGs below a folder, evenly spread, a dataset of them, and how many were left out.

    Those that a camera lies on its side (EXIF), or of other channels than grey or RGB, are left out: decoders differ in
    what they make of them, so that a box would be another part of the picture.

    Args:
        pack: leave out what is not in it.

    Raises:
        SettingsError: there are none.
        DataError: one of them is no picture.
    """
    every = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not every:
        raise SettingsError(f"there is no JPEG in {folder} or below it; name a folder of photographs (*.jpg)")
    if pack is not None:
        there = _places(every, folder, pack)
        every = [path for path in every if path in there]
        if not every:
            raise SettingsError(
                f"--packed holds none of the JPEGs in {folder}; name what was packed of that very folder"
            )
    some = every[:: -(-len(every) // most)]
    paths = [path for path in some if _same_to_all(path)]
    if not paths:
        raise SettingsError(
            f"each JPEG in {folder} is turned by its EXIF, or neither grey nor RGB; name other photographs"
        )
    root = Path(os.path.commonpath([path.parent for path in paths]))
    names = [str(path.relative_to(root)) for path in paths]
    return paths, FileImages(Directory(root, names), np.arange(len(paths))), len(some) - len(paths)


def _same_to_all(path: Path) -> bool:
    """Whether all decoders make the same picture of it."""
    with opened(path, str(path)) as image:
        return image.mode in ("L", "RGB") and image.getexif().get(_ORIENTATION, 1) == 1


def _places(paths: list[Path], folder: Path, pack: ImageDataset) -> dict[Path, int]:
    """Where in a packed folder each file is that is there. Names there end in those of the folder; two of its files may
    have one name in folders of their own."""
    within = {path.relative_to(folder).as_posix(): path for path in paths}
    found = {}
    for index in range(len(pack)):
        name = pack.name(index).rpartition("!")[2]
        while name not in within and "/" in name:
            name = name.partition("/")[2]
        if name in within:
            found[within[name]] = index
    return found


def _opened(packed: Path) -> ImageDataset:
    from dsdmae_cli.config.compose import load
    from dsdmae_cli.data.open import open_dataset

    return open_dataset(load(assignments=[f"data.dataset={packed}"], environ={}).settings.data, "train")


def _out_of_pack(paths: list[Path], folder: Path, pack: ImageDataset, widths: list[int]) -> Crop:
    places = _places(paths, folder, pack)

    def crop(index: int, box: Box, size: int) -> torch.Tensor:
        picture = Picture(pack, places[paths[index]])
        share = picture.width / widths[index]
        return picture.crops([Box(*(max(0, math.floor(x * share)) for x in box))], size, "bicubic")[0]

    return crop


def bench_feed(
    folder: Path,
    size: int,
    most: int,
    rounds: int,
    workers: str,
    packed: Path | None = None,
    said: Callable[[str], None] = lambda text: None,
) -> Finding:
    """Milliseconds of a core an image by each contender, and of the real loader by so many workers.

    Args:
        workers: numbers between commas, or "none".
        packed: what `dsdmae data pack` made of the folder.

    Raises:
        SettingsError: there is no JPEG to compare, or `workers` is no list of numbers.
    """
    counts = _counts(workers)
    threads = torch.get_num_threads()
    warnings.filterwarnings("ignore", module="torch")
    pack = None if packed is None else _opened(packed)
    paths, dataset, left_out = photographs(folder, most, pack)
    sizes = [dataset.size(index) for index in range(len(paths))]
    generator = torch.Generator().manual_seed(0)
    boxes = [Box(*torch.cat([*crop_boxes(1, h, w, SCALE, RATIO, generator)]).flatten().tolist()) for w, h in sizes]
    found, notes = contenders(paths, dataset)
    if left_out:
        notes.append(f"Left out: {left_out}, turned by EXIF or neither grey nor RGB, which decoders treat differently.")
    if pack is not None:
        found[f"{OURS}, packed"] = _out_of_pack(paths, folder, pack, [width for width, _ in sizes])
    torch.set_num_threads(1)
    try:
        least = _least(found, boxes, size, rounds, said)
        off = _levels_off(found, boxes, size)
        loader = {count: _loader(dataset, size, count, said) for count in counts}
    finally:
        torch.set_num_threads(threads)
    taken = {name: 1e3 * float(seconds.sum()) / len(boxes) for name, seconds in least.items()}
    fastest = min(value for name, value in taken.items() if not name.startswith(OURS))
    rows = [
        [name, f"{value:.3f}", f"{value / fastest:.2f}", f"{off[name]:.2f}"]
        for name, value in sorted(taken.items(), key=lambda item: item[1])
    ]
    for count, (children, own) in loader.items():
        who = f"{count} worker{'' if count == 1 else 's'}"
        notes.append(
            f"The real loader with {who}, batches of {_BATCH}: {children:.3f} ms an image in workers, {own:.3f} in this"
            " process."
        )
    pixels = np.mean([w * h / 1e6 for w, h in sizes])
    weight = np.mean([path.stat().st_size for path in paths]) / 1024
    facts = {
        "JPEGs": f"{len(paths)}, {pixels:.2f} megapixels and {weight:.0f} KiB on average",
        "crops": f"{size}x{size}, least of {rounds}",
        **described(torch.device("cpu")),
    }
    return Finding(
        "From a JPEG file to a crop, on one core",
        ["contender", "ms an image", "of the fastest peer", "levels off"],
        rows,
        facts,
        {
            "milliseconds": taken,
            "levels_off": off,
            "loader": {str(count): {"workers_ms": c, "own_ms": o} for count, (c, o) in loader.items()},
        },
        notes,
    )


def _counts(workers: str) -> list[int]:
    if workers == "none":
        return []
    words = workers.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise SettingsError(f"--workers {workers} is neither none nor numbers between commas; give 0,1,2, say")
    return [int(word) for word in words]


def _least(
    found: dict[str, Crop], boxes: list[Box], size: int, rounds: int, said: Callable[[str], None]
) -> dict[str, np.ndarray]:
    least = {name: np.full(len(boxes), np.inf) for name in found}
    order = np.random.default_rng(0)
    names = list(found)
    for number in range(rounds):
        for index, box in enumerate(boxes):
            # At random, since who comes second finds the file and much else in the processor's cache.
            for name in order.permutation(names).tolist():
                began = time.process_time()
                found[name](index, box, size)
                least[name][index] = min(least[name][index], time.process_time() - began)
        said(f"round {number + 1} of {rounds}")
    return least


def _levels_off(found: dict[str, Crop], boxes: list[Box], size: int) -> dict[str, float]:
    some = range(0, len(boxes), max(1, len(boxes) // 25))

    def crop(name: str, index: int) -> np.ndarray:
        return np.asarray(found[name](index, boxes[index], size), dtype=np.float64)

    reference = {index: crop("PIL", index) for index in some}
    return {name: float(np.mean([np.abs(crop(name, k) - reference[k]).mean() for k in some])) for name in found}


def _loader(dataset: ImageDataset, size: int, workers: int, said: Callable[[str], None]) -> tuple[float, float]:
    """Milliseconds of the processor an image: (in workers, in this process)."""
    from dsdmae_cli.settings.models import DataSettings

    plan = Augmentation(size, SCALE, RATIO, "bicubic", True, 0)
    batch = min(_BATCH, len(dataset))
    source = StreamingSource(
        dataset,
        Batching(len(dataset), batch, batch, 0),
        plan,
        torch.device("cpu"),
        workers,
        Unreadable(len(dataset), DataSettings()),
    )
    children, own, taken = _children(), 0.0, 0
    for epoch in range(1 + _STEPS * batch // len(dataset)):
        began = time.process_time()
        for step in source.steps(epoch):
            taken += sum(len(micro.images) for micro in step)
        own += time.process_time() - began
    source.close()
    made = taken + source.ahead.piece * source.ahead.pieces * workers  # what lies ready was decoded too
    said(f"loader with {workers} workers")
    return 1e3 * (_children() - children) / made, 1e3 * own / taken


def _children() -> float:
    """Processor seconds of processes that have ended."""
    used = psutil.Process().cpu_times()
    return float(used.children_user + used.children_system)
