"""A packed folder stands for its source: the same images, splits, classes, settings; damage and interruption show."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from helpers import cli, listing, one_line, records, train
from PIL import Image
from test_plain import photograph, saved, turned

from dsdmae_cli.config.compose import load
from dsdmae_cli.data import pack as packing
from dsdmae_cli.data import packed as reading
from dsdmae_cli.data.base import ImageDataset
from dsdmae_cli.data.cutting import Picture
from dsdmae_cli.data.open import open_dataset
from dsdmae_cli.data.pack import Options, smaller
from dsdmae_cli.data.pack_dataset import pack_dataset
from dsdmae_cli.errors import DataError, RunFailed, RunInterrupted, SettingsError
from dsdmae_cli.plugins import find, spelled_out
from dsdmae_cli.plugins import load as load_object
from dsdmae_cli.settings.models import DataSettings


def settings(dataset: str | Path, *more: str) -> DataSettings:
    return load(assignments=[f"data.dataset={dataset}", *more], environ={}).settings.data


def of_spec(dataset: str | Path, what: str, *more: str) -> Any:
    own = settings(dataset, *more)
    return load_object(getattr(find("dataset", own.dataset).spec, what))(own)


def packed(source: Path, out: Path, *more: str, options: Options | None = None) -> dict[str, Any]:
    return pack_dataset(settings(source, *more), out, options or Options(64), quiet=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Splits, two classes and a stray; JPEGs, a turned one, PNGs of several kinds; one that cannot be read."""
    root = tmp_path_factory.mktemp("source")
    for number in range(40):
        folder = root / ("val" if number % 5 == 0 else "train") / ("cat" if number % 2 else "dög")
        folder.mkdir(parents=True, exist_ok=True)
        image = photograph(70 + number, 120 - number).rotate(9 * number)
        if number == 7:
            image.save(folder / "007.png")
        elif number == 8:
            image.convert("L").save(folder / "008.png")
        elif number == 9:
            image.convert("RGBA").save(folder / "009.png")
        else:
            exif = {"exif": turned(6)} if number == 11 else {}
            size = (50, 60) if number in (12, 13) else image.size
            (folder / f"{number:03d}.jpg").write_bytes(saved(image.resize(size), **exif))
    (root / "train" / "cat" / "017.jpg").write_bytes(b"broken")
    (root / "train" / "stray.png").write_bytes(saved(photograph(80, 80), format="PNG"))
    return root


def below(dataset: ImageDataset, root: Path) -> list[str]:
    return [dataset.name(i).removeprefix(f"{root}/").removeprefix(f"{root}!") for i in range(len(dataset))]


