"""Rows of small pictures with names at their left, as one picture that can be taken apart again. No torch here."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from dsdmae_cli.files import aside, parsed_json

_GAP = 4
_LABEL = 110
_TEXT = "dsdmae-rows"

PATCHES = "patches"  # of a run's pictures, those of its patches' features

Rows = list[tuple[str, list[Image.Image]]]


def sheet(rows: Rows) -> Image.Image:
    """Rows of tiles of one size, each row with its name to the left."""
    width, height = rows[0][1][0].size
    columns = max(len(tiles) for _, tiles in rows)
    page = Image.new("RGB", (_LABEL + columns * (width + _GAP) + _GAP, len(rows) * (height + _GAP) + _GAP), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(15)
    for y, (name, tiles) in enumerate(rows):
        top = _GAP + y * (height + _GAP)
        lines = name.split("\n")
        for line, text in enumerate(lines):
            middle = top + height // 2 + round(18 * (line - (len(lines) - 1) / 2))
            draw.text((_LABEL - 8, middle), text, fill="black", font=font, anchor="rm")
        for x, tile in enumerate(tiles):
            page.paste(tile, box(x, y, (width, height))[:2])
    return page


def save(image: Image.Image, path: Path, names: list[str] | None = None) -> None:
    """As PNG, with the names of its rows where it is to be taken apart."""
    about = PngImagePlugin.PngInfo()
    if names is not None:
        about.add_text(_TEXT, json.dumps(names))
    with aside(path) as partial:
        image.save(partial, format="PNG", pnginfo=about)


def box(x: int, y: int, tile: tuple[int, int]) -> tuple[int, int, int, int]:
    """Where a tile lies."""
    left, top = _LABEL + _GAP + x * (tile[0] + _GAP), _GAP + y * (tile[1] + _GAP)
    return left, top, left + tile[0], top + tile[1]


def moments(folder: Path, patches: bool = False) -> list[tuple[int, Path]]:
    """The pictures of a run's moments by step: what its method showed, or its patches' features."""
    files = sorted(folder.glob("*-step-*.png")) if folder.is_dir() else []
    mine = [file for file in files if file.name.startswith(f"{PATCHES}-step-") == patches]
    return [(int(file.stem.rsplit("-", 1)[1]), file) for file in mine]


def strips(path: Path) -> list[tuple[str, Image.Image]]:
    """The rows of a sheet by name, each without its name and margin; none where the file does not say its names."""
    with Image.open(path) as page:
        try:
            names = parsed_json(page.text[_TEXT])  # type: ignore[attr-defined]
        except (AttributeError, KeyError, ValueError):
            return []
        height = (page.height - _GAP) // len(names)
        rows = [(_LABEL + _GAP, _GAP + y * height, page.width - _GAP, (y + 1) * height) for y in range(len(names))]
        return [(name, page.crop(row)) for name, row in zip(names, rows, strict=True)]


def tiles(strip: Image.Image, number: int) -> list[Image.Image]:
    """The tiles of a row."""
    width = (strip.width + _GAP) // number - _GAP
    return [strip.crop((x, 0, x + width, strip.height)) for x in range(0, number * (width + _GAP), width + _GAP)]
