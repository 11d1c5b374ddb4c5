"""The parts of gpu.toml that look at our own step on a device: waits, memory, kernels, throughput."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dsdmae_cli import plugins
from dsdmae_cli.bench.machine import timed
from dsdmae_cli.bench.programme import LeftOutError, Programme
from dsdmae_cli.bench.step import bench_step
from dsdmae_cli.bench.subjects import step_settings
from dsdmae_cli.bench.turns import Finding, Spread, by_turns, last_words
from dsdmae_cli.data.open import augmentation, open_dataset
from dsdmae_cli.data.resident import ResidentSource, to_tensor
from dsdmae_cli.data.source import Batching, Unreadable
from dsdmae_cli.data.square import decode_square
from dsdmae_cli.engine import Hooks, Trainer
from dsdmae_cli.errors import DsdmaeError, RunFailed
from dsdmae_cli.runs.build import build_method
from dsdmae_cli.runtime import choose_runtime
from dsdmae_cli.settings.resolved import ResolvedSettings
from dsdmae_cli.work import step_bytes

_GIB = 2**30


@dataclass(frozen=True)
class OnDevice:
    """The parts that need nothing but the device.

    Args:
        device: where to measure.
        programme: whose networks are meant.
        said: told how far it is.
    """

    device: torch.device
    programme: Programme
    said: Callable[[str], None]

    def settings(self, batch_size: int, network: str | None = None, method: str | None = None) -> ResolvedSettings:
        """Settings of a run of a network of the programme, on digits."""
        words = self.programme.networks[network] if network else ()
        # What the environment says would be another machine's run.
        return step_settings(
            method=method, batch_size=batch_size, device=str(self.device), assignments=words, environ={}
        )

    def trainer(self, settings: ResolvedSettings, *, compiled: bool = False, micro_batch: int | None = None) -> Trainer:
        """A trainer on resident images, augmented as in a run."""
        method, batch = build_method(settings).to(self.device), settings.train.batch_size
        dataset = open_dataset(settings.data, "train")
        some = list(range(min(len(dataset), 512)))
        arrays, _ = decode_square(dataset, some, settings.data.image_size, Unreadable(len(dataset), settings.data))
        images = to_tensor(arrays, self.device)
        images = images.repeat(-(-4 * batch // len(images)), 1, 1, 1)[: 4 * batch]
        runtime = replace(choose_runtime(settings, method), compile=compiled, may_halve=False)
        if micro_batch:
            runtime = replace(runtime, micro_batch=micro_batch)
        batching = Batching(4 * batch, batch, runtime.micro_batch, 0)
        source = ResidentSource(images, batching, augmentation(settings.data), None, method.num_views)
        return Trainer(method, source, settings.optim, settings.train, runtime, Hooks())

    def waits(self, network: str, batch_size: int) -> list[Finding]:
        """One step of every method under torch's debug mode for synchronisation; two steps go before it."""
        rows, data = [], []
        for plugin in plugins.discover("method"):
            said, seconds = "", 0.0
            try:
                trainer = self.trainer(self.settings(batch_size, network, plugin.name))
                seconds = self._unwaited(trainer)
                said = "no wait" if self.device.type == "cuda" else "runs"
            except (DsdmaeError, RuntimeError) as error:
                said = " ".join(str(error).split())[:200]
            rows.append([plugin.name, said, f"{1e3 * seconds:.0f}" if seconds else "-"])
            data.append({"method": plugin.name, "said": said, "seconds": seconds})
            self.said(f"  {plugin.name}: {said}")
        title = f"Waiting in a step, {network}, batch {batch_size}"
        return [Finding(title, ["method", "third step", "ms"], rows, {}, {"methods": data})]

    def _unwaited(self, trainer: Trainer) -> float:
        steps = trainer.source.steps(0)
        for _ in range(2):
            trainer._step(next(steps))
        third = next(steps)
        if self.device.type != "cuda":
            return timed(self.device, lambda: trainer._step(third))
        torch.cuda.synchronize(self.device)
        torch.cuda.set_sync_debug_mode("error")
        began = time.perf_counter()
        try:
            trainer._step(third)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize(self.device)
        return time.perf_counter() - began

    def memory(self, networks: list[str], batches: list[int]) -> list[Finding]:
        """The peak of the second step, eager, against what a micro-batch is chosen by (work.step_bytes)."""
        rows, data = [], []
        for network in networks:
            for batch in batches:
                trainer = self.trainer(self.settings(batch, network), micro_batch=batch)
                reckoned = _reckoned(trainer, batch)
                peak = self._peak(trainer)
                of_peak = "-" if peak is None else "out of memory" if peak == inf else f"{peak / _GIB:.2f}"
                share = "-" if peak in (None, inf) else f"{peak / reckoned:.2f}"
                rows.append([network, str(batch), of_peak, f"{reckoned / _GIB:.2f}", share])
                measured = None if peak == inf else peak
                data.append(
                    {"network": network, "batch": batch, "peak": measured, "fits": peak != inf, "expected": reckoned}
                )
                self.said(f"  {network}, {batch}: {of_peak} GiB of {reckoned / _GIB:.2f} expected")
        columns = ["network", "micro-batch", "peak, GiB", "reckoned, GiB", "peak / reckoned"]
        note = (
            "Reckoned: weights, gradients, moments, the weights' casts under autocast, the images that lie there, and"
            " what is kept for the backward pass with a quarter more for what comes and goes."
        )
        return [Finding("Memory of a step", columns, rows, {}, {"steps": data}, [note])]

    def _peak(self, trainer: Trainer) -> float | None:
        """Bytes of the second step; infinite where memory runs out, None where the device counts none."""
        steps = trainer.source.steps(0)
        try:
            trainer._step(next(steps))
            if self.device.type != "cuda":
                return None
            torch.cuda.reset_peak_memory_stats(self.device)
            trainer._step(next(steps))
            return float(torch.cuda.max_memory_allocated(self.device))
        except torch.OutOfMemoryError:
            return inf
        finally:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def attention(self, shapes: list[list[int]]) -> list[Finding]:
        """Forward and backward pass of each kernel that scaled_dot_product_attention has, [b, heads, tokens, width]."""
        from torch.nn.attention import SDPBackend, sdpa_kernel

        kinds = {
            "flash": SDPBackend.FLASH_ATTENTION,
            "cuDNN": SDPBackend.CUDNN_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION,
            "matmul, softmax, matmul": SDPBackend.MATH,
        }
        rows, data = [], []
        for shape in shapes:
            query, key, value = (
                torch.randn(shape, device=self.device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
            )

            # Of .sum() the gradient would be one number in every place, of stride 0, which a kernel copies first or
            # refuses; and .backward() would add to what is there.
            upstream = torch.randn_like(query)

            def one(
                kind: Any, q: Tensor = query, k: Tensor = key, v: Tensor = value, gradient: Tensor = upstream
            ) -> float:
                def work() -> None:
                    with sdpa_kernel([kind]):
                        torch.autograd.grad(F.scaled_dot_product_attention(q, k, v), (q, k, v), gradient)

                return timed(self.device, work)

            able = {}
            for name, kind in kinds.items():
                try:
                    one(kind)
                    able[name] = kind
                except RuntimeError:
                    rows.append([str(shape), name, "not for this", "-"])
            times = by_turns({name: lambda kind=kind: one(kind) for name, kind in able.items()}, 10)  # type: ignore[misc]
            least = min(Spread.of(seconds).median for seconds in times.values())
            for name, seconds in times.items():
                spread = Spread.of([1e3 * s for s in seconds])
                rows.append([str(shape), name, spread.text(), f"{spread.median / 1e3 / least:.2f}"])
                data.append({"shape": shape, "kernel": name, "seconds": seconds})
        columns = ["shape", "kernel", "ms, median (min, max)", "of the fastest"]
        return [Finding("Attention, forward and backward, bf16", columns, rows, {}, {"kernels": data})]

    def step(self, cases: list[dict[str, Any]], rounds: int, compiled: bool, contenders: list[str]) -> list[Finding]:
        """bench_step of each network."""
        found = []
        for case in cases:
            self.said(f"  {case['network']}, batch {case['batch_size']}")
            settings = self.settings(case["batch_size"], case["network"])
            title = f"{case['network']}, batch {case['batch_size']}"
            try:
                finding = bench_step(settings, rounds, compiled=compiled, only=tuple(contenders), said=self.said)
                finding.facts = {name: finding.facts[name] for name in ("method", "work")}
            except RunFailed as error:  # the other networks are worth having
                finding = Finding(title, [], [], data={"failed": str(error)}, notes=[f"Failed: {error}"])
                self.said(f"  failed: {error}")
            finding.title = title
            found.append(finding)
        return found

    def profile(self, cases: list[dict[str, Any]], steps: int) -> list[Finding]:
        """torch.profiler over some steps, compiled on a GPU."""
        from torch.profiler import ProfilerActivity
        from torch.profiler import profile as recorded

        gpu = self.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
        found = []
        for case in cases:
            trainer = self.trainer(self.settings(case["batch_size"], case["network"]), compiled=gpu)
            ready = _endless(trainer)
            for _ in range(3):
                trainer._step(next(ready))

            def work(trainer: Trainer = trainer, ready: Any = ready) -> None:
                for _ in range(steps):
                    trainer._step(next(ready))

            wall = timed(self.device, work)  # unrecorded: the recorder itself costs time
            with recorded(activities=activities) as record:
                work()
                if gpu:
                    torch.cuda.synchronize(self.device)
            found.append(_profiled(record, f"{case['network']}, batch {case['batch_size']}", wall, steps, gpu))
            self.said(f"  {found[-1].title}: {'; '.join(found[-1].notes)}")
        return found

    def denoise(self, rounds: int) -> list[Finding]:
        """Of noise, for the time alone."""
        from dsdmae_cli.bench.denoise import bench_denoise

        return [bench_denoise(None, 25.0, 1, rounds, str(self.device), beside=False, said=self.said)]

    def feed(self, photographs: Path | None, size: int, most: int, rounds: int, workers: str) -> list[Finding]:
        """Decoding on cores and on the device."""
        if photographs is None:
            raise LeftOutError("it needs a folder of JPEG photographs (--photographs DIR)")
        from dsdmae_cli.bench.feed import bench_feed
        from dsdmae_cli.bench.feed import photographs as jpegs

        finding = bench_feed(photographs, size, most, rounds, workers, said=self.said)
        if self.device.type == "cuda":
            finding.notes.append(self._decoded_there(jpegs(photographs, most)[0]))
        return [finding]

    def _decoded_there(self, paths: list[Path]) -> str:
        from torchvision.io import decode_jpeg

        contents = [torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for path in paths]
        try:
            seconds = min(timed(self.device, lambda: decode_jpeg(contents, device=self.device)) for _ in range(4))
        except RuntimeError as error:
            return f"torchvision.io.decode_jpeg on the device: {last_words(error)}"
        return f"torchvision.io.decode_jpeg on the device: {1e3 * seconds / len(paths):.3f} ms an image, whole, uncut."


def _reckoned(trainer: Trainer, batch: int) -> float:
    """Bytes of a step, as a micro-batch is chosen by."""
    assert isinstance(trainer.source, ResidentSource)
    always, per_image = step_bytes(trainer.method, trainer.runtime.precision)
    return always + per_image * batch + trainer.source.images.nbytes


def _endless(trainer: Trainer) -> Any:
    epoch = 0
    while True:
        yield from trainer.source.steps(epoch)
        epoch += 1


def _profiled(record: Any, title: str, wall: float, steps: int, gpu: bool) -> Finding:
    """The largest kernels, and how much of the time the device was at work."""
    attribute = "self_device_time_total" if gpu else "self_cpu_time_total"
    events = record.key_averages()
    if gpu:  # an operator has the time of its kernels too, and an annotation that of all within it
        device = torch.autograd.DeviceType.CUDA
        events = [one for one in events if one.device_type == device and not getattr(one, "is_user_annotation", False)]
    kernels = [(one.key, getattr(one, attribute) / 1e6, one.count) for one in events]
    kernels = sorted((k for k in kernels if k[1] > 0), key=lambda k: -k[1])
    busy = sum(seconds for _, seconds, _ in kernels)
    rows = [
        [name[:70], f"{1e3 * seconds / steps:.3f}", f"{100 * seconds / busy:.1f}%", f"{count / steps:.0f}"]
        for name, seconds, count in kernels[:12]
    ]
    notes = [f"A step takes {1e3 * wall / steps:.2f} ms without the recorder"]
    if gpu:
        notes.append(f"the device is at work for {100 * busy / wall:.0f}% of that")
    notes.append(f"{sum(count for *_, count in kernels) / steps:.0f} kernels a step")
    columns = ["kernel", "ms a step", "of the work", "times a step"]
    data = {"wall": wall, "steps": steps, "busy": busy, "kernels": [list(k) for k in kernels[:50]]}
    return Finding(title, columns, rows, {}, data, [", ".join(notes) + "."])
