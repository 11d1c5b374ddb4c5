"""CIFAR, STL-10 and ImageNet: official formats in small, real downloads from a local server."""

import io
import pickle
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import crops, jpeg, md5, message_of, tar_of
from PIL import Image

from dsdmae_builtin import datasets, torchvision_datasets
from dsdmae_cli.settings.models import DataSettings

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
