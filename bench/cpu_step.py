"""Throughput of a full DSdMAE training step on a CPU: written plainly, MAE-style, and by dsdmae's engine.

All variants train the same network from the same weights on the same real images with the same masks and noise; their
first losses are compared before anything is timed. Each variant lives in a process of its own (the engine tunes the
process's allocator) and they take turns, round by round, so that a change of the machine's mood hits all alike.

    python bench/cpu_step.py --data folder:PATH [--backbone vit-tiny] [--batch 64] [--rounds 5] [--compile]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from dsdmae_cli.config.compose import load
from dsdmae_cli.config.resolve import resolve

if TYPE_CHECKING:
    import torch

    from dsdmae_cli.settings.resolved import ResolvedSettings


def settings_of(arguments: argparse.Namespace) -> ResolvedSettings:
    flags = {
        "data.dataset": arguments.data,
        "backbone.name": arguments.backbone,
        "train.batch_size": arguments.batch,
        "train.epochs": 500,
    }
    return resolve(load(flags=flags, assignments=arguments.set, environ={}).settings)


def worker(variant: str, arguments: argparse.Namespace, pipe: Connection) -> None:
    """Build the variant, send its first loss, then time one step each time it is asked."""
    step = VARIANTS[variant](arguments)
    pipe.send(step())
    step()  # warm
    while pipe.recv():
        began = time.perf_counter()
        step()
        pipe.send(time.perf_counter() - began)


def parts(arguments: argparse.Namespace) -> tuple[ResolvedSettings, Any, torch.Tensor, list[Any]]:
    """The method, a batch of real images, and the masks and noise of each micro-batch of 16."""
    import torch

    from dsdmae_cli.data.augment import prepare
    from dsdmae_cli.data.open import open_dataset
    from dsdmae_cli.data.resident import to_tensor
    from dsdmae_cli.data.source import Unreadable, seeded
    from dsdmae_cli.data.square import decode_square
    from dsdmae_cli.runs.build import build_method

    settings = settings_of(arguments)
    dataset = open_dataset(settings.data, "train")
    size = settings.data.image_size
    assert isinstance(size, int)
    arrays, _ = decode_square(dataset, list(range(arguments.batch)), size, Unreadable(len(dataset), settings.data))
    images = prepare(to_tensor(arrays, torch.device("cpu")), size, "bicubic")
    method = build_method(settings)
    corruptions = [
        method.corrupt(chunk, seeded(torch.device("cpu"), index)) for index, chunk in enumerate(images.split(16))
    ]
    return settings, method, images, corruptions


def plain(arguments: argparse.Namespace, autocast: bool = False, fused: bool = False) -> Callable[[], float]:
    """The step as a paper's code has it: one batch, AdamW, .item(), a Python loop for the teacher.

    Attention is written out as matmul, softmax, matmul, as in the timm of the papers' repositories; `fused` is what
    today's timm does of itself, scaled_dot_product_attention.
    """
    import torch

    settings, method, images, corruptions = parts(arguments)
    whole = type(corruptions[0])(*(torch.cat(fields) for fields in zip(*corruptions, strict=True)))
    optimizer = torch.optim.AdamW(
        [p for p in method.parameters() if p.requires_grad],
        lr=0.0,
        betas=settings.optim.betas,
        weight_decay=settings.optim.weight_decay,
    )
    method.train()
    for part in method.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = fused

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = method(images, whole)["loss"]
        value = loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            pairs = zip(method.teacher.module.parameters(), method.student.parameters(), strict=True)
            for teacher, student in pairs:
                teacher.data = teacher.data * 0.99 + student.data * 0.01
        return value

    return step


def mae_style(arguments: argparse.Namespace) -> Callable[[], float]:
    """As facebookresearch/mae trains: autocast, the loss read back each step; elsewhere as plain."""
    return plain(arguments, autocast=True)  # its timm 0.3.2 has no fused attention


def engine(arguments: argparse.Namespace, compiled: bool = False) -> Callable[[], float]:
    """The Trainer's own step."""
    import torch

    from dsdmae_cli.data.source import Batching, MicroBatch, Source
    from dsdmae_cli.engine import Trainer
    from dsdmae_cli.runtime import Runtime, choose_micro_batch, choose_precision

    settings, method, images, corruptions = parts(arguments)
    settings = settings.model_copy(update={"optim": settings.optim.model_copy(update={"warmup_epochs": 1})})
    device = torch.device("cpu")
    encoder = method.encoder()
    micro = choose_micro_batch("auto", arguments.batch, encoder.num_tokens, encoder.width, device)
    whole = type(corruptions[0])(*(torch.cat(fields) for fields in zip(*corruptions, strict=True)))

    class Same(Source):
        batching = Batching(arguments.batch * 10**6, arguments.batch, micro, 0)

        def steps(self, epoch: int, first_step: int = 0) -> Iterator[Iterator[MicroBatch]]:
            while True:
                yield iter([MicroBatch(chunk, index) for index, chunk in enumerate(images.split(micro))])

    # The same masks and noise as the others: drawn above, cut into this variant's micro-batches.
    cut = [type(whole)(*fields) for fields in zip(*(field.split(micro) for field in whole), strict=True)]
    method.corrupt = lambda chunk, generator: cut[generator.initial_seed()]
    runtime = Runtime(device, choose_precision("auto", device), compiled, micro)
    trainer = Trainer(method, Same(), settings.optim, settings.train, runtime, hooks=None)  # type: ignore[arg-type]
    source = trainer.source.steps(0)

    def step() -> float:
        before = float(trainer.window.state().get("loss", 0.0))
        trainer._step(next(source))
        return float(trainer.window.state()["loss"]) - before

    return step


