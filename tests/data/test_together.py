"""Images of several processes lie in the memory of their machine once, are those of one process, and leave nothing."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from helpers import assignments, digit_folder, masked_folder, one_line, start, untimed, words
from safetensors.torch import load_file

from dsdmae_cli.data import together
from dsdmae_cli.data.resident import to_tensor
from dsdmae_cli.data.square import Squares
from dsdmae_cli.errors import DataError

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# In the given processes something is otherwise.
DRIVER = """
import errno, os, sys, signal
from types import SimpleNamespace
from dsdmae_cli.__main__ import main
from dsdmae_cli.data import files, together
from dsdmae_cli.data.base import UnreadableImage

def full(*given):
    raise OSError(errno.ENOSPC, "No space left on device")

def unreadable(self, index):
    raise UnreadableImage(f"image {index}", "truncated file")

def killed(self, index):
    os.kill(os.getpid(), signal.SIGKILL)

PATCH
main(sys.argv[1:])
"""
OWN = "os.posix_fallocate = full"
NO_ROOM = f"""{OWN}
together.psutil = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=4))"""
UNREADABLE = """if os.environ["RANK"] == "1": files.FileImages.load = unreadable"""
KILLED = """if os.environ["RANK"] == "1": files.FileImages.load = killed"""


def in_two(folder: Path, patch: str, *arguments: str | Path) -> tuple[int, str]:
    """(exit code, what the program said, without torchrun's own account) of two processes."""
    driver = folder / "driver.py"
    driver.write_text(DRIVER.replace("PATCH", patch))
    process = start(*TORCHRUN, driver, *arguments)
    _, err = process.communicate(timeout=240)
    return process.returncode, re.sub(r"\nTraceback.*(?=ChildFailedError).*", "", err, flags=re.DOTALL)


def left_over() -> list[str]:
    return [path.name for path in Path("/dev/shm").glob("*dsdmae*")]


@pytest.fixture
def torn(tmp_path: Path) -> Path:
    """A folder of digits of which three to learn from, in the parts of both processes, and one to look at are empty."""
    folder = digit_folder(tmp_path / "torn")
    train, test = (sorted(folder.glob(f"{split}/*/*.png")) for split in ("train", "test"))
    for path in (train[3], train[4], train[-2], test[6]):
        path.write_bytes(b"")
    return folder


@pytest.mark.slow
def test_two_processes_have_the_images_of_one_in_half_of_the_memory(torn: Path, tmp_path: Path) -> None:
    here = Path(__file__).parent
    environ = {"PYTHONPATH": os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")])}
    process = start(
        *TORCHRUN, here / "common_images.py", torn, masked_folder(tmp_path / "masked"), tmp_path, environ=environ
    )
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    for rank in range(2):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert all(found["same"].values()), found
        assert found["said"] == ["decoding 42 images"] * 4
        assert found["Rss"] > 500
        assert found["Pss"] < 0.6 * found["Rss"]
    assert left_over() == []


@pytest.mark.slow
def test_runs_with_images_in_common_and_with_their_own_are_the_same(torn: Path, tmp_path: Path) -> None:
    chosen = words(
        assignments(
            torn, "train.knn_every=1", "data.max_unreadable=0.5", "train.micro_batch=2", "data.placement=resident"
        )
    )
    found = {}
    for name, patch in {"common": "", "own": OWN}.items():
        code, err = in_two(tmp_path, patch, "pretrain", *chosen, "--out", tmp_path / name)
        assert code == 0, err
        assert (f"images of their own each, not in common: [Errno {errno.ENOSPC}] No space left" in err) == (
            name == "own"
        )
        assert "3 unreadable images: " in err
        result = json.loads((tmp_path / name / "result.json").read_text())
        told = {key: value for key, value in result.items() if name not in str(value) and key != "seconds"}
        found[name] = told, untimed(tmp_path / name), load_file(tmp_path / name / "encoder.safetensors")
    (told, lines, weights), (told_too, lines_too, weights_too) = found.values()
    assert told["knn_accuracy"] is not None
    assert (told, lines) == (told_too, lines_too)
    assert weights.keys() == weights_too.keys()
    assert all(torch.equal(weights[key], weights_too[key]) for key in weights)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize(
    ("patch", "said"),
    [
        (UNREADABLE, "in process 1 of 2: 2 unreadable images so far, more than the limit of 1 of 42 (first: image 21"),
        (NO_ROOM, "2 processes of this machine cannot have their images in common, and 2 times 0.0 GiB are more than"),
        (KILLED, ""),
    ],
)
def test_what_fails_in_one_process_ends_all(patch: str, said: str, digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    chosen = words(assignments(digits, "data.placement=resident", "train.knn_every=1"))
    code, err = in_two(tmp_path, patch, "pretrain", *chosen, "--out", run)
    assert code != 0
    assert "Traceback" not in err
    if said:
        assert said in one_line(err)
    else:  # torchrun's SIGTERM and the broken connection come at the same time
        [line] = [line for line in err.splitlines() if line.startswith("dsdmae:")]
        assert "another process of this run ended" in line or "stopped by signal 15" in line
    assert not run.exists()
    assert left_over() == []


# -- without a group


def test_squares_close_up_where_some_are_missing() -> None:
    squares = Squares([5, 2, 9, 7], (2, 3))
    squares.lie_in()
    for number, index in enumerate((5, 2, 9, 7)):
        squares.put(index, np.full((2, 3, 3), number, np.uint8))
    assert (2 in squares, 3 in squares) == (True, False)
    squares.close_up({2: "", 5: ""})
    assert squares.kept == [9, 7]
    assert squares.pixels[:, 0, 0, 0].tolist() == [2, 3]
    assert to_tensor(squares.pixels, torch.device("cpu")).data_ptr() == squares.pixels.__array_interface__["data"][0]


def test_a_file_that_is_another_one_in_this_process_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(bytes(8))
    own = path.stat()
    assert len(together._mapped(together._Offer(str(path), (own.st_dev, own.st_ino)), 8)) == 8
    with pytest.raises(OSError, match="is another file here"):
        together._mapped(together._Offer(str(path), (own.st_dev, own.st_ino + 1)), 8)


def test_images_of_their_own_need_room_for_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=16 << 30))
    together._require_room(8 << 30, 1)
    together._require_room(4 << 30, 2)
    with pytest.raises(
        DataError, match=r"2 times 5.0 GiB are more than the 8.0 GiB of its memory to spare; use --set data.p"
    ):
        together._require_room(5 << 30, 2)
