"""What a thousand, a hundred thousand and a million images cost, in one thread: time and memory.

    python bench/many_images.py [--form shards|folder|parquet] [--counts 1000,100000,1000000] [--folder DIR] [--packed]

Makes small JPEGs (32x32 px, some 700 bytes, a class each), opens them as any command does, and removes them: in shards
of 10,000 in WebDataset's form, as files in ten folders, or in Parquet files of 10,000 rows in groups of 100, as the
Hugging Face hub writes them. Seconds are of the processor, so that a machine that is shared gives the same. Each
figure is a process of its own, so that its peak of memory is its own:

- index:    the first opening: of shards one pass over all headers; splits and labels decided
- open:     the second, of shards from the kept index
- shuffle:  an epoch's order, and the images of 2,000 of its places read and decoded

With --packed the same images are packed (`dsdmae data pack`), which is measured too, and `open` and `shuffle` are of
the packed folder.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

PER_FILE, ROW_GROUP, SIDE, DISTINCT, CLASSES, READ = 10_000, 100, 32, 256, 10, 2_000


def jpegs() -> list[bytes]:
    """Small images, each another."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0)
    made = []
    for _ in range(DISTINCT):
        content = io.BytesIO()
        small = noise.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(content, format="JPEG")
        made.append(content.getvalue())
    return made


def make_shards(folder: Path, count: int) -> None:
    images = jpegs()
    for first in range(0, count, PER_FILE):
        with (folder / f"{first // PER_FILE:05d}.tar").open("wb") as shard:
            for number in range(first, min(first + PER_FILE, count)):
                label = b"%d" % (number % CLASSES)
                for name, held in ((f"{number:09d}.jpg", images[number % DISTINCT]), (f"{number:09d}.cls", label)):
                    info = tarfile.TarInfo(name)
                    info.size = len(held)
                    shard.write(info.tobuf(tarfile.USTAR_FORMAT) + held + b"\0" * (-len(held) % 512))
            shard.write(b"\0" * 1024)


def make_folder(folder: Path, count: int) -> None:
    images = jpegs()
    for label in range(CLASSES):
        (folder / f"class-{label}").mkdir()
    for number in range(count):
        (folder / f"class-{number % CLASSES}" / f"{number:09d}.jpg").write_bytes(images[number % DISTINCT])


def make_parquet(folder: Path, count: int) -> None:
    import pyarrow
    from pyarrow import parquet

    images = jpegs()
    for first in range(0, count, PER_FILE):
        numbers = range(first, min(first + PER_FILE, count))
        held = [{"bytes": images[number % DISTINCT], "path": f"{number:09d}.jpg"} for number in numbers]
        rows = {"image": held, "label": [number % CLASSES for number in numbers]}
        parquet.write_table(pyarrow.table(rows), folder / f"{first // PER_FILE:05d}.parquet", row_group_size=ROW_GROUP)


FORMS = {"shards": make_shards, "folder": make_folder, "parquet": make_parquet}


def measure(what: str, folder: Path) -> dict[str, float]:
    """Seconds and MiB above what the imports took."""
    import torch

    from dsdmae_cli.config.compose import load
    from dsdmae_cli.data.open import open_dataset
    from dsdmae_cli.data.pack import Options
    from dsdmae_cli.data.pack_dataset import pack_dataset
    from dsdmae_cli.data.source import Batching

    torch.set_num_threads(1)
    named = f"parquet:{folder}" if any(folder.glob("*.parquet")) else str(folder)
    settings = load(assignments=[f"data.dataset={named}", "data.range=none"], environ={}).settings.data
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    if what == "pack":
        found = pack_dataset(settings, folder.parent / "packed", Options(), quiet=True)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"seconds": time.process_time() - began, "mib": (peak - before) / 1024, "images": found["images"]}
    images = open_dataset(settings, "train")
    if what == "shuffle":
        began = time.process_time()
        order = Batching(len(images), 256, 256, seed=0).order(0)
        ordered = time.process_time()
        for index in order[:READ].tolist():
            images.load(index)
        return {"order": ordered - began, "read": (time.process_time() - ordered) / min(READ, len(images))}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": time.process_time() - began, "mib": (peak - before) / 1024, "images": len(images)}


def in_process(what: str, folder: Path, cache: Path) -> dict[str, float]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, __file__, "--measure", what, "--folder", str(folder)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--form", choices=FORMS, default="shards")
    parser.add_argument("--counts", default="1000,100000,1000000")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--measure", choices=("index", "open", "shuffle", "pack"))
    parser.add_argument("--packed", action="store_true")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.folder)))
        return
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, one thread\n")
    first = "pack" if arguments.packed else "index"
    heads = ("images", "files", "MiB", f"{first} s", "µs an image", "MiB peak", "open s", "µs an image", "MiB peak",
             "KiB an image", "order s", "read and decode µs")  # fmt: skip
    print(f"| {' | '.join(heads)} |")
    print("|" + "---|" * len(heads))
    for count in map(int, arguments.counts.split(",")):
        work = Path(tempfile.mkdtemp(prefix="dsdmae-many-", dir=arguments.folder))
        try:
            made, cache = work / arguments.form, work / "cache"
            made.mkdir()
            FORMS[arguments.form](made, count)
            sizes = [path.stat().st_size for path in made.rglob("*") if path.is_file()]
            index = in_process(first, made, cache)
            read = work / "packed" if arguments.packed else made
            again, shuffle = (in_process(what, read, cache) for what in ("open", "shuffle"))
            cells = [
                f"{count:,}", f"{len(sizes):,}", f"{sum(sizes) / 2**20:,.0f}",
                f"{index['seconds']:.2f}", f"{1e6 * index['seconds'] / count:.0f}", f"{index['mib']:.0f}",
                f"{again['seconds']:.2f}", f"{1e6 * again['seconds'] / count:.1f}", f"{again['mib']:.0f}",
                f"{1024 * again['mib'] / count:.2f}", f"{shuffle['order']:.3f}", f"{1e6 * shuffle['read']:.0f}",
            ]  # fmt: skip
            print("| " + " | ".join(cells) + " |", flush=True)
        finally:
            shutil.rmtree(work)


if __name__ == "__main__":
    main()
