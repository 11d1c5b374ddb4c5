"""What must not cost a result or a run (docs/design/faults.md): pipes and devices where a file is asked for.

Whoever opens a named pipe waits until somebody writes into it, and /dev/zero has no end.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import assignments, cli, digit_folder, one_line, words
from PIL import Image

from dsdmae_cli.data.base import UnreadableImage
from dsdmae_cli.data.files import Directory, FileImages
from dsdmae_cli.files import open_file, require_file, stamp_of

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not hasattr(os, "mkfifo") or not Path("/dev/zero").exists(), reason="no pipes and devices here"),
]
SECONDS = 30  # that a command may wait
# What is made of FILE; the settings of a tiny run follow `pretrain`.
COMMANDS = {
    "pretrain.tar": ("pretrain", "FILE"),
    "pretrain.zip": ("pretrain", "FILE"),
    "pretrain.parquet": ("pretrain", "FILE"),
    "named.parquet": ("pretrain", "parquet:FILE"),
    "shards.tar": ("pretrain", "FILE*"),
    "from.pth": ("pretrain", "digits", "--from", "FILE"),
    "from.safetensors": ("pretrain", "digits", "--from", "FILE"),
    "settings.toml": ("pretrain", "digits", "--config", "FILE"),
    "labels.csv": ("pretrain", "FOLDER", "--labels", "FILE"),
    "probe.pth": ("probe", "FILE", "--dataset", "digits"),
    "probe.safetensors": ("probe", "FILE", "--dataset", "digits"),
    "predict.safetensors": ("predict", "FILE", "PICTURE"),
    "export.pth": ("export", "FILE", "--to", "timm", "--out", "exported"),
    "picture.png": ("denoise", "FILE"),
    "reference.png": ("denoise", "PICTURE", "--reference", "FILE"),
    "denoiser.safetensors": ("denoise", "PICTURE", "--weights", "FILE"),
    "denoiser.onnx": ("denoise", "PICTURE", "--weights", "FILE"),
    "compare.json": ("compare", "FILE"),
}


@pytest.fixture(autouse=True)
def _waits_for_nobody() -> Iterator[None]:
    def too_long(*_: object) -> None:
        raise AssertionError(f"it still waits after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def odd(path: Path, kind: str) -> Path:
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_no_file_is_one_line(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = odd(tmp_path / f"odd{Path(name).suffix}", kind)
    folder = digit_folder(tmp_path / "folder", 16, 4)
    picture = shutil.copy(next(folder.rglob("*.png")), tmp_path / "picture.png")
    places = {"FILE": str(path), "PICTURE": str(picture), "FOLDER": str(folder)}
    command, *given = (places.get(word, word) for word in COMMANDS[name])
    given = [word.replace("FILE", str(path)) for word in given]
    if command == "pretrain":
        given += [*words(assignments("digits")[1:]), "--out", str(tmp_path / "run")]
    before = {found for found in tmp_path.rglob("*") if found != path}
    code, _, err = cli(capfd, command, *given)
    assert code == 2, err
    said = one_line(err)
    assert str(path) in said or "PICTURE" in COMMANDS[name]
    kinds = {"pipe": "it is a named pipe, no file", "device": "it is a device, no file"}
    assert kinds[kind] in said or (command == "compare" and "there is no" in said) or "is no .tar file" in said
    assert {found for found in tmp_path.rglob("*") if found != path} == before


def test_what_took_a_files_place_keeps_nobody_waiting(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    files = Directory(tmp_path, ["a.png"])
    images = FileImages(files, np.arange(1))
    assert images.load(0).shape == (8, 8, 3)
    (tmp_path / "a.png").unlink()
    os.mkfifo(tmp_path / "a.png")
    assert files.content(0) is None
    assert files.stamp(0) is None
    for read in (images.load, images.file_bytes, images.size):
        with pytest.raises(UnreadableImage, match="it is a named pipe, no file"):
            read(0)


def test_folders_and_files_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    require_file(tmp_path)
    assert stamp_of(file)[0] == 3
    with open_file(file) as opened:
        assert opened.read() == b"abc"
    require_file(os.devnull, handed_over=True)
    with pytest.raises(OSError, match="it is a device, no file"):
        require_file(os.devnull)


@pytest.mark.slow
def test_a_shell_may_hand_over_settings_and_labels(tmp_path: Path) -> None:
    folder = digit_folder(tmp_path / "folder", 16, 4)
    rows = "\n".join(f"{path.name},{path.parent.name}" for path in sorted(folder.rglob("*.png")))
    given = [*words(assignments(folder)), "--out", str(tmp_path / "run"), "--dry-run"]
    command = [sys.executable, "-m", "dsdmae_cli", "pretrain", *given, "--labels", "/dev/stdin"]
    done = subprocess.run(command, input=f"file,label\n{rows}\n", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
