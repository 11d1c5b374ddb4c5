"""What a method is given and what it predicts, as training goes on: the paper's Fig. 2, for any method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

from dsdmae_cli.figures.sheet import Rows, box, save, sheet

_TILE = 96
_RESTORED = "restored"

T = TypeVar("T", np.ndarray, Tensor)


class Moments:
    """Rows of pictures of the same images at several moments; kept as small files, so that a resumed run has them all.

    Each moment leaves `NAME-step-N.png`, its rows below each other and the images themselves last; `NAME.png` shows
    all moments: a row that never changed once, one that did once a moment. NAME is "restored" for a method that gives
    pixels back, "shown" for one that predicts something else, unless another one is given.
    """

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self.folder, self.name = folder, name

    def add(self, step: int, shown: Mapping[str, Float[Tensor, "b c h w"]], images: Float[Tensor, "b d h w"]) -> Path:
        """Write a moment's picture, and the overview of all moments so far; the file of the moment.

        Args:
            shown: rows by name, as Method.show gives them, in [-1, 1].
            images: what they are of. More than three channels are shown by the first three, fewer as grey by the first.
        """
        self.folder.mkdir(exist_ok=True)
        name = self.name or (_RESTORED if _RESTORED in shown else "shown")
        original = [_tile(image) for image in images]
        rows = [(row, [_fitted(_tile(i), original[0].size) for i in batch]) for row, batch in shown.items()]
        rows.append((_original(images.shape[1]), original))
        file = self.folder / f"{name}-step-{step:08d}.png"
        save(sheet(rows), file, [row for row, _ in rows])
        self._overview(name, [row for row, _ in rows], original[0].size, len(images))
        return file

    def _overview(self, name: str, names: list[str], tile: tuple[int, int], columns: int) -> None:
        moments: dict[int, list[list[Image.Image]]] = {}
        for file in sorted(self.folder.glob(f"{name}-step-*.png")):
            with Image.open(file) as page:
                crops = [[page.crop(box(x, y, tile)) for x in range(columns)] for y in range(len(names))]
            moments[int(file.stem.rsplit("-", 1)[1])] = crops
        first = next(iter(moments.values()))
        moving = [y for y in range(len(names)) if any(rows[y] != first[y] for rows in moments.values())]
        page_rows: Rows = []
        for y, row in enumerate(names):
            if y not in moving:
                page_rows.append((row, first[y]))
                continue
            for step, rows in moments.items():
                when = f"step {step}" if step else "before\ntraining"
                page_rows.append((when if row == _RESTORED else f"{row}\n{when}", rows[y]))
        save(sheet(page_rows), self.folder / f"{name}.png")


def _original(channels: int) -> str:
    """The last row's name, which says what is shown of images that are not RGB."""
    shown = {1: "", 3: ""}.get(channels, "\nband 1" if channels < 3 else f"\nbands 1-3\nof {channels}")
    return f"original{shown}"


def visible(image: Shaped[T, "c ..."]) -> Shaped[T, "3 ..."]:
    """What a person is shown of an image: its first three channels, or the first one as grey."""
    return image[:3] if len(image) >= 3 else image[[0, 0, 0]]


def _tile(image: Float[Tensor, "c h w"]) -> Image.Image:
    pixels = ((visible(image).clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    longer = max(pixels.shape[:2])
    whole = max(1, _TILE // longer)  # enlarged by whole factors, so that pixels stay square and sharp
    tile = Image.fromarray(np.repeat(np.repeat(pixels, whole, 0), whole, 1))
    return tile if longer <= 2 * _TILE else fitted(tile, 2 * _TILE, Image.Resampling.LANCZOS)


def fitted(tile: Image.Image, longer: int, kernel: Image.Resampling) -> Image.Image:
    """Resized so that the longer side has so many pixels."""
    share = longer / max(tile.size)
    return tile.resize((round(tile.width * share), round(tile.height * share)), kernel)


def _fitted(tile: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A row may be larger than the images it is of (histograms are); on the sheet all tiles have one size."""
    return tile if tile.size == size else tile.resize(size, Image.Resampling.LANCZOS)
