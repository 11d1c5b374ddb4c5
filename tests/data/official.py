"""Official files of CIFAR and STL-10 in small, and a server to fetch them from."""

import struct
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import md5, tar_of

from dsdmae_cli.settings.models import DataSettings


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


def settings(tmp_path: Path, **more: Any) -> DataSettings:
    return DataSettings(data_dir=tmp_path / "data", **more)
