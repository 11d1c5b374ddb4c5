"""Test images that are training images too: by bytes, by pixels, in arrays and archives; and only those."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from helpers import cli
from image_files import crops, of, png, write
from PIL import Image
from test_files import packed

from dsdmae_builtin import folder
from dsdmae_cli.data import twins
from dsdmae_cli.data.arrays import ArrayImages
from dsdmae_cli.data.base import ImageDataset, Subset
from dsdmae_cli.data.twins import Twins, find_twins
from dsdmae_cli.evaluation.judging import twins_line

IMAGES = crops(8, 12)


def bmp(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "BMP")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training images; of four test images one is a file of theirs, one has the same pixels, one is damaged."""
    train = {f"train/{'ab'[k % 2]}/{k}.png": png(image) for k, image in enumerate(IMAGES[:6])}
    test = {"same": png(IMAGES[1]), "damaged": png(IMAGES[2])[:70], "new": png(IMAGES[7])}
    files = {**train, "test/b/pixels.bmp": bmp(IMAGES[4]), **{f"test/a/{k}.png": v for k, v in test.items()}}
    return write(tmp_path_factory.mktemp("twins") / "set", files)


def splits(path: Path) -> tuple[ImageDataset, ImageDataset]:
    return folder.build(of(path), "train"), folder.build(of(path), "test")


def names(found: Twins | None) -> list[tuple[str, str]]:
    assert found is not None
    return [(test.rpartition("/")[2], train.rpartition("/")[2]) for test, train in found.pairs]


def test_bytes_and_pixels_in_a_folder_and_in_archives(root: Path) -> None:
    for path in (root, packed(root, ".zip"), packed(root, ".tar")):
        found = find_twins(*splits(path))
        assert names(found) == [("same.png", "1.png"), ("pixels.bmp", "4.png")]
        assert found is not None
        assert (found.count, found.total) == (2, 4)
    assert "2 of 4 test images are among the training images" in found.words()


def test_where_pixels_cost_too_much_bytes_are_compared(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins, "MOST_PIXELS", 100)
    assert names(find_twins(*splits(root))) == [("same.png", "1.png")]
    monkeypatch.setattr(twins, "MOST_IMAGES", 9)
    assert find_twins(*splits(root)) is None


def test_pretraining_and_its_dry_run_compare_pixels(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    small = ["--preset", "quick", "--epochs", "1", "--batch-size", "4", "--set", "backbone.depth=1"]
    small += ["--set", "train.knn_every=none", "--set", "data.max_unreadable=0.5"]
    code, said, err = cli(capfd, "pretrain", root, *small, "--dry-run")
    assert code == 0, err
    assert "repeated      2 of 4 test images are among the training images (" in said
    code, _, err = cli(capfd, "pretrain", root, *small, "--out", tmp_path / "run")
    assert code == 0, err
    assert "warning: 2 of 4 test images are among the training images" in err
    monkeypatch.setattr(twins, "MOST_PIXELS", 100)
    code, said, err = cli(capfd, "pretrain", root, *small, "--dry-run")
    assert code == 0, err
    assert "1 of 4 test images" in said
    assert "; files alone were compared, since there are too many pixels" in said


def test_no_twins(root: Path) -> None:
    train, _ = splits(root)
    rest = Subset(train, np.array([0, 1])), Subset(train, np.array([2, 3]))
    found = find_twins(*rest)
    assert found == Twins(0, 2, ())
    assert found.words() == ""
    for count, said in (
        (1, "1 test image is a training image too"),
        (1234, "1,234 test images are training images too"),
    ):
        assert twins_line({"test_images_trained_on": {"count": count}}) == [f"seen before    {said}"]
    assert Twins(1500, 2000, ()).words().startswith("1,500 of 2,000 test images are")
    assert names(find_twins(Subset(train, np.array([3, 5])), Subset(train, np.array([4, 5])))) == [("5.png", "5.png")]


def test_arrays() -> None:
    labels = np.zeros(8, dtype=np.int64)
    train = ArrayImages(IMAGES, labels, ("a",), "train")
    test = ArrayImages(np.concatenate([IMAGES[5:6], IMAGES[:1] // 2]), labels[:2], ("a",), "test")
    assert find_twins(train, test) == Twins(1, 2, (("test image 0", "train image 5"),))
    other = ArrayImages(IMAGES[:, :6], labels, ("a",), "test")
    assert find_twins(train, other) == Twins(0, 8, ())
