"""A small method, source and hooks of the tests' own, and a Trainer of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor, nn

from dsdmae_cli.data.source import Batching, MicroBatch, Source
from dsdmae_cli.engine import Hooks, Trainer
from dsdmae_cli.methods.base import Losses, Method, StepInfo
from dsdmae_cli.methods.ema import EMATeacher
from dsdmae_cli.runtime import Runtime
from dsdmae_cli.settings.models import OptimSettings, TrainSettings

CPU = torch.device("cpu")
IMAGES = torch.rand(48, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Poison(torch.autograd.Function):
    """The identity, with NaN for a gradient."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * math.nan


class Toy(Method):
    """Mean squared distance of a small network's output to three pixels; a teacher follows and is not asked.

    Args:
        fault: by the step's number (from 0) what is wrong with its loss: "" for nothing.
    """

    def __init__(self, fault: Callable[[int], str] = lambda step: "") -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3))
        self.teacher = EMATeacher(self.net, (0.5, 0.9))
        self.fault = fault
        self.steps = 0

    def corrupt(self, images: Tensor, generator: Generator) -> Tensor:
        return images[:, :, 0, 0]

    def forward(self, images: Tensor, corruption: Tensor) -> Losses:
        loss = (self.net(images) - corruption).pow(2).mean()
        fault = self.fault(self.steps)
        if fault == "gradient":
            loss = Poison.apply(loss)
        elif fault:
            loss = loss * float(fault)
        return {"loss": loss, "part": loss.detach()}

    def after_step(self, info: StepInfo) -> None:
        self.steps = info.step
        self.teacher.follow(self.net, info)


class Fixed(Source):
    """IMAGES in the order of Batching, as they are."""

    def __init__(self, batching: Batching) -> None:
        self.batching = batching

    def steps(self, epoch: int, first_step: int = 0) -> Iterator[Iterator[MicroBatch]]:
        order = self.batching.order(epoch)
        for step in range(first_step, self.batching.steps_per_epoch):
            chunks = self.batching.micro_batches(order, step)
            yield (MicroBatch(IMAGES[ids], self.micro_seed("corrupt", epoch, step, i)) for i, ids in enumerate(chunks))


class Listener(Hooks):
    """Hooks that remember, and call `look` after every step."""

    def __init__(self, look: Callable[[int], None] = lambda step: None, stop_at: int = -1) -> None:
        self.look, self.stop_at = look, stop_at
        self.records: list[dict[str, float]] = []
        self.epochs: list[int] = []
        self.recuts: list[tuple[int, int]] = []
        self.step = 0

    def stepped(self, step: int) -> None:
        assert step == self.step + 1
        self.step = step
        self.look(step)

    def logged(self, record: dict[str, float]) -> None:
        self.records.append(record)

    def epoch_ended(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def recut(self, micro_batch: int, before: int) -> None:
        self.recuts.append((before, micro_batch))

    def should_stop(self) -> bool:
        return self.step == self.stop_at


def trainer(
    method: Method,
    hooks: Listener,
    *,
    micro: int = 16,
    optim: OptimSettings | None = None,
    precision: str = "fp32",
    source: Source | None = None,
    **train: object,
) -> Trainer:
    chosen = TrainSettings(**{"epochs": 2, "batch_size": 16, "log_every": 1, **train})  # type: ignore[arg-type]
    optim = optim or OptimSettings(lr=1e-2, warmup_epochs=1)
    source = source or Fixed(Batching(len(IMAGES), chosen.batch_size, micro, seed=0))
    return Trainer(method, source, optim, chosen, Runtime(CPU, precision, False, micro), hooks)


def everything(trainer: Trainer) -> dict[str, Tensor]:
    """Weights, teacher included, moments and step counts."""
    weights, training, _ = trainer.state()
    kept = {k: v for k, v in training.items() if k.startswith("optimizer/")}
    return {name: tensor.detach().clone() for name, tensor in {**weights, **kept}.items()}


def mae_lr(epoch: float, epochs: float, warmup: float, peak: float, lowest: float) -> float:
    """adjust_learning_rate of facebookresearch/mae, util/lr_sched.py; `epoch` may be fractional."""
    if epoch < warmup:
        return peak * epoch / warmup
    return lowest + (peak - lowest) * 0.5 * (1.0 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))
