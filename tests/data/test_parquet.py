"""`parquet:PATH`: images and labels in columns of Parquet files."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dsdmae_builtin import parquet
from dsdmae_builtin.datasets import ParquetSettings
from dsdmae_cli.data.base import ImageDataset, UnreadableImage
from dsdmae_cli.errors import DataError


def png(value: int, dtype: Any = np.uint8, side: int = 8) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((side, side), value, dtype)).save(content, format="PNG")
    return content.getvalue()


def write(path: Path, columns: dict[str, Any], group: int = 4, metadata: dict[bytes, bytes] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(metadata) if metadata else table, path, row_group_size=group)
    return path


def settings(path: Path, **more: Any) -> ParquetSettings:
    return ParquetSettings(dataset=f"parquet:{path}", **more)


def greys(images: ImageDataset) -> list[int]:
    return [int(images.load(index)[0, 0, 0]) for index in range(len(images))]


def both(path: Path, **more: Any) -> tuple[ImageDataset, ImageDataset]:
    own = settings(path, **more)
    return parquet.build(own, "train"), parquet.build(own, "test")


def test_bytes_and_words(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"image": [png(n) for n in range(20)], "species": ["cat", "dog"] * 10})
    train, test = both(file)
    assert sorted(greys(train) + greys(test)) == list(range(20))
    assert train.classes == ("cat", "dog")
    assert train.labels is not None
    assert [value % 2 for value in greys(train)] == train.labels.tolist()
    assert train.notes == ("images are in column 'image'", "labels are those of column 'species', by its name")
    assert parquet.count(settings(file)) == (19, 19)
    assert parquet.native_size(settings(file)) == 8
    assert train.name(0) == f"{file}!row {greys(train)[0]}"


def test_the_hubs_form_with_splits_by_name(tmp_path: Path) -> None:
    """A struct of bytes and path, numbers whose names are in the metadata, files named after their split."""
    features = {"image": {"_type": "Image"}, "label": {"names": ["zebra", "ant"], "_type": "ClassLabel"}}
    about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    for name, first in (("train-00000-of-00002", 0), ("train-00001-of-00002", 10), ("test-00000-of-00001", 20)):
        rows = [{"bytes": png(n), "path": f"{n}.png"} for n in range(first, first + 10)]
        labels = pa.array([n % 2 for n in range(10)], pa.int64())
        write(tmp_path / "data" / f"{name}.parquet", {"image": rows, "label": labels}, metadata=about)
    train, test = both(tmp_path)
    assert (greys(train), greys(test)) == (list(range(20)), list(range(20, 30)))
    assert train.classes == ("zebra", "ant")
    assert train.labels is not None
    assert train.labels.tolist() == [0, 1] * 10


@pytest.mark.parametrize("heading", ["split", "Subset", "partition"])
def test_splits_by_a_column(heading: str, tmp_path: Path) -> None:
    words = ["Train"] * 5 + ["test"] * 2 + ["val"] * 1
    columns = {"image": [png(k) for k in range(8)], "target": ["cat", "dog"] * 4, heading: words}
    train, test = both(write(tmp_path / "a.parquet", columns))
    assert (len(train), greys(test)) == (5, [5, 6])
    said = " ".join(train.notes)
    assert f"splits are those of column {heading!r}, by its name" in said
    assert f"train (rows by column {heading!r}) is learned from and test" in said
    assert "1 image beside them left out (val)" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train"] * 4 + ["later"] * 4, "column 'split' is not taken for splits: it says later, train; understood is"),
        (["train"] * 4 + [None] * 4, "column 'split' is not taken for splits: it says nothing, train; understood is"),
        (["train"] * 8, ""),
        (["a"] * 4 + ["b"] * 4, ""),
    ],
)
def test_a_column_that_says_no_splits(words: list[str | None], said: str, tmp_path: Path) -> None:
    columns = {"image": [png(k) for k in range(8)], "label": [0, 1] * 4, "split": words}
    train, test = both(write(tmp_path / "a.parquet", columns))
    assert len(train) + len(test) == 8
    assert said in " ".join(train.notes)
    assert bool(said) == ("split" in " ".join(train.notes))


def test_missing_values(tmp_path: Path) -> None:
    rows = [None if n == 5 else {"bytes": None if n == 6 else png(n), "path": None} for n in range(8)]
    labels = pa.array([3, 3, None, 7, -1, 7, 7, 3], pa.int64())
    found = parquet.Tables(str(write(tmp_path / "a.parquet", {"image": rows, "label": labels})), None, None)
    assert found.labels is not None
    assert found.labels.classes == ("3", "7")
    assert found.labels.labels.tolist() == [0, 0, -1, 1, -1, 1, 1, 0]
    for index in (5, 6):
        with pytest.raises(UnreadableImage, match=f"row {index}.*no bytes in its row"):
            found.read(index)


def test_columns_are_named_or_asked_for(tmp_path: Path) -> None:
    columns = {"left": [png(1)] * 3, "right": [png(2)] * 3, "n": [0, 1, 2]}
    file = write(tmp_path / "a.parquet", columns)
    with pytest.raises(DataError, match=r"which column of .*it could be left, right; name it by --set data\.image_col"):
        parquet.build(settings(file), "train")
    train, _ = both(file, image_column="right", label_column="n")
    assert greys(train) == [2, 2]
    assert train.classes == ("0", "1", "2")
    with pytest.raises(DataError, match="has no such column of bytes; of bytes are left, right"):
        parquet.build(settings(file, image_column="n"), "train")
    with pytest.raises(DataError, match="has no such column; it has left, right, n"):
        parquet.build(settings(file, image_column="left", label_column="m"), "train")
    with pytest.raises(DataError, match="none holds bytes"):
        parquet.build(settings(write(tmp_path / "b.parquet", {"n": [1]})), "train")


def test_no_more_than_some_row_groups_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.parquet", {"image": [png(n) for n in range(40)]})
    monkeypatch.setattr(parquet, "KEPT_BYTES", 9 * len(png(0)))
    found = parquet.Tables(str(file), None, None)
    order = np.random.default_rng(0).permutation(40).tolist()
    assert [found.read(index) for index in order] == [png(index) for index in order]
    assert len(found._kept) == 2
    copy = pickle.loads(pickle.dumps(found))
    assert copy.read(39) == png(39)


def test_sixteen_bits_are_shown_by_their_range(tmp_path: Path) -> None:
    images = [png(value, np.uint16) for value in np.linspace(100, 1000, 24, dtype=int)]
    train, _ = both(write(tmp_path / "a.parquet", {"image": images}))
    values = greys(train)
    assert min(values) < 30
    assert max(values) > 225


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.parquet", "does not exist"),
        ("*.parquet", "matches nothing"),
        ("", "holds no .parquet files"),
        ("torn", "is no whole Parquet file"),
        ("empty", "holds no rows"),
    ],
)
def test_what_is_none(name: str, said: str, tmp_path: Path) -> None:
    if name == "torn":
        file = write(tmp_path / "a.parquet", {"image": [png(1)] * 9})
        file.write_bytes(file.read_bytes()[:-200])
    if name == "empty":
        write(tmp_path / "a.parquet", {"image": pa.array([], pa.binary())})
    path = tmp_path if name in ("torn", "empty") else tmp_path / name
    with pytest.raises(DataError, match=said):
        parquet.build(settings(path), "train")


def test_a_file_that_changes_while_in_use(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"image": [png(1)] * 9})
    found = parquet.Tables(str(file), None, None)
    write(file, {"image": [png(2)] * 10})
    with pytest.raises(DataError, match="changed while it was in use"):
        found.read(0)
