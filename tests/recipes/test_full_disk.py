"""A disk without room ends a run in one line, wherever that happens, and with room again it goes on."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    assignments,
    cli,
    listing,
    one_line,
    words,
)

from dsdmae_cli import checkpoint
from dsdmae_cli.files import write_bytes
from dsdmae_cli.runs.rundir import RunDir


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("what", ["metrics.jsonl", "checkpoints", "encoder.safetensors", "result.json"])
def test_a_full_disk_ends_the_run_in_one_line(
    what: str, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    room = pytest.MonkeyPatch()
    if what == "metrics.jsonl":
        if not Path("/dev/full").exists():
            pytest.skip("needs /dev/full")
        create = RunDir.create

        def and_fill(self: RunDir, settings: Any) -> None:
            create(self, settings)
            self._metrics = open("/dev/full", "a", encoding="utf-8", buffering=1)  # noqa: SIM115, PTH123  (the run closes it)

        room.setattr(RunDir, "create", and_fill)
    elif what == "checkpoints":
        room.setattr(checkpoint, "write_synced", full)
    elif what == "encoder.safetensors":
        room.setattr(checkpoint, "write_bytes", full_for_encoder)
    else:
        write = RunDir._write

        def unless_result(self: RunDir, name: str, text: str) -> None:
            with pytest.MonkeyPatch.context() as patched:
                if name == "result.json":
                    patched.setattr(os, "fsync", full)
                write(self, name, text)

        room.setattr(RunDir, "_write", unless_result)
    chosen = words(assignments(digits, "train.epochs=1"))
    try:
        code, _, err = cli(capfd, "pretrain", *chosen, "--out", run)
    finally:
        room.undo()
    assert code == 1, err
    assert "No space left" in one_line(err)
    assert what in one_line(err)
    assert not [name for name in listing(run) if name.endswith(".partial")]
    # With room again the run goes on, or begins anew where it had not begun; it says which.
    if (run / "metrics.jsonl").is_symlink():
        (run / "metrics.jsonl").unlink()
    begun = (run / "settings.toml").exists()
    assert ("go on with --resume" in err) == begun
    assert ("then start again" in err) == (not begun)
    again = ["--resume"] if begun else chosen
    code, out, err = cli(capfd, "pretrain", *again, "--out", run, "--json")
    assert code == 0, err
    assert json.loads(out)["steps"] == 5


def full_for_encoder(path: Path, content: bytes, *advice: str) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", full)
        _write_bytes(path, content, *advice)


_write_bytes = write_bytes
