"""`parquet:PATH`: images and labels in columns of Parquet files."""

from __future__ import annotations

import io
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dsdmae_builtin import parquet
from dsdmae_builtin.datasets import ParquetSettings
from dsdmae_cli.data import twins
from dsdmae_cli.data.base import ImageDataset, UnreadableImage
from dsdmae_cli.data.decode import decode
from dsdmae_cli.data.splits import WORDLESS
from dsdmae_cli.data.twins import find_twins
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
        (["train"] * 4 + ["later"] * 4, "column 'split' of splits says later, train; understood is one of train"),
        (["train"] * 4 + [None] * 4, "column 'split' of splits says (none), train; understood is one of train"),
        (["train"] * 8, ""),
        (["a"] * 4 + ["b"] * 4, ""),
    ],
)
def test_a_column_that_says_no_splits(words: list[str | None], said: str, tmp_path: Path) -> None:
    columns = {"image": [png(k) for k in range(8)], "label": [0, 1] * 4, "split": words}
    path = write(tmp_path / "a.parquet", columns)
    if said:
        with pytest.raises(DataError, match=re.escape(said)):
            both(path)
    train, test = both(path, splits="none")
    assert len(train) + len(test) == 8
    train, test = both(path, splits="auto" if not said else f"train,{words[-1] or WORDLESS}")
    assert len(train) + len(test) == 8
    assert (len(train) == 4) == bool(said)


