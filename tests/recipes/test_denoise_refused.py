"""What `dsdmae denoise` refuses, and what is left when pictures, disks or people end it."""

from __future__ import annotations

import json
import resource
import signal
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import Run, cli, listing, look, one_line, start, wait_until
from PIL import Image

from dsdmae_cli.errors import signal_words


def _bomb() -> bytes:
    import struct

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">LLBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000)))


def test_a_failure_leaves_the_others_done(denoise: Run, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "good.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "good.png").read_bytes()[:2000])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "bomb.png").write_bytes(_bomb())
    (tmp_path / "empty").mkdir()
    before = listing(tmp_path)
    names = [tmp_path / name for name in ("torn.png", "text.jpg", "bomb.png", "empty", "gone.png", "good.png")]
    code, out, err = denoise(*names, "--json")
    assert code == 1
    assert listing(tmp_path) - before == {"good.denoised.png"}
    line = one_line(err)
    assert line.startswith("dsdmae: error: 5 of 6 failed: ")
    for word in ("truncated file", "not a JPEG", "--max-megapixels", "without images", "no such file"):
        assert word in line
    result = json.loads(out)
    assert [p["source"] for p in result["pictures"]] == [str(tmp_path / "good.png")]
    assert {Path(f["source"]).name for f in result["failed"]} == {p.name for p in names[:-1]}


@pytest.mark.parametrize("others", [(), ("text.jpg",), ("gone.png", "text.jpg")])
def test_nothing_but_bad_input(others: tuple[str, ...], denoise: Run, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    (tmp_path / "whole.png").unlink()
    (tmp_path / "text.jpg").write_text("no picture")
    before = listing(tmp_path)
    code, _, err = denoise(tmp_path / "torn.png", *(tmp_path / name for name in others))
    assert code == 2
    assert one_line(err).startswith("dsdmae: error: nothing was denoised: ")
    assert others or err.count("\n") == 1
    assert listing(tmp_path) == before


def test_nothing_is_overwritten_without_force(denoise: Run, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "a.png")
    (tmp_path / "a.denoised.png").write_text("mine")
    code, _, err = denoise(tmp_path / "a.png")
    assert code == 2
    assert "exists; --force replaces it" in one_line(err)
    assert (tmp_path / "a.denoised.png").read_text() == "mine"
    assert denoise(tmp_path / "a.png", "--force")[0] == 0
    assert look(tmp_path / "a.denoised.png").size == (50, 37)


def test_no_permission(
    denoise: Run, weights: Path, photo: Image.Image, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    photo.save(tmp_path / "a.png")
    assert denoise(tmp_path / "a.png")[0] == 0  # which imports what a process without root's rights may not
    packed = weights.read_bytes()
    nobody: Path = request.getfixturevalue("nobody")
    (nobody / "tiny.safetensors").write_bytes(packed)
    photo.save(nobody / "a.png")
    (nobody / "a.png").chmod(0)
    code, _, err = cli(capfd, "denoise", "--weights", nobody / "tiny.safetensors", "--device", "cpu", nobody / "a.png")
    assert code == 2
    assert "permission denied" in one_line(err)


def test_a_folder_that_cannot_be_made(denoise: Run, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "a.png")
    (tmp_path / "file").write_text("")
    code, _, err = denoise(tmp_path / "a.png", "--out", tmp_path / "file" / "b.png")
    assert code == 1
    assert "cannot make" in one_line(err)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "nothing to denoise: name pictures"),
        (("-", "a.png"), "stands alone"),
        (("a.png", "--noise-std", "1"), "give --corrupt"),
        (("a.png", "--corrupt", "1.5"), "--corrupt 1.5 is not allowed"),
        (("a.png", "--strength", "2"), "less than or equal to 1"),
        (("a.png", "--passes", "0"), "greater than or equal to 1"),
        (("a.png", "--out", "b.gif"), "--out b.gif: it must end in"),
        (("a.png", "--suffix", "x/y"), "folders go to --out"),
        (("a.png", "b.png", "--out", "c.png"), "is one file and there are 2 pictures"),
        (("a.png", "--out", "-", "--json"), "both want standard output"),
        (("a.png", "--reference", "gone.png"), "there is no --reference gone.png"),
        (("a.png", "--run", "."), "--run and --weights"),
        (("a.png", "--device", "gpu"), "'gpu' is not a device"),
    ],
)
def test_wrong_command_lines(
    words: tuple[str, ...], said: str, denoise: Run, photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        photo.save(name)
    code, _, err = denoise(*words)
    assert code == 2
    assert said in one_line(err)
    assert listing(tmp_path) == {"a.png", "b.png"}


def test_a_full_disk_leaves_nothing(
    weights: Path, photo: Image.Image, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    photo.save(tmp_path / "a.png")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        code, _, err = cli(capfd, "denoise", tmp_path / "a.png", "--weights", weights, "--device", "cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert code == 1
    assert "cannot write" in one_line(err)
    assert listing(tmp_path) == {"a.png"}


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_leaves_whole_files_alone(number: signal.Signals, weights: Path, tmp_path: Path) -> None:
    large = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
    for name in ("a", "b", "c"):
        Image.fromarray(large[:20, :20] if name == "a" else large).save(tmp_path / f"{name}.png", compress_level=0)
    process = start(
        *("-m", "dsdmae_cli", "denoise", tmp_path, "--weights", weights, "--device", "cpu", "--passes", "16")
    )
    wait_until(lambda: (tmp_path / "a.denoised.png").exists(), process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"stopped by {signal_words(number)}: 1 of 3 pictures are done" in err
    assert listing(tmp_path) == {"a.png", "b.png", "c.png", "a.denoised.png"}
