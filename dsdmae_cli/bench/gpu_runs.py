"""The parts of gpu.toml that are whole runs: commands in processes of their own, as a person would type them."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dsdmae_cli.bench.programme import LeftOutError, Programme
from dsdmae_cli.bench.turns import Finding
from dsdmae_cli.errors import RunFailed
from dsdmae_cli.runs.child import Child, Slot

# Digits that there are to learn from: what a number of steps is in epochs.
_DIGITS = 1437
_MOST_SECONDS = 600
_PROCESSES = 2


@dataclass(frozen=True)
class Runs:
    """Short runs of `dsdmae pretrain` on digits.

    Args:
        device: where to train.
        programme: whose networks are meant.
        said: told how far it is.
    """

    device: torch.device
    programme: Programme
    said: Callable[[str], None]

    def words(self, network: str, batch_size: int, steps: int, *more: str) -> list[str]:
        """The command line of a run of about so many steps."""
        epochs = max(1, -(-steps * batch_size // _DIGITS))
        assignments = ["data.channels=3", *self.programme.networks[network], "train.knn_every=none", *more]
        words = ["pretrain", "--dataset", "digits", "--batch-size", str(batch_size), "--epochs", str(epochs)]
        words += ["--lr", "1e-4", "--set", "train.log_every=1"]
        return words + [word for text in assignments for word in ("--set", text)]

    def runs(self, steps: int, compiled: bool, half: bool, network: str, batch_size: int) -> list[Finding]:
        """The same run on the CPU, on the device eager and compiled, in fp16, and resumed."""
        kind = self.device.type

        def where(device: str, precision: str, compile_: bool) -> tuple[str, ...]:
            return f"train.device={device}", f"train.precision={precision}", f"train.compile={str(compile_).lower()}"

        place = str(self.device)
        variants: dict[str, tuple[str, ...]] = {"CPU, fp32": where("cpu", "fp32", False)}
        variants[f"{kind}, fp32"] = where(place, "fp32", False)
        variants[f"{kind}, bf16"] = where(place, "bf16", False)
        if compiled:
            variants[f"{kind}, bf16, compiled"] = where(place, "bf16", True)
        if half:
            variants[f"{kind}, fp16"] = where(place, "fp16", False)
        rows: list[list[str]] = []
        data: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory(prefix="dsdmae-bench-") as name:
            folder = Path(name)
            for number, (title, assignments) in enumerate(variants.items()):
                out, began = folder / str(number), time.monotonic()
                self._run([*self.words(network, batch_size, steps, *assignments), "--out", str(out)], folder)
                losses, rate = _losses(out), _rate(out)
                rows.append([title, str(len(losses)), f"{losses[0]:.5f}", f"{losses[-1]:.5f}", f"{rate:.0f}",
                             f"{time.monotonic() - began:.0f}"])  # fmt: skip
                data.append({"run": title, "losses": losses, "images_per_second": rate})
                self.said(f"  {title}: loss {losses[0]:.4f} to {losses[-1]:.4f}")
            settings = where(place, "bf16" if kind == "cuda" else "fp32", False)
            resumed = self._resumed(self.words(network, batch_size, steps, *settings), folder)
        first = [run["losses"][0] for run in data[1:]]
        apart = (max(first) - min(first)) / max(map(abs, first))
        self.said(f"  {resumed}")
        columns = ["run", "steps", "first loss", "last loss", "images/s, median of the second half", "seconds in all"]
        near = (
            f"First losses on {kind} are within {100 * apart:.2g}% of each other; the CPU draws other masks and noise"
            " from the same seed."
        )
        notes = [near, resumed]
        return [Finding(f"Short runs, {network}, batch {batch_size}", columns, rows, {}, {"runs": data}, notes)]

    def _resumed(self, words: list[str], folder: Path) -> str:
        """Whether a run that was stopped in the middle ends as one that was not."""
        whole, cut = folder / "whole", folder / "cut"
        self._run([*words, "--out", str(whole)], folder)
        half = len(_losses(whole)) // 2
        with self._started([*words, "--out", str(cut)], folder) as child:
            while child.poll() == "running" and len(_losses(cut)) < half:
                time.sleep(0.02)
            child.stop()
            self._wait(child, ("stopped", "done"))
            at = len(_losses(cut))
            if child.poll() == "done":
                return "It ended before it could be stopped, so that nothing was resumed."
        self._run([*words, "--out", str(cut), "--resume"], folder)
        equal = _losses(whole) == _losses(cut)
        return f"Stopped after step {at} and resumed: losses {'are equal, all of them' if equal else 'DIFFER'}."

    def processes(self, steps: int, network: str, batch_size: int, compiled: bool, methods: list[str]) -> list[Finding]:
        """Two processes, each on a device of its own, against one."""
        devices = torch.cuda.device_count() if self.device.type == "cuda" else _PROCESSES
        if devices < _PROCESSES:
            raise LeftOutError("there is one device")
        rows, data = [], []
        settings = (f"train.device={self.device.type}", f"train.compile={str(compiled).lower()}")
        with tempfile.TemporaryDirectory(prefix="dsdmae-bench-") as name:
            folder = Path(name)
            for method in methods:
                words = self.words(network, batch_size, steps, f"method.name={method}", *settings)
                one, two = folder / f"{method}-1", folder / f"{method}-2"
                self._run([*words, "--out", str(one)], folder)
                self._torchrun([*words, "--out", str(two)])
                losses, rates = [_losses(one), _losses(two)], [_rate(one), _rate(two)]
                rows.append(
                    [method, f"{losses[0][0]:.5f}", f"{losses[1][0]:.5f}", f"{rates[0]:.0f}", f"{rates[1]:.0f}"]
                )
                data.append({"method": method, "losses": losses, "images_per_second": rates})
        columns = ["method", "first loss, one", "first loss, two", "images/s, one", "images/s, two"]
        note = "Images a second: the median of the second half of the steps."
        return [Finding(f"Two processes, batch {batch_size}", columns, rows, {}, {"methods": data}, [note])]

    def _torchrun(self, words: list[str]) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(_PROCESSES)]
        environ = {key: value for key, value in os.environ.items() if not key.startswith("DSDMAE_")}
        process = subprocess.Popen(
            [*command, "-m", "dsdmae_cli", *words], env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            _, said = process.communicate(timeout=_MOST_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise RunFailed(f"two processes took more than {_MOST_SECONDS} s") from error
        finally:
            if process.poll() is None:
                # Killed, it would leave its processes behind, each a session of its own: it passes this on to them, and
                # has killed them after half a minute.
                process.terminate()
                process.communicate()
        if process.returncode:
            lines = [line for line in said.splitlines() if "dsdmae: error" in line] or said.splitlines()
            raise RunFailed(f"two processes failed: {lines[-1] if lines else f'exit code {process.returncode}'}")

    @contextmanager
    def _started(self, words: list[str], folder: Path) -> Iterator[Child]:
        """A run, ended with the block: else it would write on into a folder that is being removed."""
        child = Child(words, folder / "log.txt", Slot(str(self.device), {}))
        try:
            yield child
        finally:
            child.kill()

    def _run(self, words: list[str], folder: Path) -> None:
        with self._started(words, folder) as child:
            self._wait(child, ("done",))

    def _wait(self, child: Child, wanted: tuple[str, ...]) -> None:
        began = time.monotonic()
        while (state := child.poll()) == "running":
            if time.monotonic() - began > _MOST_SECONDS:
                raise RunFailed(f"a run took more than {_MOST_SECONDS} s")
            time.sleep(0.1)
        if state not in wanted:
            raise RunFailed(child.reason or state)


def _records(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [record for line in lines if line.endswith("\n") and "loss" in (record := json.loads(line))]


def _losses(run: Path) -> list[float]:
    return [float(record["loss"]) for record in _records(run)]


def _rate(run: Path) -> float:
    """Images a second: of one step it would be chance, and the first ones warm up and compile."""
    rates = [float(record["images_per_second"]) for record in _records(run) if "images_per_second" in record]
    return statistics.median(rates[len(rates) // 2 :]) if rates else float("nan")
