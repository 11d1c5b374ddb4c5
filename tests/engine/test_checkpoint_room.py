"""Checkpoints where there is no room or no leave to write, and of processes that are killed while they save."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from saved import assert_is, made, names, save_two

from dsdmae_cli import checkpoint
from dsdmae_cli.artifacts.header import read_metadata
from dsdmae_cli.errors import RunFailed

# -- no room


def full(_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", range(6))  # four files, their directory, the folder
def test_no_space_while_syncing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    two = save_two(tmp_path)
    sync, calls = os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        full(None) if len(calls) > call else sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(RunFailed, match="No space left") as failed:
        checkpoint.save(two, made(3), keep=2)
    assert len(str(failed.value).splitlines()) == 1
    assert failed.value.exit_code == 1
    found, complaints = checkpoint.load_newest(two)
    assert complaints == []
    assert_is(found, 3 if call == 5 else 2)
    assert not list(two.glob(".*"))
    monkeypatch.undo()
    checkpoint.save(two, made(4), keep=2)
    assert_is(checkpoint.load_newest(two)[0], 4)


@pytest.mark.parametrize("earlier", [True, False])
def test_no_space_for_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool) -> None:
    path = tmp_path / "encoder.safetensors"
    if earlier:
        checkpoint.save_weights(path, {"a": torch.ones(3)}, {"kind": "old"})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFailed, match=r"encoder\.safetensors: No space left"):
        checkpoint.save_weights(path, {"a": torch.zeros(4)}, {"kind": "new"})
    assert names(tmp_path) == (["encoder.safetensors"] if earlier else [])
    if earlier:
        assert read_metadata(path)["kind"] == "old"


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    # Permission bits do not bind root, who runs tests in containers; a file in the way binds everybody.
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(RunFailed, match="cannot write"):
        checkpoint.save(tmp_path / "checkpoints", made(1), keep=2)
    assert (tmp_path / "checkpoints").read_text() == "mine"


def test_a_folder_without_permission(nobody: Path) -> None:
    save_two(nobody / "checkpoints")
    (nobody / "checkpoints").chmod(0o555)
    with pytest.raises(RunFailed, match="Permission denied"):
        checkpoint.save(nobody / "checkpoints", made(3), keep=2)
    assert_is(checkpoint.load_newest(nobody / "checkpoints")[0], 2)


# -- another process: killed while it saves, and with a limit on the size of its files

LABORATORY = """
import json, os, random, resource, signal, sys, time
from dataclasses import replace
from pathlib import Path

from dsdmae_cli import checkpoint, optim
from dsdmae_cli.errors import RunFailed
from saved import made

folder, draw = Path(sys.argv[1]), random.Random(0)

def child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    return pid

def saving(report, first):
    for step in range(first, first + 10_000):
        for _ in range(1 + step % 2):  # every other step is saved twice
            checkpoint.save(folder, made(step), keep=2)
        os.write(report, step.to_bytes(4, "little"))

began = time.perf_counter()
for step in range(1, 6):
    checkpoint.save(folder, made(step), keep=2)
duration = (time.perf_counter() - began) / 5

kills, done = [], 5
for _ in range(60):
    inlet, outlet = os.pipe()
    pid = child(lambda: saving(outlet, done + 1))
    os.close(outlet)
    time.sleep(draw.uniform(0, 6 * duration))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    told = os.read(inlet, 1 << 20)
    os.close(inlet)
    done = int.from_bytes(told[-4:], "little") if told else done
    torn = bool(list(folder.glob(".step-*")))
    found, complaints = checkpoint.load_newest(folder)
    right = found is not None and all((found.model["weight"] == found.step).tolist()[0])
    kills.append({"done": done, "found": found and found.step, "right": right, "torn": torn, "said": complaints})
    done = max(done, found.step if found else 0)

def limited():
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    try:
        checkpoint.save(folder, made(done + 1), keep=2)
    except RunFailed as error:
        os.write(outlet, str(error).encode())

inlet, outlet = os.pipe()
pid = child(limited)
os.close(outlet)
os.waitpid(pid, 0)
message = os.read(inlet, 1 << 20).decode()
found, complaints = checkpoint.load_newest(folder)
leftovers = [p.name for p in folder.glob(".step-*") if f".{pid}." in p.name]
print(json.dumps({"kills": kills, "message": message, "found": found.step, "done": done, "leftovers": leftovers}))
"""


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process told that imports the program once and then forks victims."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", LABORATORY, str(tmp_path_factory.mktemp("laboratory"))]
    environ = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_9_at_random_points_of_saving(laboratory: dict[str, Any]) -> None:
    kills = laboratory["kills"]
    for kill in kills:
        # A step saved once is never lost; one that is saved again may be caught with its first copy removed.
        assert kill["found"] is not None, kill
        assert kill["found"] >= kill["done"] - kill["done"] % 2, kill
        assert kill["right"], kill
    assert sum(kill["torn"] for kill in kills) >= 5, "the kills missed the saving"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_limit_on_the_size_of_files(laboratory: dict[str, Any]) -> None:
    assert "File too large" in laboratory["message"]
    assert "--resume" in laboratory["message"]
    assert len(laboratory["message"].splitlines()) == 1
    assert laboratory["found"] == laboratory["done"]
    assert laboratory["leftovers"] == []
