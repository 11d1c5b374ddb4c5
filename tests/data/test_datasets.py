"""The built-in datasets: official formats in small, real downloads from a local server, folders, archives."""

import gzip
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

from dsdmae_builtin import datasets, digits, folder, torchvision_datasets
from dsdmae_cli.data.base import UnreadableImage
from dsdmae_cli.errors import DataError
from dsdmae_cli.settings.models import DataSettings

SRC = Path(__file__).parents[2]


def crops(count: int, side: int) -> np.ndarray:
    """[count, side, side, 3] real photographs, all different."""
    photo = load_sample_image("china.jpg")
    random = np.random.default_rng(count)
    corners = random.integers(0, [photo.shape[0] - side, photo.shape[1] - side], (count, 2))
    return np.stack([photo[y : y + side, x : x + side] for y, x in corners])


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def tar_of(members: dict[str, bytes], mode: str = "w:gz", links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return buffer.getvalue()


def one_line(caught: pytest.ExceptionInfo[DataError]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def message_of(call: Callable[[], Any]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    return one_line(caught)


# -------------------------------------------------------------------------------- official formats, in small


def python2_pickle(value: Any) -> bytes:
    """Pickle as Python 2 and its NumPy did, byte strings and all: what the official CIFAR files are."""

    def put(item: Any) -> bytes:
        if isinstance(item, dict):
            return b"}(" + b"".join(put(k) + put(v) for k, v in item.items()) + b"u"
        if isinstance(item, list):
            return b"](" + b"".join(map(put, item)) + b"e"
        if isinstance(item, int):
            return b"J" + struct.pack("<i", item)
        if isinstance(item, np.ndarray):
            flags = b"U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00"
            dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03" + flags + b"tb"
            shape = b"(" + b"".join(put(side) for side in item.shape) + b"t"
            state = b"(K\x01" + shape + dtype + b"\x89" + put(item.tobytes()) + b"t"
            made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
            return made + state + b"b"
        content = item.encode("latin1") if isinstance(item, str) else item
        return b"T" + struct.pack("<i", len(content)) + content

    return b"\x80\x02" + put(value) + b"."


def planes(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def cifar10_files(images: np.ndarray, labels: list[int]) -> dict[str, bytes]:
    """data_batch_1..5 and test_batch with an equal share of the images each, and batches.meta."""
    names = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
    share = len(images) // len(names)
    files = {}
    for i, name in enumerate(names):
        part = slice(i * share, (i + 1) * share)
        files[name] = python2_pickle(
            {
                "batch_label": name,
                "labels": labels[part],
                "data": planes(images[part]),
                "filenames": [f"{k}.png" for k in range(share)],
            }
        )
    label_names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    files["batches.meta"] = python2_pickle({"num_cases_per_batch": share, "label_names": label_names, "num_vis": 3072})
    return files


def cifar100_files(images: np.ndarray, labels: list[int]) -> dict[str, bytes]:
    """train with two thirds of the images, test with the rest, and meta."""
    cut = len(images) * 2 // 3
    files = {
        name: python2_pickle(
            {
                "filenames": [f"{k}.png" for k in labels[part]],
                "batch_label": f"{name} batch 1 of 1",
                "fine_labels": labels[part],
                "coarse_labels": [k // 5 for k in labels[part]],
                "data": planes(images[part]),
            }
        )
        for name, part in {"train": slice(0, cut), "test": slice(cut, None)}.items()
    }
    fine = [f"fine {k}" for k in range(100)]
    files["meta"] = python2_pickle({"fine_label_names": fine, "coarse_label_names": [f"coarse {k}" for k in range(20)]})
    return files


def stl10_files(images: np.ndarray, labels: list[int]) -> dict[str, bytes]:
    """4 labelled, 3 test and 5 unlabelled images: column-major planes, labels from 1."""

    def x(part: np.ndarray) -> bytes:
        return np.ascontiguousarray(part.transpose(0, 3, 2, 1)).tobytes()

    def y(part: list[int]) -> bytes:
        return bytes(k + 1 for k in part)

    return {
        "train_X.bin": x(images[:4]),
        "train_y.bin": y(labels[:4]),
        "test_X.bin": x(images[4:7]),
        "test_y.bin": y(labels[4:7]),
        "unlabeled_X.bin": x(images[7:12]),
        "class_names.txt": "\n".join(
            ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
        ).encode(),
        "fold_indices.txt": b"0 1 2 3 \n" * 10,
    }


class Official:
    """A dataset in its official format: the archive, and torchvision's constants set to match."""

    def __init__(self, kind: Any, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        self.kind, self.files = kind, files
        self.filename, self.base = kind.filename, kind.base_folder
        self.patch = monkeypatch
        for group in ("train_list", "test_list"):
            sums = [[name, md5(files[name])] for name, _ in getattr(kind, group)]
            monkeypatch.setattr(kind, group, sums)
        if hasattr(kind, "meta"):
            monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(files[kind.meta["filename"]])})
        self.publish(tar_of({f"{self.base}/{name}": content for name, content in files.items()}))

    def publish(self, archive: bytes) -> None:
        self.archive = archive
        self.patch.setattr(self.kind, "tgz_md5", md5(archive))


class Server:
    """Serves a folder on 127.0.0.1 and counts what is fetched."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fetched: list[str] = []
        fetched = self.fetched

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                fetched.append(self.path)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(root)))
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


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


def settings(tmp_path: Path, **more: Any) -> DataSettings:
    return DataSettings(data_dir=tmp_path / "data", **more)


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


# -------------------------------------------------------------------------------------------------- ImageNet

WNIDS = ["n01440764", "n01443537"]


def jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG")
    return buffer.getvalue()


def devkit() -> bytes:
    """meta.mat with two classes and one that only groups them, and the classes of four validation images."""
    from scipy.io import savemat

    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height"]
    synsets = np.zeros(3, dtype=[(name, object) for name in [*fields, "num_train_images"]])
    synsets[0] = (1, WNIDS[0], "tench, Tinca tinca", "a fish", 0, np.array([]), 0, 3)
    synsets[1] = (2, WNIDS[1], "goldfish, Carassius auratus", "a fish", 0, np.array([]), 0, 3)
    synsets[2] = (3, "n00001740", "entity", "all", 2, np.array([1, 2]), 1, 0)
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets})
    return tar_of(
        {
            "ILSVRC2012_devkit_t12/data/meta.mat": buffer.getvalue(),
            "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": b"2\n1\n1\n2\n",
            "ILSVRC2012_devkit_t12/readme.txt": b"readme",
        }
    )


@pytest.fixture
def imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write official archives (or given ones) into a fresh folder."""
    from torchvision.datasets import imagenet as module

    photos = [jpeg(image) for image in crops(10, 40)]
    inner = {
        f"{wnid}.tar": tar_of({f"{wnid}_{k}.JPEG": photos[3 * i + k] for k in range(3)}, "w")
        for i, wnid in enumerate(WNIDS)
    }
    official = {
        "train": tar_of(inner, "w"),
        "val": tar_of({f"ILSVRC2012_val_{k + 1:08}.JPEG": photos[6 + k] for k in (2, 0, 3, 1)}, "w"),
        "devkit": devkit(),
    }

    def write(**other: bytes) -> Path:
        root = tmp_path / "imagenet"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        for part, content in {**official, **other}.items():
            name = module.ARCHIVE_META[part][0]
            monkeypatch.setitem(module.ARCHIVE_META, part, (name, md5(content)))
            (root / name).write_bytes(content)
        return root

    return write


def test_imagenet_from_archives(imagenet: Callable[..., Path]) -> None:
    root = imagenet()
    chosen = DataSettings(data_dir=root)
    train = torchvision_datasets.build_imagenet(chosen, "train")
    test = torchvision_datasets.build_imagenet(chosen, "test")
    images = [np.asarray(Image.open(io.BytesIO(jpeg(image)))) for image in crops(10, 40)]
    np.testing.assert_array_equal(np.stack([train.load(i) for i in range(6)]), images[:6])
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.classes == ("tench, Tinca tinca", "goldfish, Carassius auratus")
    assert train.name(4) == str(root / "train" / WNIDS[1] / f"{WNIDS[1]}_1.JPEG")
    assert train.arrays() is None
    assert test.labels.tolist() == [0, 0, 1, 1]  # validation images 2, 3, 1, 4 by class
    np.testing.assert_array_equal(np.stack([test.load(i) for i in range(4)]), [images[6 + k] for k in (1, 2, 0, 3)])
    assert sorted(p.name for p in root.iterdir() if not p.name.startswith("ILSVRC")) == [
        "meta.bin",
        "train",
        "val",
    ]
    for archive in root.glob("ILSVRC*"):  # what was prepared once needs no archive
        archive.unlink()
    assert len(torchvision_datasets.build_imagenet(chosen, "labelled")) == 6


def test_imagenet_absent_or_damaged(imagenet: Callable[..., Path], tmp_path: Path) -> None:
    message = message_of(lambda: torchvision_datasets.build_imagenet(settings(tmp_path), "train"))
    for part in (
        "ILSVRC2012_devkit_t12.tar.gz",
        "https://image-net.org",
        "folder:PATH",
        str(tmp_path / "data"),
    ):
        assert part in message
    root = imagenet()
    archive = root / "ILSVRC2012_img_train.tar"
    archive.write_bytes(archive.read_bytes()[:-1])
    message = message_of(lambda: torchvision_datasets.build_imagenet(DataSettings(data_dir=root), "train"))
    assert f"{archive} is damaged" in message
    assert not (root / "train").exists()


def test_imagenet_half_unpacked_is_not_taken_for_whole(imagenet: Callable[..., Path]) -> None:
    root = imagenet(train=tar_of({f"{WNIDS[0]}.tar": tar_of({"a.JPEG": b"x"}, "w"), f"{WNIDS[1]}.tar": b"?"}, "w"))
    assert "imagenet cannot be prepared" in message_of(
        lambda: torchvision_datasets.build_imagenet(DataSettings(data_dir=root), "train")
    )
    assert not (root / "train").exists()


@pytest.mark.parametrize("part", ["train", "inner", "val", "devkit"])
def test_imagenet_malicious_archives(imagenet: Callable[..., Path], tmp_path: Path, part: str) -> None:
    evil = tar_of({"../../../escaped": b"x"}, "w:gz" if part == "devkit" else "w")
    other = {"train": tar_of({f"{WNIDS[0]}.tar": evil}, "w")} if part == "inner" else {part: evil}
    root = imagenet(**other)
    split = "test" if part == "val" else "train"
    message = message_of(lambda: torchvision_datasets.build_imagenet(DataSettings(data_dir=root), split))
    assert "not a plain file inside the archive" in message
    assert not list(tmp_path.rglob("escaped"))
    assert not (root / split).exists()


# ---------------------------------------------------------------------------------------------------- digits


def test_digits() -> None:
    train, test = digits.build(DataSettings(), "train"), digits.build(DataSettings(), "test")
    assert (len(train), len(test)) == (1400, 397)
    assert train.arrays().shape == (1400, 16, 16, 3)
    assert train.arrays().dtype == np.uint8
    assert train.classes == tuple("0123456789")
    original = np.bincount(load_digits().target) / 1797
    for part in (train, test):
        assert np.abs(np.bincount(part.labels) / len(part) - original).max() < 0.01
    # The split is a promise: figures from two versions can be compared.
    assert md5(test.labels.astype("<i8").tobytes()) == "66ab875e5c943392c33d59329265b3f5"
    seen = {image.tobytes() for image in train.arrays()}
    assert not [i for i in range(len(test)) if test.load(i).tobytes() in seen]
    np.testing.assert_array_equal(digits.build(DataSettings(), "labelled").arrays(), train.arrays())
    image = train.load(0)
    image[:] = 0
    assert train.load(0).any()


# -------------------------------------------------------------------------------------- folders and archives


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def of(path: Path, **more: Any) -> DataSettings:
    return DataSettings(dataset=f"folder:{path}", **more)


def contents(dataset: folder.FolderImages) -> list[bytes]:
    return [dataset.load(i).tobytes() for i in range(len(dataset))]


PHOTOS = [png(image) for image in crops(24, 12)]
CLASSES = {f"{kind}/{k:02}.png": PHOTOS[12 * i + k] for i, kind in enumerate(("cat", "dog")) for k in range(12)}
SPLITS = {
    **{f"train/{kind}/sub/{k}.png": PHOTOS[3 * i + k] for i, kind in enumerate("abc") for k in range(3)},
    **{f"val/{kind}/{k}.png": PHOTOS[12 + 3 * i + k] for i, kind in enumerate("bd") for k in range(3)},
    "train/a/notes.txt": b"not an image",
    "train/.hidden/x.png": PHOTOS[0],
    "train/a/._x.png": b"resource fork",
    "loose.png": PHOTOS[1],
}
ARCHIVES = [".tar", ".tar.gz", ".tar.xz", ".tar.bz2", ".zip", "-stored.zip"]


def packed(source: Path, suffix: str, inside: str = "") -> Path:
    target = source.parent / f"{source.name}{'-in' if inside else ''}{suffix}"
    if suffix.endswith("zip"):
        method = zipfile.ZIP_STORED if "stored" in suffix else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(target, "w", method) as archive:
            for path in sorted(source.rglob("*"), reverse=True):  # an order that is not ours
                archive.write(path, f"{inside}{path.relative_to(source)}")
        return target
    with tarfile.open(target, f"w:{suffix.removeprefix('.tar').lstrip('.')}") as archive:  # type: ignore[call-overload]
        archive.add(source, inside or ".")
    return target


def test_splits_and_labels_from_folders(tmp_path: Path) -> None:
    root = write(tmp_path / "set", SPLITS)
    train, test = folder.build(of(root), "train"), folder.build(of(root), "test")
    assert [train.name(i) for i in (0, 8)] == [
        str(root / "train/a/sub/0.png"),
        str(root / "train/c/sub/2.png"),
    ]
    assert (len(train), len(test)) == (9, 6)
    assert train.classes == test.classes == ("a", "b", "c", "d")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert test.labels.tolist() == [1, 1, 1, 3, 3, 3]
    assert train.arrays() is None
    assert contents(folder.build(of(root), "labelled")) == contents(train)
    np.testing.assert_array_equal(train.load(0), np.asarray(Image.open(io.BytesIO(PHOTOS[0]))))


@pytest.mark.parametrize("suffix", ARCHIVES)
@pytest.mark.parametrize("inside", ["", "some/where/"])
@pytest.mark.parametrize("files", [CLASSES, SPLITS], ids=["classes", "splits"])
def test_archives_equal_the_folder(tmp_path: Path, files: dict[str, bytes], suffix: str, inside: str) -> None:
    root = write(tmp_path / "set", files)
    archive = packed(root, suffix, inside)
    before = sorted(tmp_path.rglob("*"))
    for split in ("train", "test"):
        expected, got = folder.build(of(root), split), folder.build(of(archive), split)
        assert contents(got) == contents(expected)
        assert (got.labels is None) == (expected.labels is None)
        assert got.labels.tolist() == expected.labels.tolist()
        assert got.classes == expected.classes
        assert got.name(0).startswith(f"{archive}!")
        assert contents(pickle.loads(pickle.dumps(got))) == contents(expected)
    assert folder.native_size(of(archive)) == folder.native_size(of(root)) == 12
    assert sorted(tmp_path.rglob("*")) == before


def test_held_out_images(tmp_path: Path) -> None:
    files = {f"{k}.png": PHOTOS[k] for k in range(24)}
    root = write(tmp_path / "a", files)
    backwards = write(tmp_path / "b", dict(reversed(files.items())))
    names = {}
    for split in ("train", "test"):
        one, two = (
            folder.build(of(root, holdout=0.25), split),
            folder.build(of(backwards, holdout=0.25), split),
        )
        names[split] = [Path(one.name(i)).name for i in range(len(one))]
        assert names[split] == [Path(two.name(i)).name for i in range(len(two))] == sorted(names[split])
        assert one.labels is None
        assert one.classes is None
    assert len(names["test"]) == 6
    assert sorted(names["train"] + names["test"]) == sorted(files)
    assert len(folder.build(of(root), "test")) == 1
    assert len(folder.build(of(root, holdout=0.99), "train")) == 1
    alone = write(tmp_path / "c", {"1.png": PHOTOS[0]})
    assert [len(folder.build(of(alone), split)) for split in ("train", "test")] == [1, 0]


def test_at_most_a_thousand_are_held_out() -> None:
    parts = folder.arrange([f"{k:06}.png" for k in range(30_000)], 0.5)
    assert (len(parts["train"].indices), len(parts["test"].indices)) == (29_000, 1000)
    assert 450 < (parts["test"].indices < 15_000).sum() < 550
    small = folder.arrange([f"{k:06}.png" for k in range(2000)], 0.05)
    assert len(small["test"].indices) == 100


def test_no_labels_unless_every_image_lies_in_a_class_folder(tmp_path: Path) -> None:
    loose = write(tmp_path / "loose", {**CLASSES, "x.png": PHOTOS[0]})
    assert folder.build(of(loose), "train").labels is None
    single = write(tmp_path / "single", {f"cat/{k}.png": PHOTOS[k] for k in range(4)})
    assert folder.build(of(single), "train").labels is None
    mixed = write(tmp_path / "mixed", {**{f"train/{k}": v for k, v in CLASSES.items()}, "test/1.png": PHOTOS[0]})
    assert folder.build(of(mixed), "train").classes == ("cat", "dog")
    assert folder.build(of(mixed), "test").labels is None


def test_test_folder_goes_before_validation(tmp_path: Path) -> None:
    files = {f"{split}/1.png": PHOTOS[k] for k, split in enumerate(("train", "validation", "val", "test"))}
    root = write(tmp_path / "set", files)
    for split in ("test", "val", "validation"):
        built = folder.build(of(root), "test")
        assert [built.name(i) for i in range(len(built))] == [str(root / split / "1.png")]
        shutil.rmtree(root / split)


def test_native_size(tmp_path: Path) -> None:
    def size(*shapes: tuple[int, int], **other: bytes) -> int:
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        images = {f"{k}.png": png(np.zeros((*shape, 3), np.uint8)) for k, shape in enumerate(shapes)}
        return folder.native_size(of(write(tmp_path / "s", {**images, **other})))

    assert size((32, 32), (32, 32)) == 32
    assert size((256, 256)) == 256
    assert size((257, 257)) == 224
    assert size((32, 48), (32, 48)) == 224
    assert size((32, 32), (48, 48)) == 224
    assert size((32, 32), **{"z.png": b"broken"}) == 32
    assert size(**{"z.png": b"broken"}) == 224
    assert size(*[(32, 32)] * 200) == 32


def test_tilde_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "pictures", CLASSES)
    assert len(folder.build(DataSettings(dataset="folder:~/pictures"), "train")) == 23


def test_links_pipes_and_odd_names(tmp_path: Path) -> None:
    root = write(tmp_path / "set", CLASSES)
    elsewhere = write(tmp_path / "elsewhere", {"1.png": PHOTOS[0]})
    (root / "cat" / "up").symlink_to(root)
    (root / "dog" / "other").symlink_to(root / "cat")
    (root / "self.png").symlink_to(root / "self.png")
    (root / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "linked").symlink_to(elsewhere)
    os.mkfifo(root / "pipe.png")
    odd = os.fsdecode(b"\xff \n.png")
    (root / odd).write_bytes(PHOTOS[1])
    built = folder.build(of(root, holdout=0.001), "train")
    names = [built.name(i).removeprefix(f"{root}/") for i in range(len(built))]
    held = folder.build(of(root, holdout=0.001), "test")
    names.append(held.name(0).removeprefix(f"{root}/"))
    assert {"linked/1.png", odd, "dog/gone.png", "self.png", "dog/other/00.png"} <= set(names)
    assert not [name for name in names if "pipe" in name or "up/" in name]
    unreadable = []
    for i in range(len(built)):
        try:
            built.load(i)
        except UnreadableImage as error:
            unreadable.append(error.name.rpartition("/")[2])
    assert set(unreadable) <= {"gone.png", "self.png"}


def test_messages_about_paths(tmp_path: Path) -> None:
    missing = message_of(lambda: folder.build(of(tmp_path / "missing"), "train"))
    assert f"{tmp_path / 'missing'} does not exist" in missing
    assert ".zip" in missing
    write(tmp_path, {"a.txt": b"some text " * 200, "e.tar": b"", "t/readme.md": b"x", "t/b.csv": b"x"})
    for name in ("a.txt", "e.tar"):
        message = message_of(lambda name=name: folder.build(of(tmp_path / name), "train"))
        assert "neither a folder nor an archive" in message
    empty = message_of(lambda: folder.build(of(tmp_path / "t"), "train"))
    assert "holds no images: 2 visible files" in empty
    for suffix in ARCHIVES:
        archive = packed(tmp_path / "t", suffix)
        assert "holds no images: 2 visible files" in message_of(lambda a=archive: folder.build(of(a), "train"))
    with gzip.open(tmp_path / "text.gz", "wb") as file:
        file.write(b"some text " * 200)
    assert "neither" in message_of(lambda: folder.build(of(tmp_path / "text.gz"), "train"))


@pytest.mark.parametrize("suffix", ARCHIVES)
def test_truncated_archives(tmp_path: Path, suffix: str) -> None:
    archive = packed(write(tmp_path / "set", CLASSES), suffix)
    content = archive.read_bytes()
    for keep in (0.3, 0.6):
        archive.write_bytes(content[: int(len(content) * keep)])
        assert "damaged" in message_of(lambda: folder.build(of(archive), "train"))


def test_damage_inside_a_zip_is_one_unreadable_image(tmp_path: Path) -> None:
    archive = packed(write(tmp_path / "set", CLASSES), ".zip")
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as opened:
        info = opened.getinfo("cat/05.png")
    content[info.header_offset + 60 : info.header_offset + 90] = bytes(30)
    archive.write_bytes(content)
    parts = [folder.build(of(archive), split) for split in ("train", "test")]
    bad = []
    for part in parts:
        for i in range(len(part)):
            try:
                part.load(i)
            except UnreadableImage as error:
                bad.append((error.name, error.reason))
    assert bad == [(f"{archive}!cat/05.png", "damaged in the archive")]


def test_zip_that_needs_a_password(tmp_path: Path) -> None:
    archive = packed(write(tmp_path / "set", CLASSES), ".zip")
    content = bytearray(archive.read_bytes())
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(b"cat/00.png"))
    content[at + 8] |= 1
    archive.write_bytes(content)
    assert "is encrypted" in message_of(lambda: folder.build(of(archive), "train"))


def test_a_compressed_tar_may_not_unpack_to_more_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = packed(write(tmp_path / "set", CLASSES), ".tar.xz")
    monkeypatch.setattr(folder, "MAX_UNPACKED_BYTES", 4096)
    message = message_of(lambda: folder.build(of(archive), "train"))
    assert "plain .tar or a .zip" in message


def test_hard_links_and_dangerous_names_in_tars(tmp_path: Path) -> None:
    root = write(tmp_path / "set", CLASSES)
    (root / "dog" / "same.png").hardlink_to(root / "cat" / "00.png")
    archive = packed(root, ".tar")
    with tarfile.open(archive, "a") as opened:
        for name in ("../../escaped.png", "/etc/absolute.png"):
            info = tarfile.TarInfo(name)
            info.size = len(PHOTOS[0])
            opened.addfile(info, io.BytesIO(PHOTOS[0]))
    everything = [folder.build(of(archive), split) for split in ("train", "test")]
    names = {part.name(i).partition("!")[2] for part in everything for i in range(len(part))}
    assert names == {*CLASSES, "dog/same.png", "etc/absolute.png"}
    expected = np.asarray(Image.open(io.BytesIO(CLASSES["cat/00.png"])))
    for part in everything:
        for i in range(len(part)):
            if part.name(i).endswith("same.png"):
                np.testing.assert_array_equal(part.load(i), expected)


def test_an_archive_that_changes_is_read_anew(tmp_path: Path) -> None:
    archive = packed(write(tmp_path / "set", CLASSES), ".zip")
    first = folder.build(of(archive), "train")
    shutil.rmtree(tmp_path / "set")
    packed(write(tmp_path / "set", {f"{k}.png": PHOTOS[k] for k in range(5)}), ".zip")
    assert len(folder.build(of(archive), "train")) == 4
    with pytest.raises(DataError, match="changed while it was in use"):
        pickle.loads(pickle.dumps(first)).load(0)


def _digest(dataset: folder.FolderImages) -> str:
    return md5(b"".join(contents(dataset)))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes(tmp_path: Path, method: str) -> None:
    root = write(tmp_path / "set", CLASSES)
    built = [folder.build(of(path), "train") for path in (root, *(packed(root, s) for s in ARCHIVES))]
    with multiprocessing.get_context(method).Pool(2) as pool:
        got = pool.map(_digest, built * 3, chunksize=1)
    assert set(got) == {_digest(built[0])}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    root = write(tmp_path / "set", CLASSES)
    (root / "cat").chmod(0)
    message = message_of(lambda: folder.build(of(root), "train"))
    (root / "cat").chmod(0o700)
    assert f"cannot read {root / 'cat'}: permission denied" in message


# ------------------------------------------------------------------------------------------ specs, real data


def python(code: str) -> str:
    path = os.pathsep.join([str(SRC), str(SRC / "plugins"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def test_specs_load_no_torch() -> None:
    loaded = json.loads(python("import dsdmae_builtin.datasets, sys, json; print(json.dumps(sorted(sys.modules)))"))
    assert not {"torch", "torchvision", "sklearn", "timm", "numpy", "PIL"} & set(loaded)
    code = (
        "import sys; from dsdmae_builtin import datasets, folder; from dsdmae_cli.plugins import load;"
        "from dsdmae_cli.settings.models import DataSettings;"
        f"print(load(datasets.FOLDER.image_size)(DataSettings(dataset='folder:{SRC / 'nothing'}')))"
    )
    with pytest.raises(subprocess.CalledProcessError) as caught:
        python(code)
    assert "does not exist" in caught.value.stderr
    python("import dsdmae_builtin.folder, dsdmae_builtin.digits, sys; assert 'torch' not in sys.modules")


def test_specs_name_what_exists() -> None:
    from dsdmae_cli.plugins import DatasetSpec, load

    specs = {name: spec for name, spec in vars(datasets).items() if isinstance(spec, DatasetSpec)}
    assert sorted(specs) == ["CIFAR10", "CIFAR100", "DIGITS", "FOLDER", "IMAGENET", "STL10"]
    for spec in specs.values():
        assert callable(load(spec.build))
        assert len(spec.summary) < 120
    sizes = [specs[name].image_size for name in ("CIFAR10", "CIFAR100", "STL10", "IMAGENET", "DIGITS")]
    assert sizes == [32, 32, 96, 224, 16]
    assert specs["DIGITS"].augment == {"crop_scale": None, "flip": False, "shift": 1}


def test_real_photographs_in_place(test_data: Path) -> None:
    source = of(test_data / "photos.tar")
    train, test = folder.build(source, "train"), folder.build(source, "test")
    assert (len(train), len(test)) == (900, 100)
    assert train.labels is None
    assert folder.native_size(source) == 224
    for i in range(0, 900, 60):
        image = train.load(i)
        assert image.shape[2] == 3
        assert image.std() > 5, train.name(i)


@pytest.mark.slow
def test_real_cifar_in_place(test_data: Path) -> None:
    source = of(test_data / "cifar10.tar.xz")
    train, test = folder.build(source, "train"), folder.build(source, "test")
    assert (len(train), len(test)) == (50_000, 10_000)
    assert len(train.classes) == 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert folder.native_size(source) == 32
