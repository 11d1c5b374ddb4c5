"""What stands behind a tar's end: another tar, something else, or what no header can be read from."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import pytest
from image_files import of
from test_shards import cache as cache  # the index of shards is kept apart
from test_shards import labelled, png, write

from dsdmae_builtin import folder
from dsdmae_cli.data.archives import read_text
from dsdmae_cli.data.files import open_files
from dsdmae_cli.errors import DataError


def two(tmp_path: Path) -> list[bytes]:
    """Two tars of two images, with their padding."""
    parts = []
    for part in "ab":
        members = {f"{part}/{k}.png": png(10 * k) for k in range(2)} | {f"{part}.txt": part.encode()}
        parts.append(write(tmp_path / f"{part}.tar", members).read_bytes())
    return parts


def test_tars_that_cat_has_joined_are_read_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "joined.tar"
    path.write_bytes(b"".join(two(tmp_path)))
    files = open_files(path)
    assert list(files.names) == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]
    assert files.read(3) == png(10)
    assert files.notes == (f"{path} is 2 tars, one behind the other; all are read",)
    assert files.notes[0] in folder.build(of(path), "train").notes
    assert read_text(path, "b.txt") == "b"
    packed = tmp_path / "joined.tar.gz"
    packed.write_bytes(b"".join(map(gzip.compress, two(tmp_path))))
    assert list(open_files(packed).names) == list(files.names)
    assert not open_files(tmp_path / "a.tar").notes


def test_shards_that_cat_has_joined_are_read_to_the_end(tmp_path: Path) -> None:
    parts = [labelled(tmp_path / "parts" / f"{first}.tar", first).read_bytes() for first in (0, 6)]
    (tmp_path / "set").mkdir()
    for name in ("a", "b"):
        (tmp_path / "set" / f"{name}.tar").write_bytes(b"".join(parts))
    for _ in range(2):  # the second from the kept index
        files = open_files(tmp_path / "set")
        assert len(files.names) == 24
        assert any("2 of 2 shards are several tars, one behind the other; all are read" in note for note in files.notes)


@pytest.mark.parametrize("record", [512, 10240, 2**20])
def test_padding_is_no_data(record: int, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    content = two(tmp_path)[0].rstrip(b"\0")
    path.write_bytes(content + bytes(1024 + -len(content) % record))
    assert (len(open_files(path).names), open_files(path).notes) == (2, ())


def test_what_is_no_tar_behind_the_end_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(two(tmp_path)[0] + b"signed by nobody")
    assert open_files(path).notes == (f"{path} goes on for 16 bytes behind its end, which are no tar and not read",)


def test_a_header_that_cannot_be_read_is_no_end(tmp_path: Path) -> None:
    """tarfile stops there and says nothing, and all images behind it were passed over."""
    path = write(tmp_path / "a.tar", {f"{k}.png": png(k) for k in range(4)})
    content = bytearray(path.read_bytes())
    at = content.index(b"2.png")
    content[at : at + 4] = b"\xff" * 4
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"a.tar is a damaged archive: no header can be read at byte {at}; make or"):
        open_files(path)


def test_zips_that_cat_has_joined_are_said_to_be_read_in_part(tmp_path: Path) -> None:
    parts = []
    for part in "ab":
        with zipfile.ZipFile(tmp_path / f"{part}.zip", "w") as archive:
            for k in range(2):
                archive.writestr(f"{part}/{k}.png", png(k))
        parts.append((tmp_path / f"{part}.zip").read_bytes())
    path = tmp_path / "joined.zip"
    path.write_bytes(b"".join(parts))
    files = open_files(path)
    assert list(files.names) == ["b/0.png", "b/1.png"]
    assert files.read(0) == png(0)
    assert files.notes == (f"{path} has {len(parts[0]):,} bytes before its first file, which are not read",)
    assert not open_files(tmp_path / "a.zip").notes