def test_a_column_of_splits_turned_off_and_named(tmp_path: Path) -> None:
    """--splits, for columns as for folders."""
    words = ["train"] * 4 + ["test"] * 2 + ["validation"] * 2
    columns = {"image": [png(k) for k in range(8)], "label": [0, 1] * 4, "split": words}
    path = write(tmp_path / "a.parquet", columns)
    train, test = both(path, splits="none")
    assert (len(train), len(test)) == (7, 1)
    assert "column 'split' is not taken for splits (data.splits = none)" in train.notes
    train, test = both(path, splits="train,validation")
    assert (greys(train), greys(test)) == ([0, 1, 2, 3], [6, 7])
    with pytest.raises(DataError, match=r"data\.splits = 'train,later'"):
        both(path, splits="train,later")


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ([3] * 4, "'image' holds int64, and none holds one file's bytes a row"),
        ([[png(1)]] * 4, "'image' holds lists, and none holds one file's bytes a row"),
    ],
)
def test_columns_of_what_is_no_image_are_named(column: list[Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        both(write(tmp_path / "a.parquet", {"image": column, "label": [0, 1] * 2}))


def test_labels_that_are_none(tmp_path: Path) -> None:
    """Lists are no labels, nor are what pandas writes for nothing and what it makes of integers beside that."""
    images = [png(n) for n in range(8)]
    path = write(tmp_path / "a.parquet", {"image": images, "label": [[0], [1]] * 4})
    train, _ = both(path)
    assert train.labels is None
    assert "no labels: column 'label' holds lists, and a label is a number or a word" in train.notes
    with pytest.raises(DataError, match=r"data\.label_column = 'label': in .* it holds lists"):
        both(path, label_column="label")
    numbers = [0.0, 10.0, float("nan"), 2.0] * 2
    files = parquet.Tables(str(write(tmp_path / "b.parquet", {"image": images, "label": numbers})), None, None)
    assert files.labels is not None
    assert files.labels.classes == ("0", "2", "10")
    assert files.labels.labels.tolist() == [0, 2, -1, 1] * 2
    words = ["cat", "", "dog", "NaN"] * 2
    files = parquet.Tables(str(write(tmp_path / "c.parquet", {"image": images, "label": words})), None, None)
    assert files.labels is not None
    assert files.labels.classes == ("cat", "dog")
    train, _ = both(write(tmp_path / "d.parquet", {"image": images, "label": ["cat"] * 8}))
    assert train.labels is None
    assert "no labels: all that there are say 'cat', and one class is none to tell apart" in train.notes
    assert len(both(write(tmp_path / "e" / "A.PARQUET", {"image": images}).parent)[0]) == 7


def test_missing_values(tmp_path: Path) -> None:
    rows = [None if n == 5 else {"bytes": None if n == 6 else png(n), "path": None} for n in range(8)]
    labels = pa.array([3, 3, None, 7, -1, 7, 7, 3], pa.int64())
    found = parquet.Tables(str(write(tmp_path / "a.parquet", {"image": rows, "label": labels})), None, None)
    assert found.labels is not None
    assert found.labels.classes == ("3", "7")
    assert found.labels.labels.tolist() == [0, 0, -1, 1, -1, 1, 1, 0]
    for index in (5, 6):
        with pytest.raises(UnreadableImage, match=f"row {index}.*neither bytes nor a path in its row"):
            found.read(index)


@pytest.mark.parametrize("struct", [False, True])
def test_paths_are_followed_within_the_tables_folder(tmp_path: Path, *, struct: bool) -> None:
    (tmp_path / "set" / "pictures").mkdir(parents=True)
    for place in ("set/pictures/a.png", "set/b.png", "c.png"):
        (tmp_path / place).write_bytes(png(len(place)))
    (tmp_path / "set" / "out.png").symlink_to(tmp_path / "c.png")
    inside = ["pictures/a.png", "./b.png", str(tmp_path / "set" / "b.png"), "pictures/../b.png"]
    outside, missing = ["../c.png", str(tmp_path / "c.png"), "out.png"], ["gone.png", "pictures", "a\0.png", "x" * 300]
    names = [*inside, *outside, *missing]
    column = [{"bytes": None, "path": name} for name in names] if struct else names
    found = parquet.Tables(str(write(tmp_path / "set" / "t.parquet", {"image": column})), None, None)
    assert [decode(found.read(row), "x")[0, 0, 0] for row in range(4)] == [18, 9, 9, 9]
    for row in range(4, len(names)):
        with pytest.raises(UnreadableImage) as caught:
            found.read(row)
        assert ("leads out of" if row < 7 else "is no file in") in str(caught.value)
        assert f"row {row}: " in str(caught.value)


@pytest.mark.parametrize("struct", [False, True])
def test_a_picture_that_a_path_names_is_part_of_the_fingerprint(tmp_path: Path, *, struct: bool) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "b.png").write_bytes(png(1))
    names = ["a.png", "b.png"] * 4
    column = [{"bytes": None, "path": name} for name in names] if struct else names
    train, _ = both(write(tmp_path / "t.parquet", {"image": column}))
    before = train.fingerprint()
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(png(2, side=9))
    assert train.fingerprint() != before


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
    with pytest.raises(DataError, match="none holds one file's bytes"):
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


def test_files_that_hold_images_in_another_way(tmp_path: Path) -> None:
    """The second of two files, structs beside bytes, ended in a traceback."""
    write(tmp_path / "a.parquet", {"image": [{"bytes": png(n), "path": None} for n in range(5)]})
    write(tmp_path / "b.parquet", {"image": [png(n) for n in range(5, 10)]})
    train, test = both(tmp_path)
    assert sorted(greys(train) + greys(test)) == list(range(10))
    write(tmp_path / "c.parquet", {"image": [1, 2, 3]})
    with pytest.raises(DataError, match=r"'image': .*c\.parquet has no such column of bytes"):
        both(tmp_path)


def test_features_are_of_one_column(tmp_path: Path) -> None:
    """Of two columns of images in the same files those of the other were found among what is kept."""
    file = write(tmp_path / "a.parquet", {"left": [png(n) for n in range(9)], "right": [png(n + 9) for n in range(9)]})
    left, right = (parquet.build(settings(file, image_column=column), "train") for column in ("left", "right"))
    assert greys(left) != greys(right)
    assert left.fingerprint() != right.fingerprint()
    assert left.fingerprint() == parquet.build(settings(file, image_column="left"), "train").fingerprint()


def test_labels_of_bytes_and_hidden_files(tmp_path: Path) -> None:
    columns = {"image": [png(n) for n in range(8)], "label": [b"cat", "hält".encode()] * 4}
    write(tmp_path / "a.parquet", columns)
    write(tmp_path / ".cache" / "a.parquet", columns)
    train, test = both(tmp_path)
    assert train.classes == ("cat", "hält")
    assert len(train) + len(test) == 8


def test_what_is_no_file_is_not_said_to_be_no_twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"image": [png(n % 3) for n in range(8)], "split": ["train", "test"] * 4}
    train, test = both(write(tmp_path / "a.parquet", columns))
    found = find_twins(train, test)
    assert found is not None
    assert found.count == 4
    monkeypatch.setattr(twins, "MOST_HEADERS", 7)
    assert find_twins(train, test) is None, "neither files nor pixels were compared"


def test_numbers_that_mean_other_classes_in_other_files(tmp_path: Path) -> None:
    """Names of the first file were taken for those of all."""

    def named(file: str, names: list[str] | None) -> None:
        features = {"label": {"names": names, "_type": "ClassLabel"}} if names else {}
        metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
        columns = {"image": [png(n) for n in range(6)], "label": [0, 1, -1, 0, 1, 0]}
        write(tmp_path / file, columns, metadata=metadata)

    named("a.parquet", ["cat", "dog"])
    named("b.parquet", ["dog", "cat"])
    files = parquet.Tables(str(tmp_path), None, None)
    assert files.labels is not None
    assert files.labels.classes == ("cat", "dog")
    assert files.labels.labels.tolist() == [0, 1, -1, 0, 1, 0, 1, 0, -1, 1, 0, 1]
    named("b.parquet", None)
    with pytest.raises(DataError, match=r"b\.parquet does not say what the numbers of its labels mean, as other files"):
        parquet.Tables(str(tmp_path), None, None)
