"""CIFAR and STL-10: official formats in small, real downloads from a local server. ImageNet is in test_imagenet.py."""

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import crops, message_of, tar_of
from official import Official, Server, cifar10_files, cifar100_files, settings, stl10_files

from dsdmae_builtin import datasets, torchvision_datasets


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    root = tmp_path / "served"
    root.mkdir()
    running = Server(root)
    yield running
    running.stop()


LABELS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]


@pytest.fixture
def cifar10(monkeypatch: pytest.MonkeyPatch) -> Official:
    from torchvision.datasets import CIFAR10

    return Official(CIFAR10, cifar10_files(crops(12, 32), LABELS), monkeypatch)


def test_cifar10_is_downloaded_checked_and_read(
    tmp_path: Path, server: Server, cifar10: Official, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    (server.root / cifar10.filename).write_bytes(cifar10.archive)
    monkeypatch.setattr(cifar10.kind, "url", f"{server.address}/{cifar10.filename}")
    train = torchvision_datasets.build_cifar10(settings(tmp_path), "train")
    test = torchvision_datasets.build_cifar10(settings(tmp_path), "test")
    images = crops(12, 32)
    np.testing.assert_array_equal(train.arrays(), images[:10])
    np.testing.assert_array_equal(test.arrays(), images[10:])
    assert train.arrays().flags.c_contiguous
    np.testing.assert_array_equal(train.load(3), images[3])
    assert train.labels.tolist() == LABELS[:10]
    assert train.labels.dtype == np.int64
    assert train.classes[3] == "cat"
    assert train.name(7) == "cifar10 train image 7"
    assert len(pickle.loads(pickle.dumps(train))) == 10
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
    ]
    assert len([path for path in server.fetched if path]) == 2  # the redirect check and the file: not again for test
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""  # no progress bar where stderr is not a terminal
    labelled = torchvision_datasets.build_cifar10(settings(tmp_path, download=False), "labelled")
    np.testing.assert_array_equal(labelled.arrays(), train.arrays())


def test_cifar100_from_an_archive_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR100

    images = crops(9, 32)
    official = Official(CIFAR100, cifar100_files(images, [99, 0, 5, 7, 7, 42, 1, 2, 3]), monkeypatch)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / official.filename).write_bytes(official.archive)
    chosen = settings(tmp_path, download=False)
    train = torchvision_datasets.build_cifar100(chosen, "train")
    np.testing.assert_array_equal(train.arrays(), images[:6])
    assert train.labels.tolist() == [99, 0, 5, 7, 7, 42]
    assert len(train.classes) == 100
    test = torchvision_datasets.build_cifar100(chosen, "test")
    np.testing.assert_array_equal(test.arrays(), images[6:])
    assert [test.classes[label] for label in test.labels] == ["fine 1", "fine 2", "fine 3"]


def test_stl10_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import STL10

    images = crops(12, 96)
    official = Official(STL10, stl10_files(images, LABELS), monkeypatch)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / official.filename).write_bytes(official.archive)

    def built(split: str, **more: Any) -> Any:
        chosen = datasets.Stl10Settings(data_dir=tmp_path / "data", download=False, **more)
        return torchvision_datasets.build_stl10(chosen, split)

    unlabelled = built("train")
    np.testing.assert_array_equal(unlabelled.arrays(), images[7:])
    np.testing.assert_array_equal(unlabelled.load(2), images[9])
    assert unlabelled.labels.tolist() == [-1] * 5
    both = built("train", stl10_split="train+unlabeled")
    np.testing.assert_array_equal(both.arrays(), np.concatenate([images[:4], images[7:]]))
    assert both.labels.tolist() == [*LABELS[:4], *[-1] * 5]
    for labelled in (
        built("labelled"),
        built("train", stl10_split="train"),
        built("labelled", stl10_split="train"),
    ):
        np.testing.assert_array_equal(labelled.arrays(), images[:4])
        assert labelled.labels.tolist() == LABELS[:4]
    test = built("test")
    np.testing.assert_array_equal(test.arrays(), images[4:7])
    assert test.classes[2] == "car"


