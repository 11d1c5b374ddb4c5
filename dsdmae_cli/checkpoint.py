"""Checkpoints that survive whatever happens while they are written.

A checkpoint is a directory `step-00001234/` with tensors as safetensors, the rest as JSON, and a manifest of
SHA-256 sums. It is written under another name, synced, and renamed; so the newest either is whole or is not there.
Both of its formats would load a flipped bit in silence, hence the sums. Nothing in it is ever unpickled. Who will not
go on training reads the weights alone (`load_newest_weights`): AdamW's moments are two thirds of what is stored.
"""

from __future__ import annotations

import errno
import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from dsdmae_cli.errors import CheckpointError
from dsdmae_cli.files import (
    RESUME,
    explained,
    instead,
    open_file,
    read_within,
    require_file,
    sync_directory,
    write_bytes,
    write_synced,
)
from dsdmae_cli.sharding import slice_like

FORMAT_VERSION = 1
_MOST_TENSORS = 100_000  # the largest networks have some thousands
DIGEST = "tensors_sha256"  # in the metadata of a file of weights
_MANIFEST = "manifest.json"
_MODEL = "model.safetensors"
_TRAINING = "training.safetensors"
_STATE = "state.json"
# What a disk or a process short of something says of a file that may be whole.
_PASSING = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES}


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on.

    Attributes:
        step: optimiser steps done.
        model: weights of the method, teacher included.
        training: tensors of optimiser and engine.
        state: everything that is not a tensor, as JSON knows it.
        settings: the resolved settings as tables.
    """

    step: int
    model: dict[str, Tensor]
    training: dict[str, Tensor]
    state: dict[str, Any]
    settings: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Weights:
    """What a checkpoint has for those who will not go on training.

    Attributes:
        step, model, state: as in Checkpoint.
    """

    step: int
    model: dict[str, Tensor]
    state: dict[str, Any]


class _State(BaseModel):
    """state.json; what a run and its observers add is theirs to check."""

    model_config = ConfigDict(extra="allow", strict=True)

    format: int
    step: int = Field(ge=0)
    settings: dict[str, dict[str, Any]]


class MayBeWhole(CheckpointError):  # noqa: N818
    """A checkpoint that this program, or this moment, cannot read: to pass it over would be to lose it."""


L = TypeVar("L", Checkpoint, Weights)


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint below `folder` and remove all but the newest `keep`.

    Raises:
        RunFailed: it cannot be written; older ones are intact.
    """
    target = folder / f"step-{checkpoint.step:08d}"
    settings = {"settings": json.dumps(checkpoint.settings), "format": str(FORMAT_VERSION)}
    contents = {
        _MODEL: _serialize(checkpoint.model, settings),
        _TRAINING: _serialize(checkpoint.training, settings),
        _STATE: json.dumps(
            {
                "format": FORMAT_VERSION,
                "step": checkpoint.step,
                "settings": checkpoint.settings,
                **checkpoint.state,
            }
        ).encode(),
    }
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    contents[_MANIFEST] = json.dumps(sums, indent=1).encode()
    aside, earlier = (folder / f".{target.name}.{secrets.token_hex(8)}.partial" for _ in range(2))
    with explained(target):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(".step-*.partial"):  # of a process that was killed while it wrote
                shutil.rmtree(leftover) if not leftover.is_symlink() else leftover.unlink()
            aside.mkdir()
            for name, content in contents.items():
                write_synced(aside / name, content)
            sync_directory(aside)
            if target.exists():  # a step saved twice: by SIGUSR1 and at the epoch's end, or one that was damaged
                target.rename(
                    earlier
                )  # at once: while it is deleted a crash, or a reader on NFS, would leave half of it
            aside.rename(target)
            sync_directory(folder)
        finally:
            for left in (aside, earlier):
                shutil.rmtree(left, ignore_errors=True)
        # Later steps than this one were passed over as damaged when the run resumed; they must not outlive it.
        for passed_over in [path for path in newest_first(folder) if path.name > target.name]:
            kept = folder / f"damaged-{passed_over.name}"
            shutil.rmtree(kept, ignore_errors=True)
            passed_over.rename(kept)
        for old in newest_first(folder)[keep:]:
            shutil.rmtree(old, ignore_errors=True)
    return target


