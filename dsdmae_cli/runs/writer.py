"""Checkpoints written beside the training: tensors are copied aside, and a thread hashes, writes and syncs them.

What is said to be saved has been waited for. On a CPU nothing is gained by it, since the thread would take the cores
that train: there a checkpoint is written at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dsdmae_cli import checkpoint
from dsdmae_cli.checkpoint import Checkpoint


class Writer:
    """Writes one checkpoint at a time.

    Args:
        device: that trains.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future[Path] | None = None

    def save(self, folder: Path, saved: Checkpoint, keep: int) -> None:
        """As checkpoint.save, which may be under way when this returns; the one before is waited for.

        Raises:
            RunFailed: this one or the one before cannot be written.
        """
        self.wait()
        if not in_background(self.device):
            checkpoint.save(folder, saved, keep)
            return
        aside, arrived = _aside(saved, self.device)
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

        def write() -> Path:
            arrived()
            return checkpoint.save(folder, aside, keep)

        self._pending = self._thread.submit(write)

    def check(self) -> None:
        """Raise what became of a checkpoint that could not be written, if that is known by now."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Until what was to be saved is on the disk.

        Raises:
            RunFailed: it cannot be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Let a checkpoint that is under way come to its end, whatever that is."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)


def in_background(device: torch.device) -> bool:
    """Whether a thread writes while the device trains."""
    return device.type == "cuda"


def _aside(saved: Checkpoint, device: torch.device) -> tuple[Checkpoint, Callable[[], None]]:
    """A copy that training does not change, and what waits until it is whole.

    On CUDA the copies stand in line before the next step's kernels, so that the host goes on at once.
    """

    def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: t.detach().to("cpu", non_blocking=True) if t.is_cuda else t.detach().clone()
            for name, t in tensors.items()
        }

    aside = replace(
        saved, model=copied(saved.model), training=copied(saved.training), state=copy.deepcopy(saved.state),
    )  # fmt: skip
    if device.type != "cuda":
        return aside, lambda: None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return aside, event.synchronize
