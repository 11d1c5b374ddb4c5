"""hf:NAME on datasets that are made here and saved to disk; nothing is fetched."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from dsdmae_hf import rows
from dsdmae_hf.spec import HFSettings
from hub import hub
from PIL import Image

from dsdmae_cli.data.base import ImageDataset
from dsdmae_cli.errors import DataError
from dsdmae_cli.testing import check_dataset


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def table(first: int, count: int) -> Any:
    images = [Image.fromarray(np.full((8, 8, 3), first + n, np.uint8)) for n in range(count)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["zebra", "ant"])})
    return datasets.Dataset.from_dict({"image": images, "label": [n % 2 for n in range(count)]}, features=features)


def greys(images: ImageDataset) -> list[int]:
    return [int(images.load(index)[0, 0, 0]) for index in range(len(images))]


def built(path: Path, split: str = "train", **more: Any) -> ImageDataset:
    return rows.build(HFSettings(dataset=f"hf:{path}", **more), split)


def test_splits_and_labels(tmp_path: Path) -> None:
    parts = {"train": table(0, 20), "validation": table(40, 4), "test": table(20, 6)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    train, test = built(tmp_path / "saved"), built(tmp_path / "saved", "test")
    assert (greys(train), greys(test)) == (list(range(20)), list(range(20, 26)))
    assert train.classes == ("zebra", "ant")
    assert train.labels is not None
    assert train.labels.tolist() == [0, 1] * 10
    assert train.name(3) == f"hf:{tmp_path / 'saved'} train row 3"
    assert "split train is learned from and test evaluated on" in train.notes
    assert "left out: validation" in train.notes
    other = built(tmp_path / "saved", "test", hf_splits="train,validation")
    assert greys(other) == [40, 41, 42, 43]
    assert rows.native_size(HFSettings(dataset=f"hf:{tmp_path / 'saved'}")) == 8
    assert pickle.loads(pickle.dumps(train)).load(7)[0, 0, 0] == 7
    with pytest.raises(DataError, match="has train, validation, test; give two of them"):
        built(tmp_path / "saved", hf_splits="train,none")


def test_one_split_holds_some_out(tmp_path: Path) -> None:
    table(0, 20).save_to_disk(tmp_path / "saved")
    train, test = built(tmp_path / "saved"), built(tmp_path / "saved", "test")
    assert (len(train), len(test)) == (19, 1)
    assert sorted(greys(train) + greys(test)) == list(range(20))


def test_columns(tmp_path: Path) -> None:
    made = table(0, 6).add_column("other", [b"x"] * 6).rename_column("image", "left")
    made = made.add_column("n", [0, 5, -1, 0, 5, 5]).remove_columns("label")
    made.save_to_disk(tmp_path / "saved")
    assert built(tmp_path / "saved").classes is None
    assert built(tmp_path / "saved", label_column="n").classes == ("0", "5")
    with pytest.raises(DataError, match=r"data\.label_column = 'm': .* has the columns"):
        built(tmp_path / "saved", label_column="m")
    with pytest.raises(DataError, match=r"which column of .* holds the images\? it could be left"):
        built(tmp_path / "saved", image_column="n")


def test_structs_of_bytes_are_images_too(tmp_path: Path) -> None:
    """As Parquet files that another library wrote are read."""
    rows_ = table(0, 6).cast_column("image", datasets.Image(decode=False))
    plain = {"picture": [{"bytes": row["image"]["bytes"], "path": "a.png"} for row in rows_], "n": list(range(6))}
    datasets.Dataset.from_dict(plain).save_to_disk(tmp_path / "saved")
    assert sorted(greys(built(tmp_path / "saved")) + greys(built(tmp_path / "saved", "test"))) == list(range(6))


def test_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be opened: .*save_to_disk wrote") as caught:
        built(tmp_path / "none")
    assert "\n" not in str(caught.value)


# What a process of its own finds; the library reads the Hub's address when it is imported.
PROGRAM = """
import sys
from dsdmae_cli.errors import DataError
from dsdmae_hf import rows
from dsdmae_hf.spec import HFSettings
for name in sys.argv[1:]:
    try:
        train, test = (rows.build(HFSettings(dataset=name), split) for split in ("train", "test"))
        print([int(images.load(index)[0, 0, 0]) for images in (train, test) for index in range(len(images))])
        print(train.classes, train.labels.tolist(), test.name(1))
    except DataError as error:
        print(error)
"""


def test_a_name_on_the_hub(tmp_path: Path) -> None:
    """As the Hub has most image datasets: Parquet files of each split, and nothing else."""
    files = {}
    for split, first, count in (("train", 0, 20), ("test", 100, 6)):
        table(first, count).to_parquet(tmp_path / "part")
        files[f"data/{split}-00000-of-00001.parquet"] = (tmp_path / "part").read_bytes()
    with hub("me/things", files) as address:
        environ = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", PROGRAM, "hf:me/things", "hf:me/nothing"]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    grey, about, absent = done.stdout.splitlines()
    assert grey == str([*range(20), *range(100, 106)])
    assert about == f"('zebra', 'ant') {[0, 1] * 10} hf:me/things test row 1"
    assert absent.startswith("hf:me/nothing cannot be opened: ")
    assert absent.endswith("give a name on the Hub, or a folder that save_to_disk wrote")


def test_its_promises(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": table(0, 20), "test": table(20, 6)}).save_to_disk(tmp_path / "saved")
    check_dataset(f"hf:{tmp_path / 'saved'}")


def test_what_is_no_label(tmp_path: Path) -> None:
    """A list of labels ended in a traceback; an empty word was a class."""
    made = table(0, 6).remove_columns("label")
    made.add_column("label", [[0], [1, 2]] * 3).save_to_disk(tmp_path / "lists")
    found = built(tmp_path / "lists")
    assert found.labels is None
    assert any(note.startswith("no labels: column 'label' holds List") for note in found.notes)
    with pytest.raises(DataError, match=r"'label': in hf:.* holds List, and a label is a number or a word"):
        built(tmp_path / "lists", label_column="label")
    made.add_column("label", ["cat", "", None, "dog", "cat", "dog"]).save_to_disk(tmp_path / "words")
    found = built(tmp_path / "words")
    assert found.classes == ("cat", "dog")
    assert found.labels is not None
    assert (found.labels == -1).sum() == 2
    made.add_column("label", ["cat"] * 6).save_to_disk(tmp_path / "one")
    assert any("one class is none to tell apart" in note for note in built(tmp_path / "one").notes)