def _serialize(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file, the same bytes for the same content.

    The library writes metadata in an order that changes from process to process; runs could not be compared by byte.
    """
    content = save_tensors({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, metadata)
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints below `folder`, by step, newest first."""
    return sorted((p for p in folder.glob("step-*") if p.is_dir()), reverse=True)


def load(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: a file is missing or damaged, or the format is a newer program's.
    """
    step, settings, state, (model, training) = _read(path, _MODEL, _TRAINING)
    return Checkpoint(step=step, model=model, training=training, state=state, settings=settings)


def _weights_alone(path: Path) -> Weights:
    """Read and verify the weights of a checkpoint; what only training needs is neither read nor verified.

    Raises:
        CheckpointError: as load.
    """
    step, _, state, (model,) = _read(path, _MODEL)
    return Weights(step=step, model=model, state=state)


def _read(path: Path, *names: str) -> tuple[int, dict[str, Any], dict[str, Any], list[dict[str, Tensor]]]:
    """(step, settings, state, the tensors of each file in `names`), every file held against its sum."""
    try:
        sums = dict(json.loads(read_within(path / _MANIFEST)))
        contents = {_STATE: read_within(path / _STATE)} | {name: _content(path / name) for name in names}
        damaged = [name for name, content in contents.items() if hashlib.sha256(content).hexdigest() != sums.get(name)]
        if damaged != [_STATE] or _STATE not in sums:  # a newer program may have other files
            _refuse_newer(path, contents[_STATE])
        if damaged:
            raise CheckpointError(f"checkpoint {path} is damaged: {damaged[0]} does not match its checksum")
        state = _State.model_validate_json(contents[_STATE])
        if f"step-{state.step:08d}" != path.name:
            raise ValueError(f"{_STATE} is of step {state.step}")
        tensors = [load_tensors(contents[name]) for name in names]
        return state.step, state.settings, dict(state.model_extra or {}), tensors
    except OSError as error:
        if error.errno in _PASSING:
            raise MayBeWhole(
                f"checkpoint {path} cannot be read now ({_short(error)}); try again, or move that directory away to go"
                " on from the one before"
            ) from error
        raise CheckpointError(f"checkpoint {path} is damaged: {_short(error)}") from error
    except (KeyError, ValueError, TypeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {_short(error)}") from error


def _content(path: Path) -> bytes:
    """What a file of tensors holds; nothing, which fits no sum, where its size is not what its own header says: a hole
    of gigabytes is not read to find it out."""
    with open_file(path) as file:
        with suppress(SafetensorError), safe_open(path, "pt"):  # maps it, and reads its header alone
            return file.read()
        return b""


def _refuse_newer(path: Path, content: bytes) -> None:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return
    written = found.get("format") if isinstance(found, dict) else None
    if isinstance(written, int) and written > FORMAT_VERSION:
        raise MayBeWhole(
            f"checkpoint {path} was written by a newer program (format {written}, this one knows {FORMAT_VERSION});"
            " update dsdmae, nothing was changed"
        )


def newest_settings(folder: Path) -> dict[str, dict[str, Any]] | None:
    """Settings by which the newest checkpoint was trained, None where there is none that says so; tensors are not read.

    Raises:
        CheckpointError: it was written by a newer program.
    """
    for path in newest_first(folder):
        try:
            return _read(path)[1]
        except MayBeWhole:
            raise
        except CheckpointError:  # passed over, and named, when it is loaded
            continue
    return None


def load_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, if any, and a line about each damaged one that was passed over.

    Raises:
        MayBeWhole: one that may be whole would be passed over.
    """
    return _newest(folder, load)


def told_apart(folder: Path, step: int) -> tuple[str, str]:
    """Name of the checkpoint of a step, and a digest that only the very same one has."""
    name = f"step-{step:08d}"
    return name, hashlib.sha256((folder / name / _MANIFEST).read_bytes()).hexdigest()


def load_chosen(folder: Path, name: str, digest: str) -> Checkpoint:
    """The checkpoint that another process chose.

    Raises:
        CheckpointError: it is not here, damaged, or another one.
    """
    found = load(folder / name)
    if told_apart(folder, found.step) != (name, digest):
        raise CheckpointError(
            f"checkpoint {folder / name} is not the one that the first process reads; all processes must see one and"
            " the same run directory"
        )
    return found


def load_newest_weights(folder: Path) -> tuple[Weights | None, list[str]]:
    """The newest weights that are whole, if any, and a line about each damaged checkpoint that was passed over."""
    return _newest(folder, _weights_alone)


def _newest(folder: Path, load_one: Callable[[Path], L]) -> tuple[L | None, list[str]]:
    complaints: list[str] = []
    tried: set[Path] = set()
    # Listed anew for each: a run that goes on writes newer ones and deletes what is read here.
    while (path := next((path for path in newest_first(folder) if path not in tried), None)) is not None:
        try:
            return load_one(path), complaints
        except MayBeWhole:
            raise
        except CheckpointError as error:
            complaints += [str(error)] if path.exists() else []
            tried.add(path)
    return None, complaints


def _short(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{_STATE}: {'.'.join(map(str, first['loc'])) or 'it'}: {first['msg'].lower()}"
    return f"{type(error).__name__}: {error}".splitlines()[0]


def load_into(module: nn.Module, state: dict[str, Tensor], origin: str) -> None:
    """Load weights that must fit exactly; a sharded module takes its slices of them.

    Raises:
        CheckpointError: keys are missing, unexpected or of another shape; the first few are listed.
    """
    own = module.state_dict()
    check_fit(own, state, origin)
    module.load_state_dict({name: slice_like(tensor, own[name]) for name, tensor in state.items()})


def check_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], origin: str) -> None:
    """See that weights have the names and shapes of a network's own.

    Raises:
        CheckpointError: keys are missing, unexpected or of another shape; the first few are listed.
    """
    faults = [f"missing {k}" for k in own if k not in state]
    faults += [f"unexpected {k}" for k in state if k not in own]
    faults += [
        f"{k} is {tuple(state[k].shape)}, not {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if faults:
        shown = "; ".join(faults[:4]) + (f"; and {len(faults) - 4} more" if len(faults) > 4 else "")
        raise CheckpointError(f"the weights in {origin} do not fit: {shown}")


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """A name for weights or other tensors: the same for the same names, types, shapes and values, wherever they lie."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        kind = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name}\0{kind}\0{'x'.join(map(str, tensor.shape))}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)  # no copy: features can be gigabytes
    return digest.hexdigest()


def save_weights(path: Path, state: dict[str, Tensor], metadata: dict[str, str], advice: str = RESUME) -> None:
    """Write weights as one safetensors file with their digest, whole or not at all.

    Args:
        advice: what to do where it cannot be written.
    """
    write_bytes(path, _serialize(state, {"format": "pt", DIGEST: weights_sha256(state), **metadata}), advice)


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        CheckpointError: it cannot be read, is no safetensors file, has more tensors than any network, or others than it
            was written with. Files that say no digest are taken as they are.
    """
    try:
        require_file(path)
        with safe_open(path, "pt") as file:
            written = (file.metadata() or {}).get(DIGEST)
            if (number := len(file.keys())) > _MOST_TENSORS:
                raise CheckpointError(f"{path} has {number:,} tensors, more than any network; it is no file of weights")
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is no readable safetensors file: {_short(error)}{instead(path)}") from error
    if written is not None and weights_sha256(state) != written:
        raise CheckpointError(f"{path} is damaged: its tensors do not match the digest in it; copy or make it again")
    return state
