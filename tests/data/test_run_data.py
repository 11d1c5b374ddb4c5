"""The images of a run: opened once and decoded once, and the same pixels from wherever they are taken."""

from __future__ import annotations

import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assignments, cli, digit_folder, settings, words
from image_files import crops, png, write
from PIL import Image
from torch import Tensor

from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.data import decode, files, twins
from dsdmae_cli.data import to_rgb as by_pillow
from dsdmae_cli.data.open import choose, open_dataset, open_source, place
from dsdmae_cli.data.run_data import Labelled, RunData, labelled_indices, open_run_data
from dsdmae_cli.data.source import Batching, Unreadable
from dsdmae_cli.data.square import to_square
from dsdmae_cli.errors import DataError

CPU = torch.device("cpu")
RESIDENT = ("data.placement=resident",)
STREAMING = ("data.placement=streaming", "data.workers=0")


class Count:
    """How often each folder is listed and each image file decoded, and how often Pillow gives pixels to the program."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.listed: Counter[str] = Counter()
        self.decoded: Counter[str] = Counter()
        self.pixels = 0
        lock = threading.Lock()
        scandir, decode_file, to_rgb = os.scandir, decode.decode, by_pillow.to_rgb

        def listing(folder: Any = ".") -> Any:
            self.listed[str(folder)] += 1
            return scandir(folder)

        def decoding(source: Any, name: str, *how: Any) -> Any:
            with lock:
                self.decoded[name] += 1
            return decode_file(source, name, *how)

        def giving(image: Image.Image) -> Any:
            with lock:
                self.pixels += 1
            return to_rgb(image)

        monkeypatch.setattr(os, "scandir", listing)
        monkeypatch.setattr(files, "decode", decoding)
        monkeypatch.setattr(decode, "to_rgb", giving)


@pytest.mark.parametrize("more", [(), ("data.image_size=24",), ("data.crop_from=16", "data.image_size=12")])
def test_a_run_scans_its_folder_once_and_decodes_each_image_once(
    more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = digit_folder(tmp_path / "digits", train=42, test=10)
    given = [text for text in assignments(folder) if not text.startswith("data.image_size")]
    monkeypatch.setattr(twins, "MOST_HEADERS", 0)  # of small folders pixels are compared before
    count = Count(monkeypatch)
    code, _, err = cli(
        capfd, "pretrain", *words([*given, "train.knn_every=1", *more]), "--out", tmp_path / "run", "--json"
    )
    assert code == 0, err
    assert [count.listed[str(found)] for found in (folder, folder / "train", folder / "test" / "0")] == [1, 1, 1]
    assert count.decoded == {str(path): 1 for path in folder.rglob("*.png")}
    assert len(count.decoded) == count.pixels == 52


def test_a_run_that_streams_decodes_what_is_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = digit_folder(tmp_path / "digits")
    monkeypatch.setattr(twins, "MOST_HEADERS", 0)
    count = Count(monkeypatch)
    chosen = [*assignments(folder, *STREAMING), "train.knn_every=1", "train.epochs=1"]
    code, _, err = cli(capfd, "pretrain", *words(chosen), "--out", tmp_path / "run", "--json")
    assert code == 0, err
    assert count.listed[str(folder)] == 1
    assert count.pixels == 42 + 40 + 10  # the bank, five steps of eight, the test images
    assert {count.decoded[str(path)] for path in folder.glob("test/*/*.png")} == {1}


# -- the same pixels, wherever they come from


def opened(folder: Path, *more: str, most: int | None = 1000) -> RunData:
    data = resolve(settings(folder, *more).settings).data
    train = open_dataset(data, "train")
    batching = Batching(len(train), batch_size=8, micro_batch=8, seed=0)
    return open_run_data(train, data, batching, CPU, num_views=1, most=most, note=print, account=print)


def pixels(images: Any) -> Tensor:
    return torch.cat(list(images.split(7)))


def expected(folder: Path, split: str, indices: list[int], size: int) -> Tensor:
    dataset = open_dataset(settings(folder).settings.data, split)
    return torch.from_numpy(np.stack([to_square(dataset.load(i), size) for i in indices])).permute(0, 3, 1, 2)


PLACES = {
    "the tensor that is trained on": (*RESIDENT, "data.image_size=16"),
    "the same decoding, at another size": (*RESIDENT, "data.crop_from=16", "data.image_size=12"),
    "a decoding of its own": (*STREAMING, "data.image_size=12"),
}


@pytest.mark.parametrize("most", [1000, 20])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("broken", [0, 3])
def test_what_is_looked_at(place: str, most: int, broken: int, tmp_path: Path) -> None:
    folder = digit_folder(tmp_path / "digits")
    bad = sorted(folder.glob("train/*/*.png"))[4 : 4 + 2 * broken : 2]
    bad += sorted(folder.glob("test/*/*.png"))[1 : 1 + broken // 3]
    for path in bad:
        path.write_bytes(b"")
    found = opened(folder, *PLACES[place], "data.max_unreadable=0.5", most=most)
    size = int(PLACES[place][-1].partition("=")[2])
    for split, labelled in (("train", found.bank), ("test", found.queries)):
        dataset = open_dataset(settings(folder).settings.data, split)
        assert isinstance(labelled, Labelled)
        assert dataset.labels is not None
        there = [i for i in labelled_indices(dataset, most) if dataset.name(i) not in map(str, bad)]
        assert len(there) == len(labelled.images)
        assert torch.equal(pixels(labelled.images), expected(folder, split, there, size))
        assert labelled.labels.tolist() == dataset.labels[there].tolist()
    assert found.watched is found.queries.images  # type: ignore[union-attr]
    assert {*found.held_out_unreadable.reasons} == {str(path) for path in bad if "/test/" in str(path)}
    if "trained on" in place:
        assert {*found.unreadable.reasons} == {str(path) for path in bad if "/train/" in str(path)}
        images = found.bank.images  # type: ignore[union-attr]
        whole = images if most == 1000 else images.images  # type: ignore[union-attr]
        assert whole is found.source.images  # type: ignore[attr-defined]
        assert len(whole) == 42 - broken


def test_without_labels_a_few_test_images_are_watched_and_eight_are_pictures(tmp_path: Path) -> None:
    photographs = {
        f"{split}/{k}.png": png(image) for split in ("train", "test") for k, image in enumerate(crops(12, 16))
    }
    folder = write(tmp_path / "plain", photographs)
    found = opened(folder, most=5)
    assert (found.bank, found.queries) == (None, None)
    assert found.watched is not None
    assert (len(found.watched), len(found.pictures)) == (5, 8)
    assert opened(folder, most=None).watched is None
    assert torch.equal(opened(folder, most=None).pictures, found.pictures)
    every = {image.numpy().tobytes() for image in expected(folder, "test", list(range(12)), 16)}
    for looked_at in (found.watched, found.pictures):
        assert len({image.numpy().tobytes() for image in looked_at} & every) == len(looked_at)


@pytest.mark.parametrize("place", PLACES)
def test_one_image_of_each_kind_must_be_readable(place: str, tmp_path: Path) -> None:
    """Even where the limit on unreadable images is not passed."""
    for split, total, purpose, most in (("test", 20, "pictures", 8), ("train", 42, "labelled", 3)):
        folder = digit_folder(tmp_path / split, test=20)
        paths = sorted(folder.glob(f"{split}/*/*.png"))
        for index in choose(total, most, 0, purpose):
            paths[index].write_bytes(b"")
        which = "held-out" if split == "test" else "training"
        with pytest.raises(DataError, match=rf"none of {most} {which} images can be read \(first: .*: empty file\)"):
            opened(folder, *PLACES[place], "data.max_unreadable=0.5", most=3)


# -- labels


@pytest.mark.parametrize("placement", [RESIDENT, STREAMING])
def test_a_label_is_that_of_the_image_that_is_shown(placement: tuple[str, ...], tmp_path: Path) -> None:
    """Where an unreadable image is replaced by its neighbour of another class, too."""
    folder = digit_folder(tmp_path / "digits")
    last_of_its_class = sorted(folder.glob("train/3/*.png"))[-1]
    last_of_its_class.write_bytes(b"")
    plain = ("data.crop_scale=none", "data.flip=false", "data.shift=0")
    data = resolve(settings(folder, *placement, *plain, "data.max_unreadable=0.1").settings).data
    dataset = open_dataset(data, "train")
    assert dataset.labels is not None
    bad = [dataset.name(i) for i in range(len(dataset))].index(str(last_of_its_class))
    assert dataset.labels[bad] != dataset.labels[bad + 1]
    others = [i for i in range(len(dataset)) if i != bad]
    label_of = {dataset.load(i).tobytes(): int(dataset.labels[i]) for i in others}
    assert len(label_of) == 41

    unreadable = Unreadable(len(dataset), data)
    batching = Batching(len(dataset), batch_size=6, micro_batch=3, seed=0)
    source = open_source(dataset, data, place(dataset, data, CPU), batching, CPU, unreadable, labelled=True)
    seen = 0
    for step in source.steps(0):
        for batch in step:
            assert batch.labels is not None
            shown = ((batch.images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
            assert batch.labels.tolist() == [label_of[image.numpy().tobytes()] for image in shown]
            seen += len(shown)
    source.close()
    assert seen == (42 if placement is STREAMING else 36)
    assert list(unreadable.reasons) == [str(last_of_its_class)]
