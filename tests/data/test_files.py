"""Images in folders and archives: splits and labels by their names, damage, links, and worker processes."""

import gzip
import io
import multiprocessing
import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from image_files import crops, md5, message_of, of, png, tar_of, write
from PIL import Image

from dsdmae_builtin import folder
from dsdmae_cli.data import archives
from dsdmae_cli.data.base import UnreadableImage
from dsdmae_cli.data.files import FileImages, open_files
from dsdmae_cli.data.once import opened_once
from dsdmae_cli.data.splits import arrange
from dsdmae_cli.errors import DataError
from dsdmae_cli.settings.models import DataSettings


def contents(dataset: FileImages) -> list[bytes]:
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
    parts = arrange([f"{k:06}.png" for k in range(30_000)], 0.5)
    assert (len(parts.train.indices), len(parts.test.indices)) == (29_000, 1000)
    assert 450 < (parts.test.indices < 15_000).sum() < 550
    small = arrange([f"{k:06}.png" for k in range(2000)], 0.05)
    assert len(small.test.indices) == 100


def test_labels_where_nearly_every_image_lies_in_a_class_folder(tmp_path: Path) -> None:
    loose = folder.build(of(write(tmp_path / "loose", {**CLASSES, "x.png": PHOTOS[0]})), "train")
    assert (loose.labels == -1).sum() == 1
    assert loose.notes == ("1 image for training beside the class folders, without a label: x.png",)
    single = folder.build(of(write(tmp_path / "single", {f"cat/{k}.png": PHOTOS[k] for k in range(4)})), "train")
    assert single.labels is None
    assert single.notes == ("no labels: all folders there are is cat/, and one class is none to tell apart",)
    mixed = write(tmp_path / "mixed", {**{f"train/{k}": v for k, v in CLASSES.items()}, "test/1.png": PHOTOS[0]})
    assert folder.build(of(mixed), "train").classes == ("cat", "dog")
    assert folder.build(of(mixed), "test").labels is None
    assert (
        "the test images have no labels: 1 of 1 image lie in no class folder" in folder.build(of(mixed), "test").notes
    )


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
    assert built.notes[-1].endswith("1 pipe, socket or device (pipe.png) passed over")


def test_empty_folders_are_named(tmp_path: Path) -> None:
    root = write(tmp_path / "set", CLASSES | {"cat/notes.txt": b"x"})
    for name in ("bird", "emu/male", "emu/female", ".hidden"):
        (root / name).mkdir(parents=True)
    os.mkfifo(root / "cat" / "a.png")
    assert folder.build(of(root), "train").notes[-1] == (
        "1 .txt, 1 pipe, socket or device (cat/a.png), 2 empty folders (bird/, emu/) passed over"
    )
    alone = tmp_path / "alone"
    (alone / "nothing").mkdir(parents=True)
    os.mkfifo(alone / "a.png")
    said = message_of(lambda: folder.build(of(alone), "train"))
    assert "0 visible files (1 pipe, socket or device (a.png), 1 empty folder (nothing/))" in said


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
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 4096)
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


def test_within_opened_once_a_listing_serves_all_and_outside_it_is_made_anew(tmp_path: Path) -> None:
    root = write(tmp_path / "set", CLASSES)
    for path in (root, packed(root, ".tar.gz")):
        with opened_once():
            first = open_files(path)
            with opened_once():
                assert open_files(path) is first
            write(root, {"cow/00.png": PHOTOS[0]})
            assert open_files(path) is first
        assert open_files(path) is not first
    assert len(open_files(root).names) == len(CLASSES) + 1


def test_a_failure_is_not_remembered(tmp_path: Path) -> None:
    with opened_once():
        message_of(lambda: open_files(tmp_path / "set"))
        write(tmp_path / "set", CLASSES)
        assert len(open_files(tmp_path / "set").names) == len(CLASSES)


def test_sizes_are_read_from_headers(tmp_path: Path) -> None:
    whole = png(crops(1, 40)[0][:24])
    dataset = folder.build(of(write(tmp_path / "set", {"a.png": whole, "b.png": whole[:60], "c.png": b""})), "train")
    found: dict[str, object] = {}
    for i in range(len(dataset)):
        try:
            found[Path(dataset.name(i)).name] = dataset.size(i)
        except UnreadableImage as error:
            found[Path(error.name).name] = error.reason
    # Where pixels are missing the header is still there.
    expected = {"a.png": (40, 24), "b.png": (40, 24), "c.png": "empty file"}
    assert len(found) == 2
    assert found.items() <= expected.items()


def _digest(dataset: FileImages) -> str:
    return md5(b"".join(contents(dataset)))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes(tmp_path: Path, method: str) -> None:
    root = write(tmp_path / "set", CLASSES)
    built = [folder.build(of(path), "train") for path in (root, *(packed(root, s) for s in ARCHIVES))]
    with multiprocessing.get_context(method).Pool(2) as pool:
        got = pool.map(_digest, built * 3, chunksize=1)
    assert set(got) == {_digest(built[0])}


def test_no_permission(nobody: Path) -> None:
    root = write(nobody / "set", CLASSES)
    (root / "cat").chmod(0)
    message = message_of(lambda: folder.build(of(root), "train"))
    (root / "cat").chmod(0o700)
    assert f"cannot read {root / 'cat'}: permission denied" in message


def test_symbolic_links_in_tars_are_followed(tmp_path: Path) -> None:
    """A pool of images and folders of links to them, as in a folder."""
    members = {f"pool/{n}.png": photo for n, photo in enumerate(PHOTOS[:4])}
    links = {f"{'cat' if n % 2 else 'dog'}/{n}.png": f"../pool/{n}.png" for n in range(4)}
    links |= {
        "cat/again.png": "./1.png",
        "cat/gone.png": "../pool/9.png",
        "dog/all.png": "../pool",
        "cat/me.png": "me.png",
    }
    path = tmp_path / "set.tar.gz"
    path.write_bytes(tar_of(members, links=links))
    files = open_files(path)
    assert sorted(files.names) == sorted({*members, *links} - {"dog/all.png"})
    place = {name: index for index, name in enumerate(files.names)}
    for name, target in (("dog/2.png", "pool/2.png"), ("cat/again.png", "pool/1.png")):
        assert files.read(place[name]) == members[target]
    assert files.read(place["cat/gone.png"]) == files.read(place["cat/me.png"]) == b""


def test_separators_of_windows_in_zips(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name, content in CLASSES.items():
            info = zipfile.ZipInfo("x")
            info.filename = name.replace("/", "\\")
            archive.writestr(info, content)
    assert folder.build(of(tmp_path / "set.zip"), "train").classes == ("cat", "dog")


def test_what_is_no_dataset_says_what_may_be_meant(tmp_path: Path) -> None:
    write(tmp_path / "birds", {"0.tar": tar_of({"a.png": PHOTOS[0]}, "w"), "preview.png": PHOTOS[1]})
    assert "for shards, name them by" in message_of(lambda: open_files(tmp_path / "birds"))
    assert "did you mean birds?" in message_of(lambda: open_files(tmp_path / "bird"))
    write(tmp_path / "zips", {"a.zip": b"PK", "b.zip": b"PK"})
    assert "2 compressed archives (a.zip)" in message_of(lambda: open_files(tmp_path / "zips"))
    write(tmp_path, {"images.parquet": b"PAR1"})
    said = message_of(lambda: folder.build(of(tmp_path / "images.parquet"), "train"))
    assert said.endswith(f"name it by parquet:{tmp_path / 'images.parquet'}")
