"""`dsdmae bench` with odd photographs, with devices that run ahead or out of memory, and cut short."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.context
import os
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image

from dsdmae_cli.bench import gpu_parts, gpu_runs, machine, step
from dsdmae_cli.bench.feed import _places, photographs
from dsdmae_cli.bench.programme import read_programme
from dsdmae_cli.engine import Trainer
from dsdmae_cli.errors import RunFailed, SettingsError

CPU = torch.device("cpu")


def photograph(path: Path, mode: str = "RGB", orientation: int | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[0x112] = orientation
    Image.new(mode, (24, 16)).save(path, exif=exif)
    return path


def test_photographs_that_decoders_make_different_pictures_of_are_left_out(tmp_path: Path) -> None:
    photograph(tmp_path / "odd" / "cmyk.jpg", "CMYK")
    photograph(tmp_path / "odd" / "lying.jpg", orientation=6)
    plain = [photograph(tmp_path / "grey.jpg", "L"), photograph(tmp_path / "upright.jpg", orientation=1)]
    paths, dataset, left_out = photographs(tmp_path, most=10)
    assert (paths, len(dataset), left_out) == (plain, 2, 2)
    with pytest.raises(SettingsError, match="turned by its EXIF, or neither grey nor RGB"):
        photographs(tmp_path / "odd", most=10)


class Pack:
    """As far as a pack is asked for names."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]


def test_files_of_one_name_in_two_folders_are_two_in_a_pack(tmp_path: Path) -> None:
    a, b = photograph(tmp_path / "a" / "1.jpg"), photograph(tmp_path / "b" / "1.jpg")
    pack: Any = Pack("/packed/00000.shard!b/1.jpg", "/packed/00000.shard!a/1.jpg")
    assert _places([a, b], tmp_path, pack) == {a: 1, b: 0}
    assert _places([a], tmp_path / "a", pack) == {a: 1}
    other: Any = Pack("/packed/00000.shard!c/2.jpg")
    with pytest.raises(SettingsError, match="--packed holds none of the JPEGs"):
        photographs(tmp_path, 10, other)


def test_a_device_that_runs_ahead_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    did: list[str] = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: did.append("wait"))
    machine.timed(torch.device("mps"), lambda: did.append("work"))
    assert did == ["wait", "work", "wait"]


def test_a_step_that_does_not_fit_has_what_was_reckoned(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(self: Trainer, micro_batches: object) -> None:
        raise torch.OutOfMemoryError("of 80 GiB")

    monkeypatch.setattr(Trainer, "_step", too_much)
    part = gpu_parts.OnDevice(CPU, read_programme(True), lambda text: None)
    [found] = part.memory(["tiny"], [8])
    assert found.rows[0][2] == "out of memory"
    [data] = found.data["steps"]
    assert data["expected"] > 0
    assert (data["peak"], data["fits"]) == (None, False)
    json.dumps(found.json(), allow_nan=False)


def test_a_contender_leaves_signals_to_who_asks_and_says_what_it_died_of(monkeypatch: pytest.MonkeyPatch) -> None:
    did: list[object] = []

    class Pipe:
        def send(self, said: object) -> None:
            did.append(said)

    def fails(settings: object) -> Any:
        raise MemoryError

    monkeypatch.setattr(step, "serve", did.append)
    monkeypatch.setattr(step, "CONTENDERS", {"x": fails})
    settings = step_settings_on_a_cpu()
    step._live("x", settings, cast(Any, Pipe()), os.getpid())
    assert did == [os.getpid(), "MemoryError"]


def test_a_contender_that_nobody_waited_for_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: step._Contender) -> dict[str, float]:
        raise KeyboardInterrupt

    did: list[str] = []
    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "start", lambda self: did.append("start"))
    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "kill", lambda self: did.append("kill"))
    monkeypatch.setattr(step._Contender, "told", interrupted)
    with pytest.raises(KeyboardInterrupt):
        step._Contender("dsdmae", step_settings_on_a_cpu())
    assert did == ["start", "kill"]


def step_settings_on_a_cpu() -> Any:
    from dsdmae_cli.bench.subjects import step_settings

    return step_settings(batch_size=8, device="cpu", environ={})


def test_a_rate_is_of_many_steps_and_not_of_the_first(tmp_path: Path) -> None:
    rates = [1, 2, 90, 100, 110, 5]
    lines = [json.dumps({"step": n, "loss": 1.0, "images_per_second": rate}) for n, rate in enumerate(rates)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert gpu_runs._rate(tmp_path) == 100


def program(path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have commands of this program run a shell's lines in its place."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


def test_processes_of_torchrun_are_ended_through_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = tmp_path / "ended"
    program(tmp_path / "python", f"trap 'touch {ended}; exit 143' TERM; while :; do sleep 0.01; done", monkeypatch)
    monkeypatch.setattr(gpu_runs, "_MOST_SECONDS", 0.1)
    runs = gpu_runs.Runs(CPU, read_programme(True), lambda text: None)
    with pytest.raises(RunFailed, match="two processes took more than"):
        runs._torchrun([])
    assert ended.exists(), "killed at once, it would leave its processes behind"


def test_a_run_that_is_cut_short_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "python", "exec sleep 60", monkeypatch)
    runs = gpu_runs.Runs(CPU, read_programme(True), lambda text: None)
    with pytest.raises(KeyboardInterrupt), runs._started([], tmp_path) as child:
        raise KeyboardInterrupt
    assert child._process.poll() is not None
