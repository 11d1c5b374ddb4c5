"""What must not cost a result or a run (docs/design/faults.md): files that claim or hold more than memory does.

Each is answered in a line, as any file that is not what it should be, within half a gigabyte more of memory.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Done, assignments, cli, digit_folder, one_line, words
from PIL import Image

from dsdmae_builtin import parquet, parquet_columns
from dsdmae_cli.data import archives
from dsdmae_cli.data.base import UnreadableImage

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="limits and holes as Linux has them"),
]
TERABYTE = 2**40


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    import resource

    taken = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(taken.split()[1]) * 1024 + 2**29, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


def grown(path: Path, start: bytes = b"", size: int = TERABYTE) -> Path:
    """A file with a hole: it takes a block of the disk, whatever its size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
    return path


def head_of_tar(name: str, size: int, kind: bytes) -> bytes:
    """A tar's header of a member that claims a size beyond eight octal digits."""
    made = tarfile.TarInfo(name)
    made.type = kind
    block = bytearray(made.tobuf(tarfile.USTAR_FORMAT)[:512])
    block[124:136] = b"\x80" + size.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def huge_png() -> bytes:
    """60,000 x 60,000 pixels, as far as its header goes."""
    small = io.BytesIO()
    Image.new("RGB", (16, 16)).save(small, "PNG")
    content = bytearray(small.getvalue())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


# -- images


def long_header(kind: bytes) -> Callable[[Path], str]:
    def made(folder: Path) -> str:
        return f"folder:{grown(folder / 'images.tar', head_of_tar('h', 2**33, kind), 2**33 + 2**20)}"

    return made


def list_in_zip(folder: Path) -> str:
    mask = io.BytesIO()
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(mask, "PNG")
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        for number in range(8):
            for part in ("images", "masks"):
                packed.writestr(f"{part}/train/{number}.png", mask.getvalue())
        with packed.open("classes.txt", "w", force_zip64=True) as text:
            for _ in range(40):
                text.write(bytes(2**20))
    return f"folder:{folder / 'images.zip'}"


def list_in_folder(folder: Path) -> str:
    for number in range(8):
        for part in ("images", "masks"):
            path = folder / "images" / part / "train" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((16, 16), np.uint8)).save(path)
    grown(folder / "images" / "classes.txt")
    return f"folder:{folder / 'images'}"


def labels(folder: Path) -> str:
    digit_folder(folder / "images", 16, 4)
    grown(folder / "images" / "labels.csv", b"file,label\n")
    return f"folder:{folder / 'images'}"


def idx_head(folder: Path) -> str:
    (folder / "train-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, 2**31 - 1, 28, 28))
    return f"idx:{folder}"


def idx_values(folder: Path) -> str:
    with gzip.open(folder / "train-images-idx3-ubyte.gz", "wb", 1) as packed:
        packed.write(struct.pack(">IIII", 0x803, 16, 16, 16))
        for _ in range(40):
            packed.write(bytes(2**20))
    return f"idx:{folder}"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (long_header(tarfile.XHDTYPE), "is a damaged archive: a header of 8,589,934,592 bytes"),
        (long_header(tarfile.GNUTYPE_LONGNAME), "is a damaged archive: a header of 8,589,934,592 bytes"),
        (list_in_zip, "cannot read classes.txt in"),
        (list_in_folder, "cannot read classes.txt in"),
        (labels, "labels.csv: it has more than 268,435,456 bytes"),
        (idx_head, "says that it holds 2147483647 x 28 x 28 values, more than the 4 GiB"),
        (idx_values, "has more than 4096 values and its head says 4096"),
    ],
)
def test_images_that_claim_more_than_memory_are_one_line(
    make: Callable[[Path], str], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = make(tmp_path)
    more = [f"data.labels={tmp_path / 'images' / 'labels.csv'}"] if make is labels else []
    given = words([f"data.dataset={dataset}", *assignments("digits", *more)[1:]])
    code, _, err = cli(capfd, "pretrain", *given, "--out", tmp_path / "run")
    assert code == 2, err
    assert said in one_line(err)
    assert not (tmp_path / "run").exists()


def pictures(folder: Path) -> list[str]:
    """Those that hold less than they claim, beside sixteen digits."""
    train = digit_folder(folder, 16, 4) / "train" / "0"
    grown(train / "hole.png")
    grown(train / "hole.tif", b"II*\0\x08\0\0\0")
    (train / "wide.png").write_bytes(huge_png())
    (train / "wide.ppm").write_bytes(b"P6 60000 60000 255\n" + bytes(9))
    (train / "wide.gif").write_bytes(b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6) + b";")
    (train / "tags.tif").write_bytes(tiff({273: (4, 2**32 - 1), 279: (4, 2**32 - 1)}))
    (train / "profile.tif").write_bytes(tiff({34675: (7, 2**32 - 1)}))
    (train / "bands.tif").write_bytes(tiff({277: (3, 65535), 258: (3, 65535)}))
    (train / "sides.tif").write_bytes(tiff({256: (4, 2**32 - 1), 257: (4, 2**32 - 1)}, of=1))
    return ["hole.png", "hole.tif", "wide.png", "wide.ppm", "wide.gif", "tags.tif", "sides.tif"]


