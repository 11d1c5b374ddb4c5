"""Throughput of a whole training step: written plainly, trained as papers' code trains, and by this program's engine.

All contenders train the same network from the same weights on the same real images with the same masks and noise; their
first losses are compared before anything is timed. Each lives in a process of its own (the engine tunes the process's
allocator), and they take turns.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

from dsdmae_cli.bench.machine import calibrate, card_of, described, timed
from dsdmae_cli.bench.turns import Finding, Spread, by_turns, last_words, short
from dsdmae_cli.errors import DsdmaeError, RunFailed
from dsdmae_cli.signals import serve

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dsdmae_cli.methods.base import Method
    from dsdmae_cli.settings.resolved import ResolvedSettings

Step = Callable[[], float]
# Losses of one network in other precisions and orders of summation.
_APART = 0.02


class Parts(NamedTuple):
    """What all contenders share."""

    settings: ResolvedSettings
    device: torch.device
    method: Method
    images: Tensor
    corruption: Any


def parts_of(settings: ResolvedSettings) -> Parts:
    """The method, a batch of real images as its views, and one corruption of them, on the device."""
    import torch
    from torch.utils._pytree import tree_map_only

    from dsdmae_cli.data.augment import prepare
    from dsdmae_cli.data.open import open_dataset
    from dsdmae_cli.data.resident import to_tensor
    from dsdmae_cli.data.source import Unreadable, seeded
    from dsdmae_cli.data.square import decode_square
    from dsdmae_cli.runs.build import build_method
    from dsdmae_cli.runtime import choose_device

    device, batch = choose_device(settings.train.device), settings.train.batch_size
    dataset = open_dataset(settings.data, "train")
    some = list(range(min(batch, len(dataset))))
    arrays, _ = decode_square(dataset, some, settings.data.image_size, Unreadable(len(dataset), settings.data))
    pixels = to_tensor(arrays, torch.device("cpu"))
    pixels = pixels.repeat(-(-batch // len(pixels)), 1, 1, 1)[:batch]
    images = prepare(pixels, settings.data.image_size, settings.data.interpolation)
    method = build_method(settings)
    views = method.as_views(images)
    corruption = method.corrupt(views, seeded(torch.device("cpu"), 0))
    moved = tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), corruption)
    return Parts(settings, device, method.to(device), views.to(device), moved)


def plain(settings: ResolvedSettings, *, autocast: bool = False, fused: bool = False) -> Step:
    """The step as a paper's code has it: the whole batch at once, AdamW, .item() each step.

    Attention is written out as matmul, softmax, matmul, as in the timm of the papers' repositories; `fused` is what
    today's timm does of itself, scaled_dot_product_attention.
    """
    import torch

    from dsdmae_cli.methods.base import StepInfo

    found = parts_of(settings)
    method, device = found.method.train(), found.device
    optimizer = torch.optim.AdamW(
        [p for p in method.parameters() if p.requires_grad],
        lr=0.0,
        betas=settings.optim.betas,
        weight_decay=settings.optim.weight_decay,
    )
    for part in method.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = fused  # type: ignore[assignment]
    skipped = torch.zeros((), device=device)

    def step() -> float:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss = method(found.images, found.corruption)["loss"]
        value = float(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(StepInfo(1, 1000, 10, skipped))
        return value

    return step


def engine(settings: ResolvedSettings, *, compiled: bool = False) -> Step:
    """The Trainer's own step."""
    from dataclasses import replace

    import torch
    from torch.utils._pytree import tree_flatten, tree_unflatten

    from dsdmae_cli.data.source import Batching, MicroBatch, Source
    from dsdmae_cli.engine import Trainer
    from dsdmae_cli.runtime import choose_runtime

    found = parts_of(settings)
    batch = settings.train.batch_size
    runtime = replace(choose_runtime(settings, found.method), compile=compiled, may_halve=False)
    micro = runtime.micro_batch

    class Same(Source):
        batching = Batching(batch * 10**6, batch, micro, 0)

        def steps(self, epoch: int, first_step: int = 0) -> Iterator[Iterator[MicroBatch]]:
            while True:
                yield iter([MicroBatch(chunk, index) for index, chunk in enumerate(found.images.split(micro))])

    leaves, form = tree_flatten(found.corruption)

    def part(leaf: Any, index: int) -> Any:
        of_images = isinstance(leaf, torch.Tensor) and leaf.dim() and len(leaf) == batch
        return leaf[index * micro : (index + 1) * micro] if of_images else leaf

    # The same masks and noise as the others', cut into this contender's micro-batches.
    cut = [tree_unflatten([part(leaf, index) for leaf in leaves], form) for index in range(-(-batch // micro))]
    found.method.corrupt = lambda images, generator: cut[generator.initial_seed()]  # type: ignore[method-assign]
    # Weights stand still in the first steps of a long warm-up.
    optim = settings.optim.model_copy(update={"warmup_epochs": 1})
    trainer = Trainer(found.method, Same(), optim, settings.train, runtime, hooks=None)  # type: ignore[arg-type]
    steps = trainer.source.steps(0)

    def step() -> float:
        trainer._step(next(steps))
        return float(trainer.window.read(trainer.streak)[0]["loss"])

    return step


CONTENDERS: dict[str, Callable[[ResolvedSettings], Step]] = {
    "written plainly, fp32": plain,
    "the same with fused attention": lambda settings: plain(settings, fused=True),
    "as papers' code trains, autocast bf16": lambda settings: plain(settings, autocast=True),
    "autocast bf16, fused attention": lambda settings: plain(settings, autocast=True, fused=True),
    "dsdmae": engine,
    "dsdmae, compiled": lambda settings: engine(settings, compiled=True),
}


class _Contender:
    """A contender in a process of its own."""

    def __init__(self, name: str, settings: ResolvedSettings) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_live, args=(name, settings, theirs, os.getpid()), daemon=True)
        self.process.start()
        theirs.close()
        try:
            self.first = self.told()
        except BaseException:
            self.process.kill()  # it heeds no other signal, and nobody else knows of it yet
            raise

    def told(self) -> dict[str, float]:
        try:
            said = self.pipe.recv()
        except EOFError:
            raise RunFailed(f"the process of {self.name!r} died; if memory ran out, lower --batch-size") from None
        if isinstance(said, str):
            raise RunFailed(f"{self.name}: {said}")
        assert isinstance(said, dict)
        return said

    def seconds(self) -> float:
        self.pipe.send(True)
        return self.told()["seconds"]

    def leave(self) -> dict[str, float]:
        """What it says at its end."""
        self.pipe.send(False)
        said = self.told()
        self.process.join(timeout=60)
        return said


def _live(name: str, settings: ResolvedSettings, pipe: Connection, parent: int) -> None:
    """Build the contender, send its first loss, then time a step each time that it is asked."""
    serve(parent)  # who ends the contenders; a Ctrl-C amid their imports would be a traceback of each
    import torch

    from dsdmae_cli.runtime import choose_device

    with suppress(EOFError, BrokenPipeError):
        try:
            device = choose_device(settings.train.device)
            step = CONTENDERS[name](settings)
            began = time.perf_counter()
            loss = step()
            first = {"loss": loss, "seconds": time.perf_counter() - began}
            _make_room(device)
            pipe.send(first)
            while pipe.recv():
                pipe.send({"seconds": _seconds(device, step)})
            peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
            pipe.send({"peak_bytes": float(peak)})
        except (DsdmaeError, RuntimeError, MemoryError) as error:
            pipe.send(last_words(error))


def _seconds(device: torch.device, step: Step) -> float:
    """Of a step of a contender that has a GPU to itself for the time of it."""
    if device.type == "cuda":
        step()  # takes the memory again that was left to the others
    seconds = timed(device, step)
    _make_room(device)
    return seconds


def _make_room(device: torch.device) -> None:
    """Leave a GPU's memory to the others but for what outlasts a step."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()


def bench_step(
    settings: ResolvedSettings,
    rounds: int,
    *,
    compiled: bool = False,
    only: tuple[str, ...] = (),
    said: Callable[[str], None] = lambda text: None,
) -> Finding:
    """Images a second of a training step by each contender, their shares of what the device can do, and ratios.

    Args:
        rounds: timed steps of each contender.
        compiled: whether the compiled engine takes part.
        only: names of contenders; empty = all.
        said: told how far it is.

    Raises:
        DataError: the images cannot be had.
        RunFailed: a contender failed, or they do not compute the same.
    """
    import torch

    from dsdmae_cli.data.open import open_dataset
    from dsdmae_cli.runs.build import build_method
    from dsdmae_cli.runtime import choose_device, choose_runtime
    from dsdmae_cli.work import measure_work

    device = choose_device(settings.train.device)
    open_dataset(settings.data, "train")  # what is wrong with it is better said here than by five processes
    names = [n for n in CONTENDERS if (compiled or "compiled" not in n) and (not only or n in only)]
    batch, method = settings.train.batch_size, build_method(settings)
    gflop = measure_work(method)[0] / 1e9
    # Chosen before any of them is there: later it would go by what the others leave.
    train = settings.train.model_copy(update={"micro_batch": choose_runtime(settings, method).micro_batch})
    settings = settings.model_copy(update={"train": train})
    rates = calibrate(device)
    _make_room(device)
    card = card_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    contenders: dict[str, _Contender] = {}
    try:
        for name in names:
            contenders[name] = _Contender(name, settings)
            said(f"first loss, {name}: {contenders[name].first['loss']:.5f}")
        _check_alike(contenders)
        times = by_turns({name: one.seconds for name, one in contenders.items()}, rounds, said)
        ends = {name: one.leave() for name, one in contenders.items()}
    finally:
        for one in contenders.values():
            one.process.kill()
    facts = {
        "method": f"{settings.method.name}, {settings.backbone.name}",
        "batch": str(batch),
        "work": f"{short(gflop)} GFLOP per image and step",
        **described(device),
    }
    middle = {name: batch / Spread.of(seconds).median for name, seconds in times.items()}
    data = [
        {
            "name": name,
            "images_per_second": middle[name], "share_of_bf16_matmul": middle[name] * gflop / 1e3 / rates.bf16,
            "mfu": middle[name] * gflop / 1e3 / card.bf16 if card else None, **contenders[name].first, **ends[name],
            "first_step_seconds": contenders[name].first["seconds"], "seconds": seconds,
        }
        for name, seconds in times.items()
    ]  # fmt: skip
    columns, rows = _table(data, batch, with_card=card is not None, with_memory=device.type == "cuda")
    return Finding(
        f"A training step on {device}",
        columns,
        rows,
        facts,
        {"gflop_per_image": gflop, "batch_size": batch, "rates": rates.json(), "contenders": data},
        [f"Calibrated in this run: {rates.text()}."],
    )


def _check_alike(contenders: Mapping[str, _Contender]) -> None:
    """Raises RunFailed where they do not begin with one loss, so that their times would be of different things."""
    losses = [one.first["loss"] for one in contenders.values()]
    if max(losses) - min(losses) > _APART * max(map(abs, losses)):
        each = ", ".join(f"{name} {one.first['loss']:.5f}" for name, one in contenders.items())
        raise RunFailed(f"the contenders do not compute the same: first losses {each}")


def _table(
    data: list[dict[str, Any]], batch: int, *, with_card: bool, with_memory: bool
) -> tuple[list[str], list[list[str]]]:
    """Columns, and a row for each contender; ratios are to the first."""
    base = Spread.of(data[0]["seconds"]).median
    columns = ["contender", "images/s, median (min, max)", "of the bf16 matmul rate"]
    columns += ["of the card's bf16 peak (MFU)"] if with_card else []
    columns += [f"ratio to {data[0]['name']}"]
    columns += ["peak memory, GiB"] if with_memory else []
    rows = []
    for one in data:
        row = [one["name"], Spread.of([batch / s for s in one["seconds"]]).text(), f"{one['share_of_bf16_matmul']:.2f}"]
        row += [f"{100 * one['mfu']:.0f}%"] if with_card else []
        row += [f"{base / Spread.of(one['seconds']).median:.2f}"]
        row += [f"{one['peak_bytes'] / 2**30:.1f}"] if with_memory else []
        rows.append(row)
    return columns, rows
