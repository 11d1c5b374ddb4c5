"""WebDataset's tar shards: which of their members are images, what labels them, what is said of broken ones."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers import cli, digit_folder, one_line, words
from PIL import Image

from dsdmae_cli.config.compose import load
from dsdmae_cli.data import shard_index, shards
from dsdmae_cli.data.base import ImageDataset
from dsdmae_cli.data.files import FileImages, open_files
from dsdmae_cli.data.open import open_dataset
from dsdmae_cli.data.shards import Shards, expanded
from dsdmae_cli.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(shard_index, "cache_folder", lambda: folder)
    return folder


def png(value: int, side: int = 8) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(content, format="PNG")
    return content.getvalue()


def write(path: Path, members: Mapping[str, bytes] | list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def labelled(path: Path, first: int, count: int = 6) -> Path:
    """A shard of images whose grey is their number, and whose class is their number modulo 3."""
    members = [
        member
        for n in range(first, first + count)
        for member in ((f"{n:06d}.png", png(n)), (f"{n:06d}.cls", str(n % 3).encode()), (f"{n:06d}.txt", b"words"))
    ]
    return write(path, members)


def dataset(path: Path | str, split: str = "train") -> ImageDataset:
    return open_dataset(load(assignments=[f"data.dataset=folder:{path}"], environ={}).settings.data, split)


def greys(images: ImageDataset) -> list[int]:
    return [int(images.load(index)[0, 0, 0]) for index in range(len(images))]


def test_a_folder_of_shards_is_one_dataset(tmp_path: Path) -> None:
    for split, start in (("train", 0), ("val", 100)):
        for number in range(3):
            labelled(tmp_path / split / f"{number:04d}.tar", start + 6 * number)
    (tmp_path / "train" / "stats.json").write_text("{}")
    train, test = dataset(tmp_path), dataset(tmp_path, "test")
    assert greys(train) == list(range(18))
    assert greys(test) == list(range(100, 118))
    assert train.classes == test.classes == ("0", "1", "2")
    assert train.labels is not None
    np.testing.assert_array_equal(train.labels, np.arange(18) % 3)
    assert train.name(7) == f"{tmp_path}/train/0001.tar!000007.png"
    assert train.size(7) == (8, 8)
    assert any("36 .txt" in note and "1 .json" in note for note in train.notes)
    assert "labels are those of .cls or .json beside the images" in train.notes
    assert {path.name for path in tmp_path.iterdir()} == {"train", "val"}  # read in place


@pytest.mark.parametrize(
    ("train", "test"),
    [("train-{:04d}", "val-{:04d}"), ("imagenet_Training_{}", "imagenet_valid_{}"), ("0{}.train", "0{}.dev")],
)  # fmt: skip
def test_splits_in_the_names_of_shards(train: str, test: str, tmp_path: Path) -> None:
    for number in range(2):
        labelled(tmp_path / f"{train.format(number)}.tar", 6 * number)
        labelled(tmp_path / f"{test.format(number)}.tar", 100 + 6 * number)
    assert sorted(greys(dataset(tmp_path))) == list(range(12))
    found = dataset(tmp_path / "*.tar", "test")
    assert sorted(greys(found)) == list(range(100, 112))
    assert found.classes == ("0", "1", "2")
    words = [note for note in found.notes if "is learned from" in note]
    assert len(words) == 1
    assert words[0].startswith("train" if "T" not in train else "training")
    both = load(assignments=[f"data.dataset=folder:{tmp_path}", "data.splits=none"], environ={}).settings.data
    assert len(open_dataset(both, "train")) == 23


def test_names_of_shards_that_are_not_understood_are_asked_about(tmp_path: Path) -> None:
    for name, first in (("train-0", 0), ("train-1", 6), ("holdout-0", 12), ("extra-0", 18)):
        labelled(tmp_path / f"{name}.tar", first)
    with pytest.raises(
        DataError, match=r"holds the shards extra, holdout, train, of which train may be splits"
    ) as error:
        dataset(tmp_path)
    assert str(error.value).endswith("by --splits train,TEST, or that they are one set by --splits none")
    said = load(assignments=[f"data.dataset=folder:{tmp_path}", "data.splits=train,holdout"], environ={}).settings.data
    assert greys(open_dataset(said, "test")) == list(range(12, 18))
    train = open_dataset(said, "train")
    assert greys(train) == list(range(12))
    assert "6 images beside them left out (extra)" in train.notes
    for name in ("holdout-0", "extra-0"):
        (tmp_path / f"{name}.tar").unlink()
    assert len(dataset(tmp_path)) + len(dataset(tmp_path, "test")) == 12  # all of them are for training


def test_class_folders_below_splits_in_names(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / f"{split}.tar", {f"{kind}/{n}.png": png(n) for kind in ("cat", "dog") for n in range(3)})
    assert dataset(tmp_path).classes == ("cat", "dog")
    assert len(dataset(tmp_path)) == len(dataset(tmp_path, "test")) == 6


@pytest.mark.parametrize("pattern", ["s-*.tar", "s-{0000..0002}.tar", "s-{0000,0001,0002}.tar", "{s,t}-*.tar"])
def test_globs_and_braces(pattern: str, tmp_path: Path) -> None:
    for number in range(3):
        labelled(tmp_path / f"s-{number:04d}.tar", 6 * number)
    both = greys(dataset(tmp_path / pattern)) + greys(dataset(tmp_path / pattern, "test"))
    assert sorted(both) == list(range(18))


def test_a_pattern_alone_is_a_path(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    labelled(tmp_path / "s-0.tar", 0, 30)
    given = ["train.epochs=1", "train.batch_size=4", "backbone.patch_size=4", "data.image_size=8"]
    code, out, err = cli(capfd, "pretrain", tmp_path / "s-*.tar", "--dry-run", *words(given))
    assert (code, "28 training and 2 held-out images in 3 classes" in out + err) == (0, True), err


def test_labels_of_json_and_of_both(tmp_path: Path) -> None:
    members = {
        "a.png": png(0), "a.json": json.dumps({"label": "cat", "width": 8}).encode(),
        "b.png": png(1), "b.json": json.dumps({"class": "dog"}).encode(),
        "c.png": png(2), "c.json": json.dumps({"label": "dog"}).encode(), "c.cls": b"cat\n",
        "d.png": png(3), "d.json": json.dumps({"caption": "no label"}).encode(),
        "e.png": png(4), "e.json": b"not json",
    }  # fmt: skip
    found = Shards([write(tmp_path / "s.tar", members)])
    assert found.labels is not None
    assert found.labels.classes == ("cat", "dog")
    assert found.labels.labels.tolist() == [0, 1, 0, -1, -1]
    assert "2 of 5 images have no label beside them" in found.labels.notes
    assert found.passed_over == {".json": 2}


def test_class_numbers_are_in_their_order(tmp_path: Path) -> None:
    members = {
        f"{n:02d}.{kind}": png(n) if kind == "png" else str(n).encode() for n in range(12) for kind in ("png", "cls")
    }
    found = Shards([write(tmp_path / "s.tar", members)])
    assert found.labels is not None
    assert found.labels.classes == tuple(map(str, range(12)))
    assert found.labels.labels.tolist() == list(range(12))


def test_class_folders_inside_shards(tmp_path: Path) -> None:
    for number in range(2):
        write(
            tmp_path / f"{number}.tar", {f"{kind}/{number}{n}.png": png(n) for kind in ("cat", "dog") for n in range(5)}
        )
    assert dataset(tmp_path).classes == ("cat", "dog")


def test_one_image_a_key(tmp_path: Path) -> None:
    members = [
        ("7.png", png(7)),
        ("7.mask.png", png(1)),
        ("7.jpg", png(2)),
        ("8.left.png", png(8)),
        ("8.right.png", png(9)),
    ]
    found = Shards([write(tmp_path / "s.tar", members)])
    assert list(found.names) == ["7.png", "8.left.png", "8.right.png"]
    assert any("1 image has the key of another in the same shard" in note for note in found.notes)
    assert found.passed_over == {".*.png": 1}


def test_a_single_tar_with_labels(tmp_path: Path) -> None:
    assert dataset(labelled(tmp_path / "one.tar", 0)).classes == ("0", "1", "2")
    assert not isinstance(open_files(write(tmp_path / "plain.tar", {"a.png": png(1)})), Shards)


def test_notes_name_what_is_odd(tmp_path: Path) -> None:
    labelled(tmp_path / "a.tar", 0)
    labelled(tmp_path / "b.tar", 3)  # keys 3, 4, 5 stand in both
    write(tmp_path / "c.tar", {"words.txt": b"none"})
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "d.tar").write_bytes(whole[: len(whole.rstrip(b"\0")) + 512 - len(whole.rstrip(b"\0")) % 512])
    found = Shards([tmp_path / f"{name}.tar" for name in "abcd"])
    said = " | ".join(found.notes)
    assert f"1 of 4 shards hold no images ({tmp_path}/c.tar)" in said
    assert f"1 of 4 shards end without tar's end mark and may have been cut ({tmp_path}/d.tar)" in said
    assert "9 images have a key that another shard has too" in said
    assert len(found.names) == 18


def test_broken_shards_are_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = labelled(tmp_path / "a.tar", 0).read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[:2100])
    (tmp_path / "c.tar").write_bytes(b"this is no tar at all" * 100)
    code, _, err = cli(capfd, "pretrain", tmp_path, "--dry-run")
    assert code == 2
    line = one_line(err)
    assert f"shard {tmp_path}/b.tar is torn" in line
    assert f"shard {tmp_path}/c.tar is no tar" in line
    (tmp_path / "b.tar").unlink()
    (tmp_path / "c.tar").write_bytes(b"\x1f\x8b" + whole)
    with pytest.raises(DataError, match=r"c\.tar is compressed by gzip"):
        open_files(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("x-*.tar", "matches nothing"),
        ("{0000..0003}.tar", "2 of the shards of"),
        ("*", "matches what is no .tar file"),
        ("{0..999999999}.tar", "more than 100000 files"),
    ],
)
def test_patterns_that_do_not_fit(pattern: str, said: str, tmp_path: Path) -> None:
    for number in range(2):
        labelled(tmp_path / f"{number:04d}.tar", number)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match=said):
        expanded(str(tmp_path / pattern))


def test_no_images_at_all(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", {"a.heic2": b"", "b.txt": b""})
    with pytest.raises(DataError, match=r"holds no images: 2 visible files \(1 \.heic2, 1 \.txt\)"):
        open_files(tmp_path)


def test_the_index_is_kept_and_made_again(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [labelled(tmp_path / f"{n}.tar", 6 * n) for n in range(2)]
    first = Shards(paths)
    [kept] = cache.iterdir()
    scanned: list[Path] = []
    scan = shard_index.scan

    def watched(path: Path) -> shard_index.ShardIndex:
        scanned.append(path)
        return scan(path)

    monkeypatch.setattr(shard_index, "scan", watched)
    again = Shards(paths)
    assert scanned == []
    assert list(again.names) == list(first.names)
    assert again.labels is not None
    np.testing.assert_array_equal(again.labels.labels, first.labels.labels)
    assert (again.passed_over, again.notes) == (first.passed_over, first.notes)
    labelled(paths[1], 50, 7)
    assert len(Shards(paths).names) == 13
    assert scanned == paths
    kept.write_bytes(kept.read_bytes()[:200])  # a damaged one is made again
    assert len(Shards(paths).names) == 13
    assert len(scanned) == 4


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "file").write_bytes(b"")
    monkeypatch.setattr(shard_index, "cache_folder", lambda: cache / "file" / "below")
    found = Shards([labelled(tmp_path / "a.tar", 0)])
    assert len(found.names) == 6
    assert any("could not be kept" in note for note in found.notes)


def test_many_shards_threads_and_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More shards than are held open, read by threads in any order, and by a pickled copy as a spawned worker has."""
    monkeypatch.setattr(shards, "_MOST_OPEN", 2)
    paths = [labelled(tmp_path / f"{n}.tar", 6 * n) for n in range(8)]
    images = FileImages(Shards(paths), np.arange(48))
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(48), 20)).tolist()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: int(images.load(index)[0, 0, 0]), order))
    assert found == order
    copy = pickle.loads(pickle.dumps(images))
    assert [int(copy.load(index)[0, 0, 0]) for index in (47, 0)] == [47, 0]


