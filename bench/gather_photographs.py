"""Openly licensed photographs out of Debian packages, cut into windows to train a denoiser on.

    pip install python-debian
    python bench/gather_photographs.py FOLDER [--packages CACHE]

Packages are fetched by `apt-get download` (Debian 12), where CACHE has none yet, and unpacked, not installed. Each
photograph is shrunk, by two at least, so that the noise and JPEG blocks of its own go, and cut into windows of --side
pixels without overlap; windows in which hardly anything is depicted are left out. FOLDER/train and FOLDER/val hold the
windows, split by photograph, and FOLDER/sources.csv names package, version, author and licence of every photograph, as
the package states them.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from debian.copyright import Copyright
from PIL import Image

# Photographs alone: drawings, renderings, gradients and duplicates of other sizes were sorted out by eye.
_PLASMA = (
    "BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf", "Grey", "Kite",
    "OneStandsOut", "Path", "summer_1am",
)  # fmt: skip
_LOMIRI = (
    "Bridge_by", "Dragonfly", "Picture_", "Wine", "aitzgorri", "friends", "greentock", "life", "picosdeeuropa",
    "seeding", "sunset",
)  # fmt: skip
_LAND = "usr/share/games/endless-sky/plugins/endless-sky-high-dpi/images/land/*"


@dataclass(frozen=True)
class Source:
    """Photographs of a package: globs, and the directory that its copyright file's paths begin in."""

    package: str
    globs: tuple[str, ...]
    base: str


SOURCES = (
    Source("endless-sky-high-dpi", (_LAND,), "usr/share/games/endless-sky/plugins/endless-sky-high-dpi"),
    Source("mate-backgrounds", ("usr/share/backgrounds/mate/nature/*.jpg",), "usr/share/backgrounds/mate"),
    Source(
        "lomiri-wallpapers-16.04",
        tuple(f"usr/share/backgrounds/{name}*.jpg" for name in _LOMIRI),
        "usr/share/backgrounds",
    ),
    Source("lomiri-wallpapers-20.04", ("usr/share/backgrounds/Kleiber*.jpg",), "usr/share/backgrounds"),
    Source(
        "plasma-workspace-wallpapers",
        tuple(f"usr/share/wallpapers/{name}/contents/images/[0-9]*.jpg" for name in _PLASMA),
        "",
    ),
)  # fmt: skip
# A window counts where neighbouring pixels differ by this on average, of 255, rows and columns together.
_LEAST_DETAIL = 1.5
_LARGEST_SIDE = 720
# Each so many-th photograph is for validation.
_HELD_OUT = 16


def unpacked(package: str, cache: Path) -> tuple[Path, str]:
    """The package's files, and its version."""
    if not any(cache.glob(f"{package}_*.deb")):
        subprocess.run(["apt-get", "download", package], cwd=cache, check=True)
    archive = max(cache.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)
    folder = archive.with_suffix("")
    if not folder.exists():
        part = folder.with_name(f"{folder.name}.part")  # half of a package would be taken for all of it the next time
        shutil.rmtree(part, ignore_errors=True)
        subprocess.run(["dpkg-deb", "-x", str(archive), str(part)], check=True)
        part.rename(folder)
    return folder, archive.name.split("_")[1].replace("%3a", ":")


def photographs(source: Source, root: Path) -> list[Path]:
    """Files of the source; of a plasma wallpaper that comes in many sizes the largest alone."""
    found = sorted({path for glob in source.globs for path in root.glob(glob)})
    if source.base:
        return found
    by_name: dict[Path, Path] = {}
    for path in found:
        best = by_name.get(path.parent)
        if best is None or _area(path) > _area(best):
            by_name[path.parent] = path
    return sorted(by_name.values())


def _area(path: Path) -> int:
    with Image.open(path) as image:
        return image.width * image.height


def provenance(source: Source, root: Path, path: Path) -> tuple[str, str]:
    """Author and licence, as the package has them."""
    metadata = path.parent.parent.parent / "metadata.json"
    if not source.base and metadata.exists():
        plugin = json.loads(metadata.read_text(encoding="utf-8"))["KPlugin"]
        return ", ".join(author["Name"] for author in plugin["Authors"]), plugin["License"]
    with (root / f"usr/share/doc/{source.package}/copyright").open(encoding="utf-8") as stream:
        stated: Any = Copyright(stream, strict=False)
    name = str(path.relative_to(root / source.base))
    # Wallpapers lie in a folder of their own in the source package that the installed one does not have.
    for known in (name, f"16.04/{name}", f"20.04/{name}"):
        paragraph = stated.find_files_paragraph(known)
        if paragraph is not None and paragraph.files != ("*",):
            break
    assert paragraph is not None, f"{source.package} says nothing of {name}"
    return " ".join(paragraph.copyright.split()), paragraph.license.synopsis


def shrunk(image: Image.Image, side: int) -> Image.Image:
    """By two, or by more so that the shorter side has 720 px; no side becomes shorter than a window's."""
    factor = max(2.0, min(image.size) / _LARGEST_SIDE)
    size = [max(side, round(length / factor)) for length in image.size]
    return image.convert("RGB").resize((size[0], size[1]), Image.Resampling.LANCZOS)


def windows(image: Image.Image, side: int) -> Iterator[tuple[str, Image.Image]]:
    """Squares with something in them, by their place."""
    across, down = image.width // side, image.height // side
    left, top = (image.width - across * side) // 2, (image.height - down * side) // 2
    for row in range(down):
        for column in range(across):
            corner = (left + column * side, top + row * side)
            window = image.crop((*corner, corner[0] + side, corner[1] + side))
            pixels = np.asarray(window, dtype=np.float64).mean(axis=2)
            if sum(np.abs(np.diff(pixels, axis=axis)).mean() for axis in (0, 1)) >= _LEAST_DETAIL:
                yield f"{row}-{column}", window


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--packages", type=Path, default=Path("packages"), help="where packages are fetched to")
    parser.add_argument("--side", type=int, default=180, help="of a window, in pixels")
    arguments = parser.parse_args()
    arguments.packages.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        (arguments.folder / split).mkdir(parents=True, exist_ok=True)
    rows: list[list[str]] = []
    counts = {"train": 0, "val": 0}
    for source in SOURCES:
        root, version = unpacked(source.package, arguments.packages)
        for path in photographs(source, root):
            split = "val" if len(rows) % _HELD_OUT == _HELD_OUT - 1 else "train"
            # Of plasma's the file is named by its size, the picture by its folder.
            title = path.stem if source.base else path.parts[-4]
            with Image.open(path) as image:
                for place, window in windows(shrunk(image, arguments.side), arguments.side):
                    window.save(arguments.folder / split / f"{source.package}-{title}-{place}.png", compress_level=1)
                    counts[split] += 1
            rows.append([split, str(path.relative_to(root)), source.package, version, *provenance(source, root, path)])
    with (arguments.folder / "sources.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["split", "file", "package", "version", "author", "licence"], *rows])
    print(f"{len(rows)} photographs, {counts['train']} windows to train, {counts['val']} held out")


if __name__ == "__main__":
    main()