@pytest.mark.parametrize("form", ["jpeg", "array"])
def test_a_packed_folder_is_its_source_made_smaller(form: Any, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    said = packed(source, out, options=Options(64, form))
    assert listing(out) == {"packed.json", "index.npz", "00000.shard"}
    assert said["images"] == 40
    assert list(said["unreadable"].values()) == [
        "not a JPEG, PNG, WebP, BMP, GIF, TIFF, PPM or AVIF file, or only part of one"
    ]
    assert spelled_out("dataset", str(out)) == f"packed:{out}"
    assert said["as_they_were"] == (2 if form == "jpeg" else 0)
    for split in ("train", "test"):
        before, after = (open_dataset(settings(path), split) for path in (source, out))
        names = below(before, source)
        there = [i for i, name in enumerate(names) if "017" not in name]
        assert below(after, out) == [names[i] for i in there]
        assert after.classes == before.classes == ("cat", "dög")
        assert after.notes == before.notes
        assert np.array_equal(after.labels, before.labels[there])
        for place, index in enumerate(there):
            expected = smaller(before.load(index), 64).astype(np.float64)
            found = after.load(place)
            assert found.shape == expected.shape
            assert min(found.shape[:2]) <= 64
            off = np.abs(found - expected).mean()
            assert off < (4 if form == "jpeg" else 1e-9), names[index]
            quick = Picture(after, place)
            assert np.array_equal(quick.whole(), found)
            assert (quick.height, quick.width) == found.shape[:2]
    for what in ("image_size", "channels", "value_range"):
        assert of_spec(out, what) == of_spec(source, what)
    assert of_spec(out, "count") == (32, 31)


def test_small_upright_jpegs_are_kept_to_the_byte(source: Path, tmp_path: Path) -> None:
    packed(source, tmp_path / "packed")
    after = open_dataset(settings(tmp_path / "packed"), "train")
    place = next(i for i in range(len(after)) if after.name(i).endswith("012.jpg"))
    (path,) = source.rglob("012.jpg")
    assert after.file_bytes(place) == path.read_bytes()


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey of 12 bits in 16."""
    root = tmp_path_factory.mktemp("deep")
    for number in range(12):
        grey = np.asarray(photograph(90, 80).convert("L").rotate(30 * number)).astype(np.uint16) * 15 + 100
        Image.fromarray(grey).save(root / f"{number:02d}.png")
    return root


def test_pictures_of_more_bits_are_kept_with_their_range(deep: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    assert packed(deep, out)["as_they_were"] == 12
    found = of_spec(out, "value_range")
    assert found == of_spec(deep, "value_range")
    assert found[1] < 5000
    for more in ((), ("data.range=100,2000",), ("data.channels=1",)):
        before, after = (open_dataset(settings(path, *more), "train") for path in (deep, out))
        assert all(np.array_equal(before.load(i), after.load(i)) for i in range(len(before)))
        assert before.channels == after.channels


@pytest.mark.parametrize("form", ["jpeg", "array"])
def test_grey_of_photographs_is_made_smaller_too(source: Path, tmp_path: Path, form: Any) -> None:
    """With data.channels=1 all files were kept as large as they were."""
    packed(source, tmp_path / "packed", "data.channels=1", options=Options(64, form))
    before, after = (open_dataset(settings(path, "data.channels=1"), "train") for path in (source, tmp_path / "packed"))
    expected, found = smaller(before.load(3), 64), after.load(3)
    assert (found.shape, expected.max() > 100) == ((*expected.shape, 1), True)
    assert np.abs(found[..., 0].astype(int) - expected).mean() < (4 if form == "jpeg" else 1e-9)


def test_pictures_of_other_bands_keep_channels_and_ranges(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "packed"
    source.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        bands = rng.integers(0, 3000, (40, 50, 5)).astype(np.uint16)
        tifffile.imwrite(source / f"{number}.tif", bands, photometric="minisblack", planarconfig="contig")
    packed(source, out)
    assert of_spec(out, "channels") == 5
    assert of_spec(out, "value_range") == of_spec(source, "value_range")
    for more in ((), ("data.bands=[3,1,2]",)):
        before, after = (open_dataset(settings(path, *more), "train") for path in (source, out))
        assert np.array_equal(before.load(2), after.load(2)), more


def test_signed_bytes_are_kept_as_they_are(tmp_path: Path) -> None:
    """8 bits that no JPEG of 0 to 255 holds; written as one, they had lost their range and some of their values."""
    source, out = tmp_path / "source", tmp_path / "packed"
    source.mkdir()
    for number in range(4):
        grey = np.asarray(photograph(40, 40).convert("L").rotate(30 * number)).astype(np.int16) // 2 - 64
        tifffile.imwrite(source / f"{number}.tif", grey.astype(np.int8))
    assert packed(source, out)["as_they_were"] == 4
    assert of_spec(out, "value_range") == of_spec(source, "value_range")
    before, after = (open_dataset(settings(path), "train") for path in (source, out))
    assert all(np.array_equal(before.load(i), after.load(i)) for i in range(len(before)))


def test_an_array_cannot_hold_them(deep: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = cli(capfd, "data", "pack", deep, "--out", tmp_path / "packed", "--format", "array")
    assert code == 2
    last = err.splitlines()[-1]
    assert "grey of 16 bits" in last
    assert "leave out --format" in last
    with pytest.raises(DataError, match="give the same `dsdmae data pack` again"):
        open_dataset(settings(f"packed:{tmp_path / 'packed'}"), "train")


# --------------------------------------------------------------------------------------------- interruption, damage


def test_what_was_interrupted_goes_on_and_ends_as_if_it_had_not_been(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(packing.pack.__kwdefaults__, "shard_bytes", 20_000)
    packed(source, tmp_path / "whole")
    real, made = packing.record, []

    def stops(*given: Any) -> Any:
        made.append(given[1])
        if len(made) >= 30:  # several threads: two may append at once
            raise KeyboardInterrupt
        return real(*given)

    out = tmp_path / "torn"
    with monkeypatch.context() as patch:
        patch.setattr(packing, "record", stops)
        with pytest.raises(RunInterrupted) as stopped:
            packed(source, out)
    assert stopped.value.exit_code == 130
    said = r"stopped by Ctrl-C: \d+ of 41 images in whole shards are kept in .*torn; the same command goes on"
    assert re.fullmatch(said, str(stopped.value))
    there = listing(out)
    assert "unfinished.json" in there
    assert "packed.json" not in there
    assert not any("partial" in name for name in there)
    assert "00000.shard" in there
    assert spelled_out("dataset", str(out)) == f"folder:{out}"
    with pytest.raises(DataError, match="other options"):
        packed(source, out, options=Options(32))
    (out / ".00009.shard.0123.partial").write_bytes(b"of a killed process")
    first = (out / "00000.shard").stat().st_mtime_ns
    packed(source, out)
    assert (out / "00000.shard").stat().st_mtime_ns == first
    assert listing(out) == listing(tmp_path / "whole")
    assert len(listing(out)) > 4
    for name in listing(out):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_what_was_stopped_when_all_was_packed_clears_up(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(packing.pack.__kwdefaults__, "shard_bytes", 20_000)
    out, whole = tmp_path / "packed", packed(source, tmp_path / "whole")

    def stops(out: Path, *_: object) -> None:
        (out / "00000.part").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(packing, "_cleared", stops)
        with pytest.raises(RunInterrupted, match=r"all is packed in .*; the same command goes on"):
            packed(source, out)
    assert (out / "00001.part").exists()
    with pytest.raises(DataError, match="other options"):
        packed(source, out, options=Options(32))
    assert packed(source, out) == {**whole, "out": str(out), "next": f"dsdmae pretrain {out}"}
    assert listing(out) == listing(tmp_path / "whole")


def test_a_folder_that_holds_anything_is_not_written_to(source: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(DataError, match="is not empty"):
        packed(source, tmp_path)
    out = tmp_path / "packed"
    packed(source, out)
    with pytest.raises(DataError, match="holds a packed dataset already"):
        packed(source, out)


def test_a_folder_within_its_source_is_refused(source: Path, tmp_path: Path) -> None:
    """Its shards would be files of the dataset that they were made of."""
    (tmp_path / "link").symlink_to(source)
    for out in (source, source / "train" / "packed", tmp_path / "link" / "packed"):
        with pytest.raises(SettingsError, match="whose images are packed: its shards would be files of that dataset"):
            packed(source, out)
    assert not list(source.rglob("*packed*"))


def test_a_full_disk_says_so_and_keeps_what_is_whole(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            RunFailed, match=r"No space left on device; whole shards are kept\. Make room, then give the same"
        ):
            packed(source, tmp_path / "packed")
    packed(source, tmp_path / "packed")
    assert reading.verify(tmp_path / "packed")[0] == 1


def test_damage_names_the_shard(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "packed"
    packed(source, out)
    shard = out / "00000.shard"
    assert cli(capfd, "data", "verify", out)[:2] == (0, f"{out}: 1 shard, 0.1 MiB, all as they were packed\n")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    code, _, err = cli(capfd, "data", "verify", out)
    assert code == 2
    assert f"shard {shard} is damaged" in one_line(err)
    shard.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"00000\.shard is damaged: it has \d+ bytes, and \d+ were packed"):
        open_dataset(settings(out), "train")
    shard.unlink()
    with pytest.raises(DataError, match=r"00000\.shard is missing"):
        open_dataset(settings(out), "train")


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("index.npz", lambda b: b[:-9], "index.npz is damaged"),
        ("packed.json", lambda b: b[:-9], "packed.json is damaged"),
        ("packed.json", lambda b: b.replace(b'"format": 1', b'"format": 9'), "another version"),
        ("packed.json", lambda b: b.replace(b'"image_size"', b'"side"'), "packed.json is damaged"),
    ],
)
def test_damage_beside_the_shards_is_named(name: str, change: Any, says: str, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    packed(source, out)
    (out / name).write_bytes(change((out / name).read_bytes()))
    with pytest.raises(DataError, match=says):
        open_dataset(settings(out), "train")


def test_it_is_read_from_threads_and_copies_and_wherever_it_lies(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    packed(source, out)
    images = open_dataset(settings(out), "train")
    expected = [images.load(i).tobytes() for i in range(len(images))]
    with ThreadPoolExecutor(4) as pool:
        assert [image.tobytes() for image in pool.map(images.load, range(len(images)))] == expected
    assert pickle.loads(pickle.dumps(images)).load(3).tobytes() == expected[3]
    fingerprint = images.fingerprint()
    shutil.copytree(out, tmp_path / "elsewhere")
    assert open_dataset(settings(tmp_path / "elsewhere"), "train").fingerprint() == fingerprint


def test_datasets_with_ways_of_their_own_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = cli(capfd, "data", "pack", "digits", "--out", tmp_path / "packed")
    assert code == 2
    assert "would forget" in one_line(err)
    assert not (tmp_path / "packed").exists()


def test_labels_from_a_table_are_packed_with_the_images(
    deep: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("file,label\n" + "".join(f"{n:02d}.png,{'even' if n % 2 == 0 else 'odd'}\n" for n in range(12)))
    code, out, _ = cli(capfd, "data", "pack", deep, "--out", tmp_path / "packed", "--labels", table, "--json")
    assert code == 0
    assert json.loads(out)["images"] == 12
    images = open_dataset(settings(tmp_path / "packed"), "train")
    assert images.classes == ("even", "odd")
    assert all(int(images.name(i)[-5]) % 2 == images.labels[i] for i in range(len(images)))


def test_a_run_learns_from_it(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    packed(source, out)
    losses = []
    for workers in (0, 1):
        more = ("data.image_size=32", "data.placement=streaming", f"data.workers={workers}", "train.epochs=1")
        train(str(out), tmp_path / f"run{workers}", *more)
        losses.append([record["loss"] for record in records(tmp_path / f"run{workers}") if "loss" in record])
    assert losses[0]
    assert losses[0] == losses[1]


def test_a_rectangle_is_kept_and_one_packs_at_a_time(source: Path, tmp_path: Path) -> None:
    packed(source, tmp_path / "out", "data.image_size=[32,48]", options=Options(16))
    assert reading.read_manifest(tmp_path / "out").image_size == (32, 48)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    with (
        packing._alone(tmp_path / "other"),
        pytest.raises(DataError, match=r"other is being packed by another process; wait for it"),
    ):
        packed(source, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("change", [{"image_size": "x"}, {"source": {}}, {"shards": [3]}, {"channels": None}])
def test_a_manifest_that_says_nonsense_is_damaged(change: dict[str, Any], source: Path, tmp_path: Path) -> None:
    packed(source, tmp_path / "out")
    manifest = tmp_path / "out" / "packed.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(DataError, match=r"packed\.json is damaged \((?!.*dsdmae_cli).*; "):
        reading.read_manifest(tmp_path / "out")


def test_masks_are_not_lost(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        for name in ("a", "b", "c"):
            Image.new("L", (20, 20)).save(tmp_path / "in" / folder / f"{name}.png")
    (tmp_path / "in" / "classes.txt").write_text("sky\nroad\n")
    with pytest.raises(SettingsError, match="has masks, which a packed folder does not hold"):
        packed(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