def test_a_shard_that_changes_while_in_use(tmp_path: Path) -> None:
    found = Shards([labelled(tmp_path / "a.tar", 0), labelled(tmp_path / "b.tar", 6)])
    found.read(0)
    labelled(tmp_path / "b.tar", 90)
    with pytest.raises(DataError, match=r"b\.tar changed while it was in use"):
        found.read(7)


@pytest.mark.slow
def test_training_on_shards_is_training_on_their_folder(tmp_path: Path) -> None:
    """The same images in the same order give the same run, streamed by a worker and resident."""
    from helpers import train

    folder = digit_folder(tmp_path / "digits", train=40, test=10)
    for split in ("train", "test"):
        files = sorted((folder / split).rglob("*.png"))
        for number, part in enumerate((files[: len(files) // 2], files[len(files) // 2 :])):
            write(tmp_path / "shards" / split / f"{number}.tar",
                  {str(path.relative_to(folder / split)): path.read_bytes() for path in part})  # fmt: skip
    for more in ((), ("data.placement=streaming", "data.workers=1")):
        name = str(len(more))
        train(folder, tmp_path / f"run-{name}", *more)
        train(tmp_path / "shards", tmp_path / f"sharded-{name}", *more)
        found, wanted = (
            [
                json.loads(line).get("loss")
                for line in (tmp_path / f"{kind}-{name}" / "metrics.jsonl").read_text().splitlines()
            ]
            for kind in ("sharded", "run")
        )
        assert found == wanted
        assert sum(loss is not None for loss in found) == 10


def test_labels_of_one_class_or_none_are_said(tmp_path: Path) -> None:
    """One class was told apart with an accuracy of 100%."""
    write(tmp_path / "one" / "0.tar", [m for n in range(6) for m in ((f"{n}.png", png(n)), (f"{n}.cls", b"7"))])
    found = dataset(tmp_path / "one")
    assert found.labels is None
    assert "no labels: all that there are say '7', and one class is none to tell apart" in found.notes
    write(tmp_path / "none" / "0.tar", [m for n in range(6) for m in ((f"{n}.png", png(n)), (f"{n}.cls", b""))])
    assert "6 .cls passed over" in dataset(tmp_path / "none").notes


def test_a_single_tar_with_labels_in_json(tmp_path: Path) -> None:
    members = [
        m for n in range(6) for m in ((f"{n}.png", png(n)), (f"{n}.json", json.dumps({"label": n % 2}).encode()))
    ]
    assert dataset(write(tmp_path / "one.tar", members)).classes == ("0", "1")
    coco = write(tmp_path / "coco.tar", [*((f"{n}.png", png(n)) for n in range(6)), ("annotations.json", b"{}")])
    assert not isinstance(open_files(coco), Shards)


@pytest.mark.parametrize("typed", ["./", ".//", "././", "pets//", "pets/./", "./pets/./all//"])
@pytest.mark.parametrize("many", [False, True])
def test_names_as_somebody_typed_them_for_tar(tmp_path: Path, typed: str, many: bool) -> None:
    """They were hidden files, or letters of their folders were cut off."""
    for number in range(1 + many):
        write(
            tmp_path / "set" / f"{number}.tar",
            {f"{typed}{c}/{number}{k}.png": png(k) for c in ("cat", "dog") for k in range(9)},
        )
    path = tmp_path / "set" if many else tmp_path / "set" / "0.tar"
    found = [dataset(path, split) for split in ("train", "test")]
    assert sum(map(len, found)) == 18 * (1 + many)
    assert found[0].classes == ("cat", "dog")
