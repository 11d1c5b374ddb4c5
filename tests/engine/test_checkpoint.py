"""Checkpoints against what happens to files: damage, leftovers, foreign pickles; and what of them is kept."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from saved import FILES, assert_is, made, names, save_two
from torch import nn

from dsdmae_cli import checkpoint, optim
from dsdmae_cli.artifacts.header import read_metadata
from dsdmae_cli.errors import CheckpointError


@pytest.fixture
def two(tmp_path: Path) -> Path:
    return save_two(tmp_path)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    source = made(7)
    source.model["transposed"] = torch.arange(6.0).reshape(2, 3).T  # safetensors takes contiguous tensors alone
    path = checkpoint.save(tmp_path / "new", source, keep=2)
    assert path.name == "step-00000007"
    assert names(path) == sorted(FILES)
    found = checkpoint.load(path)
    assert torch.equal(found.model.pop("transposed"), source.model["transposed"])
    assert_is(found, 7)
    assert checkpoint.load_newest(tmp_path / "nothing") == (None, [])


def test_weights_alone(two: Path) -> None:
    """AdamW's moments are neither read nor verified; what is read is verified as ever."""
    newest = two / "step-00000002"
    (newest / "training.safetensors").write_bytes(b"damaged")
    found, complaints = checkpoint.load_newest_weights(two)
    assert found is not None
    assert (found.step, found.state, complaints) == (2, made(2).state, [])
    assert torch.equal(found.model["weight"], made(2).model["weight"])
    assert_is(checkpoint.load_newest(two)[0], 1)
    for name in ("model.safetensors", "state.json"):
        whole = (newest / name).read_bytes()
        (newest / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        found, complaints = checkpoint.load_newest_weights(two)
        assert found is not None
        assert found.step == 1
        assert f"{name} does not match its checksum" in complaints[0]
        (newest / name).write_bytes(whole)


def test_a_flipped_bit_anywhere_is_noticed(two: Path) -> None:
    newest = two / "step-00000002"
    draw = random.Random(0)
    for name in FILES:
        whole = (newest / name).read_bytes()
        bits = range(8 * len(whole))
        for bit in [0, bits[-1], *draw.sample(bits, 200)]:
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            (newest / name).write_bytes(damaged)
            found, complaints = checkpoint.load_newest(two)
            assert_is(found, 1)
            [complaint] = complaints
            assert str(newest) in complaint
            assert "damaged" in complaint
        (newest / name).write_bytes(whole)
    assert_is(checkpoint.load_newest(two)[0], 2)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("fate", ["missing", "empty", "truncated", "a directory", "a pipe"])
def test_a_lost_file_is_noticed(two: Path, name: str, fate: str) -> None:
    path = two / "step-00000002" / name
    whole = path.read_bytes()
    path.unlink()
    if fate == "a directory":
        path.mkdir()
    elif fate == "a pipe":  # which whoever opens it would wait for
        os.mkfifo(path)
    elif fate != "missing":
        path.write_bytes(b"" if fate == "empty" else whole[: len(whole) // 2])
    found, complaints = checkpoint.load_newest(two)
    assert_is(found, 1)
    assert len(complaints) == 1


@pytest.mark.parametrize("kept", [0, 1])
def test_a_hole_of_a_terabyte_is_not_read(two: Path, kept: int) -> None:
    path = two / "step-00000002" / "model.safetensors"
    os.truncate(path, path.stat().st_size * kept)  # nothing, or a whole file before the hole
    os.truncate(path, 2**40)
    found, complaints = checkpoint.load_newest(two)
    assert_is(found, 1)
    assert [line.endswith("model.safetensors does not match its checksum") for line in complaints] == [True]


@pytest.mark.parametrize("manifest", ["{}", "[]", "null", "5", '"text"', '["state.json"]', '{"state.json": 5}'])
def test_a_manifest_of_another_kind_is_damage(two: Path, manifest: str) -> None:
    (two / "step-00000002" / "manifest.json").write_text(manifest)
    found, complaints = checkpoint.load_newest(two)
    assert_is(found, 1)
    assert len(complaints) == 1


def test_all_damaged_is_none_with_a_line_each(two: Path) -> None:
    for path in two.glob("*/state.json"):
        path.unlink()
    found, complaints = checkpoint.load_newest(two)
    assert found is None
    assert ["step-00000002" in complaints[0], "step-00000001" in complaints[1]] == [True, True]


def seal(path: Path) -> None:
    """Make the manifest fit whatever the files hold now."""
    sums = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in FILES if name != "manifest.json"}
    (path / "manifest.json").write_text(json.dumps(sums))


def test_a_newer_format_is_refused(two: Path) -> None:
    path = two / "step-00000002"
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | {"format": 99}))
    seal(path)
    with pytest.raises(CheckpointError, match="update dsdmae"):
        checkpoint.load(path)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = tmp_path / "it ran"
    pickle.loads(pickle.dumps(Bomb(trace)))
    assert trace.exists(), "the bomb works"
    trace.unlink()
    for name in ("model.safetensors", "training.safetensors", "state.json"):
        path = checkpoint.save(two, made(3), keep=2)
        torch.save({"weight": Bomb(trace)}, path / name)
        seal(path)
        with pytest.raises(CheckpointError):
            checkpoint.load(path)
        with pytest.raises(CheckpointError):
            read_metadata(path / name)
    assert not trace.exists()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert_is(checkpoint.load(two / "step-00000002"), 2)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        checkpoint.save(tmp_path, made(step), keep=3)
        expected = [f"step-{n:08d}" for n in range(max(1, step - 2), step + 1)]
        assert names(tmp_path) == expected
    # The same step again takes the place of the first.
    checkpoint.save(tmp_path, made(5), keep=3)
    assert names(tmp_path) == expected


