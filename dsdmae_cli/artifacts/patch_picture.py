"""The picture of `dsdmae embed --pool tokens --picture`: patches of a folder's images as colours, and those like a
chosen one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from dsdmae_cli import files
from dsdmae_cli.artifacts.embedding import Embedding
from dsdmae_cli.data.base import ImageDataset
from dsdmae_cli.data.square import middle, to_square
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.evaluation.patches import colours, foreground_colours, likeness
from dsdmae_cli.figures.patches import Patch, heat, patches
from dsdmae_cli.report import shown
from dsdmae_cli.settings.size import Size

MOST_IMAGES = 8
_FEWEST_PATCHES = 4


@dataclass(frozen=True)
class Wanted:
    """What to draw and where.

    Attributes:
        path: of the picture, a .png file.
        point: "PICTURE:X,Y", a patch whose likes are looked for; None = no patch.
    """

    path: Path
    point: str | None = None


@dataclass(frozen=True)
class Looked:
    """Images of a dataset that features are of, in the features' order."""

    dataset: ImageDataset
    kept: list[int]


def wanted(picture: Path | None, point: str | None, pool: str, force: bool) -> Wanted | None:
    """What --picture and --point ask for; None = nothing.

    Raises:
        SettingsError: they do not go together, or the path cannot be.
    """
    if picture is None:
        if point is not None:
            raise SettingsError(f"--point {point} is a patch of a picture that is drawn; add --picture FILE.png")
        return None
    if pool != "tokens":
        raise SettingsError(f"--picture colours patches, and --pool {pool} keeps none; add --pool tokens")
    if picture.suffix != ".png":
        raise SettingsError(f"--picture {picture} must end in .png")
    if picture.is_dir() or (picture.exists() and not force):
        raise SettingsError(f"--picture {picture} exists; choose another path, or replace it with --force")
    if point is not None:
        _named(point)
    return Wanted(picture, point)


def check_patches(grid: tuple[int, int], name: str) -> None:
    """See that an encoder has patches to colour.

    Raises:
        SettingsError: it has too few.
    """
    if grid[0] * grid[1] < _FEWEST_PATCHES:
        raise SettingsError(
            f"--picture colours patches, and {name} makes a grid of {grid[0]}x{grid[1]} of an image; give it larger"
            " images (--image-size), or name an encoder with more patches"
        )


def draw(asked: Wanted, whole: Embedding, looked: Sequence[Looked], size: Size, advice: str) -> dict[str, Any]:
    """Draw the picture; what was drawn, as --json prints it.

    Without a point, 8 images spread evenly over all that were embedded; with one, its image and the 7 others that hold
    the patches nearest to it.

    Args:
        whole: with tokens for features.
        looked: what they are of, in order.
        size: at which the network saw the images.

    Raises:
        SettingsError: there is no such point.
        RunFailed: it cannot be written.
    """
    tokens = whole.features
    places = [(of.dataset, index) for of in looked for index in of.kept]
    told: dict[str, Any] = {"picture": str(asked.path)}
    shown = np.linspace(0, len(tokens) - 1, min(MOST_IMAGES, len(tokens))).round().astype(int).tolist()
    framed: list[Patch | None] = []
    last: list[tuple[str, Float[np.ndarray, "m rows columns 3"]]] = []
    if asked.point is not None:
        image, patch = _patch_of(asked.point, whole.names, places, size, tokens.shape[1:3])
        cosines = likeness(tokens, image, *patch)
        best = cosines.reshape(len(tokens), -1).max(axis=1)
        best[image] = np.inf
        shown = np.argsort(-best, kind="stable")[:MOST_IMAGES].tolist()
        nearest = [divmod(int(cosines[i].argmax()), tokens.shape[2]) for i in shown]
        framed = [patch, *nearest[1:]]
        told["nearest"] = [
            {
                "picture": whole.names[i],
                "row": row,
                "column": column,
                "cosine": round(float(cosines[i, row, column]), 4),
            }
            for i, (row, column) in zip(shown[1:], nearest[1:], strict=True)
        ]
        last = [("like the\nframed patch\nof the first", heat(cosines[shown]))]
    of_all, of_front = colours(tokens), foreground_colours(tokens)
    told["variance_shares"] = [round(share, 4) for share in of_all.shares]
    rows = [(f"three\ncomponents\n({sum(of_all.shares):.0%})", of_all.rgb[shown])]
    if of_front is not None:
        rows.append(("components of\nthe foreground", of_front.rgb[shown]))
    images = [to_square(places[i][0].load(places[i][1]), size) for i in shown]
    with files.explained(asked.path, advice):
        asked.path.parent.mkdir(parents=True, exist_ok=True)
    patches(images, [*rows, *last], asked.path, framed, advice)
    return told


def drawn_in_words(said: dict[str, Any]) -> list[str]:
    """The lines for people of what `draw` told, and of the picture of attention."""
    lines = [f"drew           {said[key]}" for key in ("picture", "attention_picture") if key in said]
    lines += [
        f"nearest        {shown(near['picture'], one_line=True)}: row {near['row']}, column {near['column']}, cosine"
        f" {near['cosine']:.3f}"
        for near in said.get("nearest", ())
    ]
    return lines


def _named(point: str) -> tuple[str, float, float]:
    """The picture and the pixel that --point names."""
    name, colon, place = point.rpartition(":")
    parts = place.split(",")
    try:
        x, y = (float(part) for part in parts)
    except ValueError:
        x = y = float("nan")
    if not colon or not name or not (x >= 0 and y >= 0):
        raise SettingsError(
            f"--point {point} is not allowed; it takes PICTURE:X,Y, pixels from the left and from the top, as"
            " street.png:120,80"
        )
    return name, x, y


def _patch_of(
    point: str, names: list[str], places: list[tuple[ImageDataset, int]], size: Size, grid: tuple[int, ...]
) -> tuple[int, Patch]:
    """The image and (row, column) of the patch at a point of a picture.

    Raises:
        SettingsError: no picture or several have that name, or the network did not see the point.
    """
    name, x, y = _named(point)
    found = [i for i, of in enumerate(names) if of == name] or [
        i for i, of in enumerate(names) if of.endswith((f"/{name}", f"!{name}"))
    ]
    if len(found) != 1:
        what = f"{len(found)} of the pictures" if found else "none of the pictures"
        some = ", ".join(names[i] for i in (found or range(len(names)))[:3])
        raise SettingsError(f"--point {point}: {what} have the name {name}; name one of them, as {some}")
    dataset, index = places[found[0]]
    width, height = dataset.size(index)
    tall, wide = middle(height, width, size)
    across, down = (x - (width - wide) / 2) / wide, (y - (height - tall) / 2) / tall
    if not (0 <= across < 1 and 0 <= down < 1):
        left, top = (width - wide) / 2, (height - tall) / 2
        raise SettingsError(
            f"--point {point}: of that picture of {width}x{height} pixels the network sees x from {left:g} to"
            f" {left + wide:g} and y from {top:g} to {top + tall:g}; name a point there"
        )
    return found[0], (int(down * grid[0]), int(across * grid[1]))
