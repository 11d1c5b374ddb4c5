"""ImageNet: its official archives in small, whole, damaged and malicious."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import crops, jpeg, md5, message_of, tar_of
from official import settings
from PIL import Image

from dsdmae_builtin import torchvision_datasets
from dsdmae_cli.settings.models import DataSettings

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