def test_damaged_checkpoints_take_no_place_of_whole_ones(tmp_path: Path) -> None:
    """A run that went back past damaged checkpoints saves steps below theirs."""
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, made(step), keep=3)
    for step in (20, 30):
        (tmp_path / f"step-{step:08d}" / "state.json").write_bytes(b"{")
    assert_is(checkpoint.load_newest(tmp_path)[0], 10)
    saved = checkpoint.save(tmp_path, made(12), keep=2)
    assert saved.is_dir(), "what was just saved is gone"
    assert_is(checkpoint.load_newest(tmp_path)[0], 12)
    assert_is(checkpoint.load(tmp_path / "step-00000010"), 10)


def test_a_step_that_is_saved_again_takes_the_place_of_the_first_at_once(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody reads the first, and a network's file system deletes no folder with an open file."""
    delete = shutil.rmtree

    def busy(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            (path / "model.safetensors").unlink()
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        delete(path, ignore_errors=True)

    newest = checkpoint.newest_first(two)[0]
    again = checkpoint.load(newest)
    monkeypatch.setattr(shutil, "rmtree", busy)
    checkpoint.save(two, replace(again, state={**again.state, "again": 1}), keep=2)
    assert checkpoint.load(newest).state["again"] == 1
    assert len(checkpoint.newest_first(two)) == 2


def test_a_checkpoint_that_its_run_deletes_while_it_is_read_is_not_damaged(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on has saved twice meanwhile: both that were listed are gone."""
    read, before = checkpoint._read, set(checkpoint.newest_first(two))

    def slowly(path: Path, *names: str) -> Any:
        if path in before and path.exists():
            for step in (3, 4):
                checkpoint.save(two, made(step), keep=2)
        return read(path, *names)

    monkeypatch.setattr(checkpoint, "_read", slowly)
    found, complaints = checkpoint.load_newest(two)
    assert_is(found, 4)
    assert complaints == []


def test_leftovers_of_a_killed_process_are_removed(two: Path) -> None:
    leftover = two / ".step-00000002.999.partial"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    assert_is(checkpoint.load_newest(two)[0], 2)
    checkpoint.save(two, made(3), keep=2)
    assert names(two) == ["step-00000002", "step-00000003"]


# -- weights into a module


def test_weights_that_do_not_fit_are_listed() -> None:
    def net(width: int = 3) -> nn.Module:
        return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 1))

    module, other = net(), net()
    checkpoint.load_into(module, other.state_dict(), "here")
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))

    state = net(4).state_dict()
    state["extra"] = state.pop("2.bias")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(CheckpointError) as refused:
        checkpoint.load_into(module, state, "here")
    message = str(refused.value)
    assert "in here do not fit" in message
    assert "missing 2.bias" in message
    assert "unexpected extra" in message
    assert "0.weight is (4, 2), not (3, 2)" in message
    assert "more" in message
    assert len(message.splitlines()) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_an_optimiser_comes_back_bit_for_bit() -> None:
    def net() -> nn.Linear:
        torch.manual_seed(0)
        return nn.Linear(4, 3)

    def step(module: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
        module(torch.ones(2, 4)).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def adamw(module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)

    first = net()
    optimizer = adamw(first)
    step(first, optimizer)
    saved = optim.optimizer_tensors(optimizer, {id(p): n for n, p in first.named_parameters()})
    assert {"optimizer/exp_avg/weight", "optimizer/exp_avg_sq/bias", "optimizer/step/weight"} <= saved.keys()
    saved = {name: tensor.clone() for name, tensor in saved.items()}
    second = net()
    second.load_state_dict(first.state_dict())
    restored = adamw(second)
    optim.restore_optimizer(restored, {id(p): n for n, p in second.named_parameters()}, saved)
    for _ in range(2):
        step(first, optimizer)
        step(second, restored)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
