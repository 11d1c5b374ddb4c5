"""IDX files: byte for byte as MNIST's, plain and packed; each way in which one can be wrong is named."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from dsdmae_builtin import idx
from dsdmae_cli.errors import DataError
from dsdmae_cli.settings.models import DataSettings

RNG = np.random.default_rng(0)
IMAGES = {"train": RNG.integers(0, 256, (12, 28, 28), np.uint8), "t10k": RNG.integers(0, 256, (5, 28, 28), np.uint8)}
LABELS = {"train": np.arange(12, dtype=np.uint8) % 10, "t10k": np.arange(5, dtype=np.uint8)}


def packed(array: np.ndarray) -> bytes:
    """The official form, written with struct alone."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(params=["", ".gz"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    for prefix in IMAGES:
        for name, array in (("images-idx3", IMAGES[prefix]), ("labels-idx1", LABELS[prefix])):
            content = packed(array)
            (tmp_path / f"{prefix}-{name}-ubyte{request.param}").write_bytes(
                gzip.compress(content) if request.param else content
            )
    return tmp_path


def of(folder: Path) -> DataSettings:
    return DataSettings(dataset=f"idx:{folder}")


@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("labelled", "train"), ("test", "t10k")])
def test_pixels_and_labels_are_the_files(folder: Path, split: str, prefix: str) -> None:
    found = idx.build(of(folder), split)
    assert len(found) == len(IMAGES[prefix])
    for index in range(len(found)):
        for channel in range(3):
            np.testing.assert_array_equal(found.load(index)[..., channel], IMAGES[prefix][index])
    assert found.labels is not None
    assert found.labels.tolist() == LABELS[prefix].tolist()
    assert found.classes[3] == "3"
    assert idx.native_size(of(folder)) == 28


def test_classes_have_names(folder: Path) -> None:
    (folder / "classes.txt").write_text("\n".join(f"kind {i}" for i in range(10)))
    assert idx.build(of(folder), "test").classes[2] == "kind 2"
    (folder / "classes.txt").write_text("one\ntwo\n")
    with pytest.raises(DataError, match="names 2 classes and labels go up to 9"):
        idx.build(of(folder), "train")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it begins with nothing"),
        (b"\x89PNG" + bytes(40), "it begins with 89 50 4e 47, expected 00 00 08 03"),
        (packed(IMAGES["train"])[:-1], "has 9407 values and its head says 9408"),
        (packed(IMAGES["train"]) + b"0", "has more than 9408 values and its head says 9408"),
        (packed(IMAGES["train"].astype(np.float32)[:1, :1, :1]), "has more than 1 values and its head says 1"),
        (packed(IMAGES["train"][:0]), "is empty: its head says 0 x 28 x 28"),
        (packed(IMAGES["train"][:7]), "has 7 images and 12 labels"),
        (None, "has neither train-images-idx3-ubyte nor train-images-idx3-ubyte.gz"),
    ],
)
def test_what_is_wrong_with_a_file(folder: Path, content: bytes | None, said: str) -> None:
    [path] = folder.glob("train-images*")
    path.unlink()
    if content is not None:
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    with pytest.raises(DataError, match=said):
        idx.build(of(folder), "train")


def test_a_torn_gz(folder: Path) -> None:
    for path in folder.glob("train-images*"):
        path.unlink()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(packed(IMAGES["train"]))[:-20])
    with pytest.raises(DataError, match=r"cannot read .*; fetch it anew"):
        idx.build(of(folder), "train")


def test_labels_mean_the_same_in_both_splits(folder: Path) -> None:
    """Without names each split counted its own."""
    for name in folder.glob("t10k-labels*"):
        content = packed(np.array([0, 1, 2, 11, 3], np.uint8))
        name.write_bytes(gzip.compress(content) if name.suffix == ".gz" else content)
    for split in ("train", "test"):
        assert idx.build(of(folder), split).classes == tuple(map(str, range(12)))


def test_names_that_are_no_text(folder: Path) -> None:
    (folder / "classes.txt").write_bytes(b"\xff\xfeK\xe4fer\n")
    with pytest.raises(DataError, match=r"cannot read classes\.txt in .*; mend it"):
        idx.build(of(folder), "train")
