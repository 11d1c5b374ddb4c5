"""hf:NAME on datasets that are made here and saved to disk; nothing is fetched."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from dsdmae_hf import rows
from dsdmae_hf.spec import HFSettings
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


def test_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be opened: .*save_to_disk wrote") as caught:
        built(tmp_path / "none")
    assert "\n" not in str(caught.value)


def test_its_promises(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": table(0, 20), "test": table(20, 6)}).save_to_disk(tmp_path / "saved")
    check_dataset(f"hf:{tmp_path / 'saved'}")