VARIANTS = {
    "plain fp32": plain,
    "plain fp32, fused attention": lambda arguments: plain(arguments, fused=True),
    "mae-style bf16": mae_style,
    "dsdmae": engine,
    "dsdmae compiled": lambda arguments: engine(arguments, compiled=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--backbone", default="vit-tiny")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()

    context = multiprocessing.get_context("spawn")
    names = [name for name in VARIANTS if arguments.compile or name != "dsdmae compiled"]
    pipes, losses = {}, {}
    for name in names:
        pipes[name], theirs = context.Pipe()
        context.Process(target=worker, args=(name, arguments, theirs), daemon=True).start()
        losses[name] = pipes[name].recv()
        print(f"first loss, {name}: {losses[name]:.5f}", flush=True)
    spread = max(losses.values()) - min(losses.values())
    assert spread < 0.01 * max(losses.values()), "the variants do not compute the same"
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(arguments.rounds):
        for name in names:
            pipes[name].send(True)
            times[name].append(pipes[name].recv())
    for pipe in pipes.values():
        pipe.send(False)
    report(arguments, times)


def report(arguments: argparse.Namespace, times: dict[str, list[float]]) -> None:
    import torch

    from dsdmae_cli.runs.build import build_method
    from dsdmae_cli.work import measure_work

    gflop = measure_work(build_method(settings_of(arguments)))[0] / 1e9
    peaks = {kind: matmul_peak(kind) for kind in (torch.float32, torch.bfloat16)}
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{arguments.backbone}, batch {arguments.batch}, {gflop:.1f} GFLOP per image; matmul peak"
          f" {peaks[torch.float32]:.0f} GFLOP/s fp32, {peaks[torch.bfloat16]:.0f} bf16")  # fmt: skip
    print("| variant | images/s, median (min, max) | share of bf16 matmul | ratio to plain |\n|---|---|---|---|")
    base = statistics.median(times["plain fp32"])
    for name, seconds in times.items():
        rates = sorted(arguments.batch / s for s in seconds)
        middle = arguments.batch / statistics.median(seconds)
        share = middle * gflop / peaks[torch.bfloat16]
        ratio = base * middle / arguments.batch
        print(f"| {name} | {middle:.2f} ({rates[0]:.2f}, {rates[-1]:.2f}) | {share:.2f} | {ratio:.2f} |")
    print(json.dumps({"times": times}))


def matmul_peak(kind: torch.dtype) -> float:
    """GFLOP/s of a 2048-cube matrix product on random data."""
    import torch

    a, b = (torch.rand(2048, 2048).to(kind) for _ in range(2))
    a @ b
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - began)
    return 2 * 2048**3 / min(seconds) / 1e9


if __name__ == "__main__":
    main()
