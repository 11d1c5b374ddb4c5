"""Pictures of a run: loss curves, and the paper's Fig. 2 (noisy, restored, original) as training goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dsdmae_cli.figures.page import blank, plain, save
from dsdmae_cli.files import aside

_TILE = 96
_GAP = 4
_LABEL = 110


def _tile(image: Float[Tensor, "3 h w"]) -> Image.Image:
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    whole = max(1, _TILE // pixels.shape[0])  # enlarged by whole factors, so that pixels stay square and sharp
    tile = Image.fromarray(np.repeat(np.repeat(pixels, whole, 0), whole, 1))
    return tile if tile.height <= 2 * _TILE else tile.resize((2 * _TILE, 2 * _TILE), Image.Resampling.LANCZOS)


def sheet(rows: list[tuple[str, list[Image.Image]]]) -> Image.Image:
    """Rows of tiles of one size, each row with its name to the left."""
    width, height = rows[0][1][0].size
    columns = max(len(tiles) for _, tiles in rows)
    page = Image.new("RGB", (_LABEL + columns * (width + _GAP) + _GAP, len(rows) * (height + _GAP) + _GAP), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(15)
    for y, (name, tiles) in enumerate(rows):
        top = _GAP + y * (height + _GAP)
        draw.text((_LABEL - 8, top + height // 2), name, fill="black", font=font, anchor="rm")
        for x, tile in enumerate(tiles):
            page.paste(tile, (_LABEL + _GAP + x * (width + _GAP), top))
    return page


class RestorationRecord:
    """Fixed images as they are restored at several moments; kept as small files, so that a resumed run has them all.

    Each moment leaves `restored-step-N.png` (given, restored, original); `restored.png` shows all moments below each
    other.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        """Where a moment's picture is."""
        return self.folder / f"restored-step-{step:08d}.png"

    def add(
        self,
        step: int,
        given: Float[Tensor, "b 3 h w"],
        restored: Float[Tensor, "b 3 h w"],
        original: Float[Tensor, "b 3 h w"],
    ) -> None:
        """Write a moment's picture, and the overview of all moments so far."""
        self.folder.mkdir(exist_ok=True)
        names = ("given", "restored", "original")
        rows = [
            (name, [_tile(i) for i in batch]) for name, batch in zip(names, (given, restored, original), strict=True)
        ]
        _save(sheet(rows), self.path(step))
        self._overview(rows[0][1][0].size, len(given))

    def _overview(self, tile: tuple[int, int], columns: int) -> None:
        moments = sorted(self.folder.glob("restored-step-*.png"))
        rows: list[tuple[str, list[Image.Image]]] = []
        for moment in moments:
            with Image.open(moment) as page:
                given, restored, original = ([page.crop(_box(x, y, tile)) for x in range(columns)] for y in range(3))
            step = int(moment.stem.rsplit("-", 1)[1])
            rows = rows or [("given", given)]
            rows.append((f"step {step}" if step else "untrained", restored))
        _save(sheet([*rows, ("original", original)]), self.folder / "restored.png")


def _box(x: int, y: int, tile: tuple[int, int]) -> tuple[int, int, int, int]:
    left, top = _LABEL + _GAP + x * (tile[0] + _GAP), _GAP + y * (tile[1] + _GAP)
    return left, top, left + tile[0], top + tile[1]


def _save(image: Image.Image, path: Path) -> None:
    with aside(path) as partial:
        image.save(partial, format="PNG")


# Shares of right answers, by what the records call them; they are drawn in percent beside the losses.
_ACCURACIES = {"accuracy": "training", "validation": "held-out", "knn": "k-NN"}
_NO_LOSS = {"step", "epoch", "lr", "images_per_second", "grad_norm", "skipped", "spread", "rank", *_ACCURACIES}


def curves(records: list[dict[str, Any]], path: Path) -> None:
    """Losses over steps, and beside them accuracies where they were measured, else the learning rate."""
    train = [r for r in records if "loss" in r]
    if not train:
        return
    figure = blank(9, 3.4)
    left, right = figure.subplots(1, 2)
    for name in [k for k in train[0] if k not in _NO_LOSS]:
        known = [r for r in train if name in r]
        left.plot([r["step"] for r in known], [r[name] for r in known], label=name, linewidth=1.3)
    left.set(xlabel="step", title="loss", yscale="log")
    left.legend(frameon=False)
    scored = {name: [r for r in records if name in r] for name in _ACCURACIES}
    scored = {name: known for name, known in scored.items() if known}
    for name, known in scored.items():
        marker = None if name == "accuracy" else "o"  # of every record, not of a few moments
        values = [100 * r[name] for r in known]
        right.plot([r["step"] for r in known], values, marker=marker, markersize=3, label=_ACCURACIES[name])
    if scored:
        only = next(iter(scored)) if len(scored) == 1 else ""
        right.set(xlabel="step", title=f"{_ACCURACIES[only]} accuracy, %" if only else "accuracy, %")
        if not only:
            right.legend(frameon=False)
    else:
        right.plot([r["step"] for r in train], [r["lr"] for r in train])
        right.set(xlabel="step", title="learning rate")
    for axes in (left, right):
        plain(axes)
    save(figure, path)
