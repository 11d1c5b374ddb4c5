"""What a photograph costs a core, from its JPEG file to a uint8 crop of the network's size: this program and its peers.

    pip install simplejpeg 'PyTurboJPEG<2'      # the latter needs libturbojpeg of the system
    python bench/feed.py FOLDER [--sizes 224,96] [--most 250] [--repeats 7] [--loader] [--packed DIR]

All cut the same boxes (of RandomResizedCrop, a fifth to all of the area), bicubic and antialiased, from the files in
the system's cache, on one thread; contenders alternate photograph by photograph, and of each photograph the least of
the repeats counts. Seconds are of the processor, so that a core that others use too gives the same. Those called
"scaled" have the JPEG decoded at 1/2, 1/4 or 1/8 of its size where the crop stays at least 1.5 times as large as asked
for, by one rule for all.
"before" is what this program did until then: all decoded by Pillow, cut, resized by Pillow. "levels off" is the mean
distance of the crop from that of Pillow's whole decoding, in levels of 255.

--loader also runs the real loader, with what it draws, in batches of 64, by 0, 1 and 2 workers: processor time of all
processes. --packed cuts the same boxes out of a folder that `dsdmae data pack` made of FOLDER.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import resource
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dsdmae_cli.data.augment import Augmentation, crop_boxes
from dsdmae_cli.data.base import ImageDataset
from dsdmae_cli.data.cutting import LEAST_REDUCTION, Box, Picture, resampled
from dsdmae_cli.data.files import Directory, FileImages
from dsdmae_cli.data.source import Batching, Unreadable
from dsdmae_cli.data.square import resized
from dsdmae_cli.data.streaming import StreamingSource

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)
BICUBIC = Image.Resampling.BICUBIC
Crop = Callable[[int, Box, int], np.ndarray | torch.Tensor]


def shrink_of(box: Box, size: int) -> int:
    """1, 2, 4 or 8, by the rule that this program has."""
    return next((n for n in (8, 4, 2) if min(box.height, box.width) >= n * LEAST_REDUCTION * size), 1)


def part(pixels: np.ndarray, box: Box, shrink: int = 1) -> np.ndarray:
    top, left, bottom, right = (
        round(x / shrink) for x in (box.top, box.left, box.top + box.height, box.left + box.width)
    )
    return pixels[top:bottom, left:right]


def contenders(paths: list[Path], dataset: ImageDataset, packed: ImageDataset | None) -> dict[str, Crop]:
    def before(index: int, box: Box, size: int) -> np.ndarray:
        return resized(part(dataset.load(index), box), size, BICUBIC)

    def pil(index: int, box: Box, size: int) -> np.ndarray:
        with Image.open(paths[index]) as image:
            top, left, height, width = box
            cut = image.convert("RGB").crop((left, top, left + width, top + height))
            return np.array(cut.resize((size, size), BICUBIC))

    def pil_draft(index: int, box: Box, size: int) -> np.ndarray:
        with Image.open(paths[index]) as image:
            shrink = shrink_of(box, size)
            # Pillow divides whole by whole, so that a side rounded up would not be halved.
            image.draft("RGB", (max(1, image.width // shrink), max(1, image.height // shrink)))
            edges = tuple(round(x / shrink) for x in (box.left, box.top, box.left + box.width, box.top + box.height))
            cut = image.convert("RGB").crop(
                (edges[0], edges[1], min(edges[2], image.width), min(edges[3], image.height))
            )
            return np.array(cut.resize((size, size), BICUBIC))

    found: dict[str, Crop] = {"before": before, "PIL": pil, "PIL, scaled (draft)": pil_draft}

    from torchvision.io import decode_jpeg
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    def torchvision_io(index: int, box: Box, size: int) -> torch.Tensor:
        content = torch.frombuffer(bytearray(paths[index].read_bytes()), dtype=torch.uint8)
        kind = InterpolationMode.BICUBIC
        return functional.resized_crop(decode_jpeg(content), *box, [size, size], kind, antialias=True).permute(1, 2, 0)

    found["torchvision.io"] = torchvision_io
    import simplejpeg

    def simple(index: int, box: Box, size: int) -> torch.Tensor:
        whole = simplejpeg.decode_jpeg(paths[index].read_bytes(), strict=False)
        return resampled(part(whole, box), size, "bicubic")

    def simple_scaled(index: int, box: Box, size: int) -> torch.Tensor:
        content, shrink = paths[index].read_bytes(), shrink_of(box, size)
        if shrink == 1:
            return resampled(part(simplejpeg.decode_jpeg(content, strict=False), box), size, "bicubic")
        height, width, *_ = simplejpeg.decode_jpeg_header(content, strict=False)
        least = {"min_height": -(-height // shrink), "min_width": -(-width // shrink), "min_factor": shrink}
        return resampled(part(simplejpeg.decode_jpeg(content, strict=False, **least), box, shrink), size, "bicubic")

    found |= {"simplejpeg": simple, "simplejpeg, scaled": simple_scaled}
    try:
        from turbojpeg import TJPF_RGB, TurboJPEG

        library = TurboJPEG()
    except (ImportError, RuntimeError, OSError) as error:
        print(f"without PyTurboJPEG: {error}\n")
    else:

        def turbo(index: int, box: Box, size: int) -> torch.Tensor:
            return resampled(part(library.decode(paths[index].read_bytes(), TJPF_RGB), box), size, "bicubic")

        def turbo_scaled(index: int, box: Box, size: int) -> torch.Tensor:
            shrink = shrink_of(box, size)
            factor = None if shrink == 1 else (1, shrink)
            whole = library.decode(paths[index].read_bytes(), TJPF_RGB, scaling_factor=factor)
            return resampled(part(whole, box, shrink), size, "bicubic")

        found |= {"PyTurboJPEG": turbo, "PyTurboJPEG, scaled": turbo_scaled}

    def ours(index: int, box: Box, size: int) -> torch.Tensor:
        return Picture(dataset, index).crops([box], size, "bicubic")[0]

    found["dsdmae"] = ours
    if packed is not None:
        by_name = {packed.name(i).rpartition("/")[2].rpartition("!")[2]: i for i in range(len(packed))}
        place = [by_name[path.name] for path in paths]

        def out_of_pack(index: int, box: Box, size: int) -> torch.Tensor:
            picture = Picture(packed, place[index])
            with_header = widths[index]
            share = picture.width / with_header
            scaled = Box(*(max(0, math.floor(x * share)) for x in box))
            return picture.crops([scaled], size, "bicubic")[0]

        widths = [dataset.size(index)[0] for index in range(len(paths))]
        found["dsdmae, packed"] = out_of_pack
    return found


def relative(paths: list[Path]) -> list[Path]:
    common = Path(os.path.commonpath(paths))
    return [path.relative_to(common) for path in paths]


def table(found: dict[str, Crop], boxes: list[Box], size: int, repeats: int) -> None:
    least = {name: np.full(len(boxes), np.inf) for name in found}
    order = np.random.default_rng(0)
    for _ in range(repeats):
        for index, box in enumerate(boxes):
            # At random, since who comes second finds the file and much else in the processor's cache.
            for name, crop in order.permutation(np.array(list(found.items()), dtype=object)).tolist():
                began = time.process_time()
                crop(index, box, size)
                least[name][index] = min(least[name][index], time.process_time() - began)
    taken = {name: seconds.sum() for name, seconds in least.items()}
    peers = [value for name, value in taken.items() if name != "before" and not name.startswith("dsdmae")]
    some = range(0, len(boxes), max(1, len(boxes) // 25))
    reference = [np.asarray(found["before"](index, boxes[index], size), dtype=np.float64) for index in some]
    print(f"| to {size} px | ms an image | of the fastest peer | levels off |\n|---|---|---|---|")
    for name, seconds in sorted(taken.items(), key=lambda item: item[1]):
        crops = (np.asarray(found[name](index, boxes[index], size), dtype=np.float64) for index in some)
        off = np.mean([np.abs(mine - whole).mean() for mine, whole in zip(crops, reference, strict=True)])
        print(f"| {name} | {1e3 * seconds / len(boxes):.3f} | {seconds / min(peers):.2f} | {off:.2f} |")
    print(flush=True)


def loader(dataset: ImageDataset, size: int, steps: int) -> None:
    print(
        f"| real loader, {size} px, batches of 64 | ms an image, workers | ms an image, this process |\n|---|---|---|"
    )
    plan = Augmentation(size, SCALE, RATIO, "bicubic", True, 0)
    for workers in (0, 1, 2):
        batch = min(64, len(dataset))
        source = StreamingSource(
            dataset, Batching(len(dataset), batch, batch, 0), plan, torch.device("cpu"), workers, _none(dataset)
        )
        children, own, taken = _children(), 0.0, 0
        for epoch in range(1 + steps * batch // len(dataset)):
            began = time.process_time()
            for step in source.steps(epoch):
                taken += sum(len(micro.images) for micro in step)
            own += time.process_time() - began
        source.close()
        made = taken + (source.ahead.piece * source.ahead.pieces * workers)  # what lies ready was decoded too
        print(
            f"| {workers} workers | {1e3 * (_children() - children) / made:.3f} | {1e3 * own / taken:.3f} |", flush=True
        )
    print()


def _none(dataset: ImageDataset) -> Unreadable:
    from dsdmae_cli.settings.models import DataSettings

    return Unreadable(len(dataset), DataSettings())


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", default="224,96")
    parser.add_argument("--most", type=int, default=250, help="photographs, evenly spread over those there are")
    parser.add_argument("--least-bytes", type=int, default=0, help="leave smaller files out")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--loader", action="store_true")
    parser.add_argument("--packed", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="torch")
    torch.set_num_threads(1)
    every = [p for p in sorted(arguments.folder.rglob("*.jpg")) if p.stat().st_size >= arguments.least_bytes]
    packed = None
    if arguments.packed:
        from dsdmae_cli.config.compose import load
        from dsdmae_cli.data.open import open_dataset

        settings = load(assignments=[f"data.dataset={arguments.packed}"], environ={}).settings.data
        packed = open_dataset(settings, "train")
        there = {packed.name(index).rpartition("/")[2].rpartition("!")[2] for index in range(len(packed))}
        every = [path for path in every if path.name in there]
    paths = every[:: -(-len(every) // arguments.most)]
    root = Path(os.path.commonpath(paths))
    dataset = FileImages(Directory(root, [str(name) for name in relative(paths)]), np.arange(len(paths)))
    sizes = [dataset.size(index) for index in range(len(paths))]
    generator = torch.Generator().manual_seed(0)
    boxes = [Box(*torch.cat([*crop_boxes(1, h, w, SCALE, RATIO, generator)]).flatten().tolist()) for w, h in sizes]
    mean = np.mean([w * h / 1e6 for w, h in sizes])
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    size = np.mean([path.stat().st_size for path in paths]) / 1024
    print(f"{len(paths)} JPEGs, {mean:.2f} megapixels and {size:.0f} KiB on average; least of {arguments.repeats}\n")
    found = contenders(paths, dataset, packed)
    for size in map(int, arguments.sizes.split(",")):
        table(found, boxes, size, arguments.repeats)
        if arguments.loader:
            loader(dataset, size, 32)


if __name__ == "__main__":
    main()
