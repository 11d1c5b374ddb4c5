"""Figures of scores: they are drawn for few classes and many, whole files, and show what they were given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsdmae_cli.figures import scores

RNG = np.random.default_rng(0)


def _drawn(path: Path) -> np.ndarray:
    """Pixels of a figure that is a whole PNG and not a blank page; nothing else lies beside it."""
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert 200 < pixels.shape[0] < 2400
    assert 300 < pixels.shape[1] < 2400
    assert (pixels != 255).any(axis=2).mean() > 0.01
    return pixels


@pytest.mark.parametrize("num_classes", [2, 10, 100, 1000])
def test_confusion_and_bars(tmp_path: Path, num_classes: int) -> None:
    names = [f"class number {i}, with a synonym" for i in range(num_classes)]
    names[0] = "caf\udce9"  # of a folder's name that is no UTF-8
    matrix = RNG.integers(0, 3, (num_classes, num_classes)) + np.diag(RNG.integers(5, 50, num_classes))
    matrix[1] = 0  # a class that the test set lacks
    scores.confusion(matrix, names, tmp_path / "a" / "confusion.png")
    _drawn(tmp_path / "a" / "confusion.png")
    shares = [None, *(RNG.random(num_classes - 1).tolist())]
    scores.per_class(shares, names, tmp_path / "b" / "classes.png")
    if num_classes > 2:
        _drawn(tmp_path / "b" / "classes.png")


def test_a_perfect_matrix_is_darker_than_an_even_one(tmp_path: Path) -> None:
    names = list("abc")
    scores.confusion(10 * np.eye(3, dtype=np.int64), names, tmp_path / "a" / "x.png")
    scores.confusion(np.ones((3, 3), dtype=np.int64), names, tmp_path / "b" / "x.png")
    dark = [(_drawn(tmp_path / k / "x.png").sum(axis=2) < 250).sum() for k in "ab"]
    assert dark[0] > dark[1]


def test_selection_and_curves(tmp_path: Path) -> None:
    rates = (0.01, 0.1, 1.0)
    scores.selection(
        dict(zip(rates, (0.3, 0.5, 0.0), strict=True)), 0.1, "base learning rate", tmp_path / "a" / "x.png"
    )
    _drawn(tmp_path / "a" / "x.png")
    loss = [[2.3 / (e + 1), 2.0 / (e + 1), None] for e in range(5)]
    names = [f"{rate:g}" for rate in rates]
    scores.head_curves(loss, RNG.random((5, 3)).tolist(), names, 1, tmp_path / "b" / "x.png")
    _drawn(tmp_path / "b" / "x.png")
    scores.head_curves([row[:1] for row in loss], [], ["0.01"], 0, tmp_path / "c" / "x.png")
    _drawn(tmp_path / "c" / "x.png")


@pytest.mark.parametrize("num_classes", [10, 100])
def test_scatter(tmp_path: Path, num_classes: int) -> None:
    labels = RNG.integers(0, num_classes, 500)
    names = [str(i) for i in range(num_classes)]
    scores.scatter(RNG.normal(size=(500, 2)), labels, names, "two components", tmp_path / "x.png")
    _drawn(tmp_path / "x.png")


@pytest.mark.parametrize(("count", "side"), [(1, 16), (11, 224)])
def test_mistakes(tmp_path: Path, count: int, side: int) -> None:
    images = np.zeros((count, 3, side, side), dtype=np.uint8)
    images[:, 1] = 200  # a green that no text or axis has
    names = ["a class with a name that is far too long"] * count
    scores.mistakes(images, names, names, [0.99] * count, tmp_path / "x.png")
    green = (_drawn(tmp_path / "x.png") == (0, 200, 0)).all(axis=2).mean()
    assert green > 0.02 * count


def test_names_are_shortened_to_fit() -> None:
    assert scores.shortened("tench, Tinca tinca") == "tench"
    assert scores.shortened("a" * 30) == "a" * 17 + "…"
    assert scores.shortened("caf\udce9") == "caf\\udce9"