def tiff(said: dict[int, tuple[int, int]], of: int = 0) -> bytes:
    """64 x 64 grey pixels, with other tags: {number: (type, count or, of one, value)}."""
    usual = {256: 64, 257: 64, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 64, 279: 4096}
    tags = {number: (4, 1, value) for number, value in usual.items()}
    for number, (kind, count) in said.items():
        tags[number] = (kind, 1, count) if of else (kind, count, 8)
    rows = b"".join(struct.pack("<HHII", number, *tags[number]) for number in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + rows + bytes(4) + bytes(4200)


def test_pictures_that_claim_more_than_memory_are_unreadable_by_name(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = pictures(tmp_path / "images")
    given = words(assignments(tmp_path / "images", "train.epochs=1", "data.max_unreadable=0.9"))
    code, _, err = cli(capfd, "pretrain", *given, "--out", tmp_path / "run")
    assert code == 0, err
    said = json.loads((tmp_path / "run" / "result.json").read_text())
    assert said["unreadable_images"] >= len(names)
    code, out, err = cli(capfd, "denoise", *(tmp_path / "images" / "train" / "0" / name for name in names))
    assert code == 2, (out, err)
    assert "Traceback" not in err
    assert all("dsdmae: " in line or line.startswith("denoising ") for line in err.splitlines()), err  # no library's


def test_a_picture_that_unpacks_to_a_thousand_times_its_size_is_not_unpacked(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "images.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed,
        packed.open("train/a.png", "w", force_zip64=True) as picture,
    ):
        for _ in range(80):
            picture.write(bytes(2**20))
    with pytest.raises(UnreadableImage, match=r"unpacks to [\d,]+ times its size, as no picture does"):
        archives.Archive(tmp_path / "images.zip").read(0)


# -- tables


def table(folder: Path, **columns: object) -> str:
    arrow, written = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table(columns)
    written.write_table(
        table, folder / "t.parquet", compression="zstd", dictionary_pagesize_limit=2**27, store_schema=False
    )
    return f"parquet:{folder / 't.parquet'}"


def repeated(values: list[Any], rows: list[int]) -> Any:
    """A column whose values stand in the file once each."""
    import pyarrow

    return pyarrow.DictionaryArray.from_arrays(rows, values)


def digit() -> bytes:
    small = io.BytesIO()
    Image.new("RGB", (16, 16)).save(small, "PNG")
    return small.getvalue()


def test_a_row_group_of_too_many_images_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each of a hundred rows has the same megabyte, which stands in the file once."""
    dataset = table(tmp_path, image=repeated([digit(), bytes(2**20)], [0, *[1] * 100]))
    monkeypatch.setattr(parquet, "MOST_OF_GROUP", 50 * 2**20)
    given = words([f"data.dataset={dataset}", *assignments("digits")[1:]])
    code, _, err = cli(capfd, "pretrain", *given, "--out", tmp_path / "run")
    assert code == 2, err
    assert "of images in a row group, which is read whole; write smaller ones (row_group_size=100)" in one_line(err)


def test_an_image_that_unpacks_to_a_thousand_times_its_size_is_not_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = table(tmp_path, image=[*[digit()] * 20, bytes(80 * 2**20)])
    given = words([f"data.dataset={dataset}", *assignments("digits")[1:]])
    code, _, err = cli(capfd, "pretrain", *given, "--out", tmp_path / "run")
    assert code == 2, err
    assert "has a row group of images that unpacks to " in one_line(err)
    assert "times its size, as no pictures do" in err


def test_a_long_label_of_many_rows_is_in_memory_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    label = repeated(["a" * 2**20], [0] * 1500)
    path = Path(table(tmp_path, image=[digit()] * 1500, label=label).partition(":")[2])
    assert len(parquet_columns.said_of_rows(path, "label")) == 1500
    monkeypatch.setattr(parquet_columns, "_MOST_SAID", 1000)
    given = words([f"data.dataset=parquet:{path}", *assignments("digits")[1:]])
    code, _, err = cli(capfd, "pretrain", *given, "--out", tmp_path / "run")
    assert code == 2, err
    assert "in its column 'label', too much for labels or splits" in one_line(err)


# -- weights and results


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<Q", TERABYTE) + b"{}",
        json.dumps({"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode(),
        json.dumps({"w": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}).encode(),
    ],
)
@pytest.mark.parametrize("command", ["pretrain", "probe", "finetune", "embed", "export", "denoise", "predict"])
def test_weights_that_claim_more_than_memory_are_one_line(
    command: str, header: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "w.safetensors", tmp_path / "out"
    path.write_bytes(header if header.endswith(b"{}") else struct.pack("<Q", len(header)) + header)
    code, err = asked(capfd, command, path, out)
    assert code == 2, err
    assert "w.safetensors" in one_line(err)
    assert not out.exists()


@pytest.mark.parametrize("command", ["pretrain", "embed"])  # others look at the metadata first
def test_weights_of_more_tensors_than_any_network_are_one_line(
    command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without a value each; in Python all of them would take minutes."""
    none = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"w{number}": none for number in range(150_000)}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    code, err = asked(capfd, command, path, tmp_path / "out")
    assert code == 2, err
    assert "w.safetensors has 150,000 tensors, more than any network" in one_line(err)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.onnx"])
@pytest.mark.parametrize("command", ["embed", "denoise", "predict"])
def test_weights_of_a_terabyte_of_nothing_are_one_line(
    name: str, command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, out = grown(tmp_path / name), tmp_path / "out"
    code, err = asked(capfd, command, path, out)
    assert code == 2, err
    assert name in one_line(err)
    assert not out.exists()


def asked(capfd: pytest.CaptureFixture[str], command: str, weights: Path, out: Path) -> tuple[int, str]:
    picture = out.with_name("picture.png")
    picture.write_bytes(digit())
    out = out.with_suffix(".npz") if command == "embed" else out
    line = {
        "pretrain": ["--from", weights, *words(assignments("digits")), "--out", out],
        "probe": [weights, "--kind", "knn", "--dataset", "digits", "--out", out],
        "finetune": [weights, "--dataset", "digits", "--out", out],
        "embed": [weights, "--dataset", "digits", "--out", out],
        "export": [weights, "--to", "timm", "--out", out],
        "denoise": [picture, "--weights", weights, "--out", out],
        "predict": [weights, picture, "--out", out],
    }
    done: Done = cli(capfd, command, *line[command])
    return done.code, done.err


def test_a_result_of_a_terabyte_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    grown(tmp_path / "run" / "result.json")
    code, _, err = cli(capfd, "compare", tmp_path / "run")
    assert code == 2
    assert "result.json: it has more than 268,435,456 bytes" in one_line(err)