def test_absent_dataset_says_how_to_get_it(tmp_path: Path, cifar10: Official) -> None:
    message = message_of(lambda: torchvision_datasets.build_cifar10(settings(tmp_path, download=False), "train"))
    for part in (
        "cifar10 was not found",
        str(tmp_path / "data"),
        "data.download",
        cifar10.filename,
        cifar10.kind.url,
    ):
        assert part in message
    assert not (tmp_path / "data").exists()


def test_failed_downloads_are_one_line_and_leave_nothing(
    tmp_path: Path, server: Server, cifar10: Official, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build() -> Any:
        return torchvision_datasets.build_cifar10(settings(tmp_path), "train")

    monkeypatch.setattr(cifar10.kind, "url", f"{server.address}/{cifar10.filename}")
    message = message_of(build)
    assert "404" in message or "Not Found" in message
    assert str(tmp_path / "data") in message
    (server.root / cifar10.filename).write_bytes(cifar10.archive[:-10])
    assert "not the official file" in message_of(build)
    monkeypatch.setattr(cifar10.kind, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    assert "refused" in message_of(build)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path, cifar10: Official) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    message = message_of(lambda: torchvision_datasets.build_cifar10(settings(tmp_path), "train"))
    assert "cifar10 cannot be prepared" in message
    assert str(tmp_path / "data") in message


class Exploding:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_with_another_md5_is_never_loaded(tmp_path: Path, cifar10: Official) -> None:
    data, trap = tmp_path / "data", tmp_path / "pickle-was-loaded"
    base = data / cifar10.base
    chosen = settings(tmp_path, download=False)
    for name in cifar10.files:
        shutil.rmtree(data, ignore_errors=True)
        base.mkdir(parents=True)
        for other, content in cifar10.files.items():
            (base / other).write_bytes(content)
        assert len(torchvision_datasets.build_cifar10(chosen, "train")) == 10
        (base / name).write_bytes(pickle.dumps(Exploding(trap)))
        message = message_of(lambda: torchvision_datasets.build_cifar10(chosen, "train"))
        assert "damaged or incomplete" in message
        assert not trap.exists()
    (data / cifar10.filename).write_bytes(cifar10.archive)  # a good archive mends it
    assert len(torchvision_datasets.build_cifar10(chosen, "train")) == 10


def test_official_archive_with_other_files_in_it(tmp_path: Path, cifar10: Official) -> None:
    cifar10.publish(tar_of({f"{cifar10.base}/data_batch_1": b"other"}))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / cifar10.filename).write_bytes(cifar10.archive)
    message = message_of(lambda: torchvision_datasets.build_cifar10(settings(tmp_path), "train"))
    assert "official checksums" in message


EVIL: list[dict[str, Any]] = [
    {"members": {"../escaped": b"x"}},
    {"members": {"cifar-10-batches-py/../../../escaped": b"x"}},
    {"members": {"/ABSOLUTE/escaped": b"x"}},
    {"members": {}, "links": {"cifar-10-batches-py/out": ".."}},
    {"members": {}, "links": {"cifar-10-batches-py": "/tmp"}},
]


@pytest.mark.parametrize("evil", EVIL)
def test_malicious_archives_write_nothing_outside(tmp_path: Path, cifar10: Official, evil: dict[str, Any]) -> None:
    absolute = str(tmp_path / "outside")
    members = {name.replace("/ABSOLUTE", absolute): content for name, content in evil["members"].items()}
    good = {f"{cifar10.base}/{name}": content for name, content in cifar10.files.items()}
    cifar10.publish(tar_of({**members, **good}, links=evil.get("links")))
    data = tmp_path / "data"
    data.mkdir()
    (data / cifar10.filename).write_bytes(cifar10.archive)
    message = message_of(lambda: torchvision_datasets.build_cifar10(settings(tmp_path), "train"))
    assert "not a plain file inside the archive" in message
    assert [p.name for p in data.iterdir()] == [cifar10.filename]
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
