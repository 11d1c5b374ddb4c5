"""What each process of a group runs in test_sharding_groups.py: training with slices beside training with all.

    torchrun ... slices.py FOLDER METHOD...

FOLDER gets rankN.json, what process N found, and of the first method a checkpoint and how its run ends.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from helpers import settings
from torch import Tensor
from toy import Listener

from dsdmae_cli import checkpoint, distributed, sharding
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.data.source import Batching, MicroBatch, Source
from dsdmae_cli.engine import Trainer
from dsdmae_cli.runs.build import build_method
from dsdmae_cli.runtime import choose_runtime

IMAGES = torch.rand(32, 8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
CHOSEN = ("data.image_size=16", "backbone.depth=2", "backbone.drop_path=0.3", "train.epochs=1", "optim.clip_grad=0.5")


class Fixed(Source):
    def __init__(self, batching: Batching, views: int) -> None:
        self.batching, self.views = batching, views

    def steps(self, epoch: int, first_step: int = 0) -> Iterator[Iterator[MicroBatch]]:
        order = self.batching.order(epoch)
        for step in range(first_step, self.batching.steps_per_epoch):
            chunks = self.batching.micro_batches(order, step)
            yield (
                MicroBatch(
                    IMAGES[ids, : self.views] if self.views > 1 else IMAGES[ids, 0],
                    self.micro_seed("corrupt", epoch, step, i),
                )
                for i, ids in enumerate(chunks)
            )


def made(name: str, shard: str, *more: str, stop_at: int = -1, fault: Callable[..., Any] | None = None) -> Trainer:
    own = settings("cifar10", f"train.shard={shard}", *CHOSEN, *more, method=name)
    resolved = resolve(own.settings)
    method = build_method(resolved)
    runtime = choose_runtime(resolved, method)
    assert runtime.sharded == (shard == "full" and distributed.world_size() > 1)
    if not method.whole_batch:
        runtime = dataclasses.replace(runtime, micro_batch=1)
    batching = Batching(32, 8, runtime.micro_batch, 0, distributed.rank(), distributed.world_size())
    if fault is not None:
        method.register_forward_hook(fault)
    return Trainer(
        method, Fixed(batching, method.num_views), resolved.optim, resolved.train, runtime, Listener(stop_at=stop_at)
    )


def listener(trainer: Trainer) -> Listener:
    """Who was told of its steps."""
    assert isinstance(trainer.hooks, Listener)
    return trainer.hooks


def furthest(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], prefix: str) -> float:
    """The largest difference of tensors whose name begins so, in units of the largest value of each, or of a tenth of
    the largest of all where that is more."""
    assert ours.keys() == theirs.keys()
    names = [name for name in ours if name.startswith(prefix)]
    spans = {name: theirs[name].abs().max().item() for name in names}
    least = 0.1 * max(spans.values())
    return max((ours[name] - theirs[name]).abs().max().item() / max(spans[name], least) for name in names)


def apart(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> float:
    """The largest difference of weights whose gradients were more than rounding: AdamW makes steps of that as well.

    Args:
        kept: moments.
    """
    assert ours.keys() == theirs.keys()
    assert all(ours[n].dtype == theirs[n].dtype and ours[n].shape == theirs[n].shape for n in ours)
    first = {n.split("/")[2]: v.abs().max().item() for n, v in kept.items() if n.startswith("optimizer/exp_avg/")}
    least = 1e-6 * max(first.values())
    names = [n for n in ours if first.get(n, 1.0) > least]
    return max((ours[n].double() - theirs[n].double()).abs().max().item() for n in names)


def main() -> None:
    found: dict[str, Any] = {}
    for name in sys.argv[2:]:
        states: dict[str, Any] = {}
        norms: dict[str, list[tuple[float, float]]] = {}
        for shard in ("none", "full"):
            trainer = made(name, shard)
            trainer.fit()
            states[shard] = trainer.state()
            norms[shard] = [(r["loss"], r["grad_norm"]) for r in listener(trainer).records]
        held = sum(sharding.own_slice(p).numel() for p in trainer.method.parameters())
        all_of = sum(p.numel() for p in trainer.method.parameters())
        moments = sum(sharding.own_slice(v).numel() for s in trainer.optimizer.state.values() for v in s.values())
        found[name] = {"held": held / all_of, "moments": moments / all_of}
        if distributed.rank() == 0:
            (one, kept, _), (two, of_shards, _) = states["none"], states["full"]
            found[name] |= {
                "weights": apart(two, one, kept),
                "first": furthest(of_shards, kept, "optimizer/exp_avg/"),
                "second": furthest(of_shards, kept, "optimizer/exp_avg_sq/"),
                "losses": max(
                    abs(a / b - 1)
                    for pair in zip(norms["full"], norms["none"], strict=True)
                    for a, b in zip(*pair, strict=True)
                ),
            }
        else:
            assert not states["full"][0]
            assert not states["full"][1]
    found["resumed"] = resumed()
    found["skipped"] = skipped()
    Path(sys.argv[1], f"rank{distributed.rank()}.json").write_text(json.dumps(found))


def resumed() -> list[str] | None:
    """Two steps, a checkpoint, two more: as four. It is left for one process, which goes on too."""
    first = made(sys.argv[2], "full", stop_at=2)
    first.fit()
    model, training, rest = first.state()
    folder = Path(sys.argv[1], "checkpoints")
    if distributed.rank() == 0:
        checkpoint.save(folder, checkpoint.Checkpoint(2, model, training, rest, {}), keep=2)
    distributed.from_main(None)
    second = made(sys.argv[2], "full")
    found = checkpoint.load(folder / "step-00000002")
    checkpoint.load_into(second.method, found.model, "the checkpoint")
    second.restore(2, found.training, found.state)
    listener(second).step = 2
    second.fit()
    whole = made(sys.argv[2], "full")
    whole.fit()
    ends = [{**t.state()[0], **t.state()[1]} for t in (second, whole)]
    if distributed.rank() == 0:
        torch.save(ends[1], Path(sys.argv[1], "end.pt"))
        return [name for name in ends[0] if not torch.equal(ends[0][name], ends[1][name])]
    return None


def skipped() -> list[float]:
    """A step whose loss is infinite in the last process alone, and its gradient nowhere."""
    calls = []

    def fault(module: Any, given: Any, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        calls.append(1)
        last = distributed.rank() == distributed.world_size() - 1
        bad = last and len(calls) == 1
        return {**losses, "loss": losses["loss"] + float("inf")} if bad else losses

    ends = []
    for shard in ("none", "full"):
        calls.clear()
        trainer = made(sys.argv[2], shard, stop_at=2, fault=fault)
        trainer.fit()
        ends.append((int(trainer.skipped), *trainer.state()[:2]))
    (count, one, kept), (same, two, _) = ends
    return [count, same, apart(two, one, kept) if distributed.rank() == 0 else 0.0]


if __name__ == "__main__":
    with distributed.process_group(torch.device("cpu")):
        main()
