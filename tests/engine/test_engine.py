"""The Trainer and what it stands on, with a small method and source of the test's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice, pairwise

import pytest
import timm.optim
import torch
from helpers import settings
from torch import Generator, Tensor, nn

from dsdmae_cli import distributed, runtime
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.data.source import Batching, MicroBatch, Source, derive_seed
from dsdmae_cli.engine import Trainer
from dsdmae_cli.errors import DataError, RunFailed, SettingsError
from dsdmae_cli.methods.base import Losses, Method, StepInfo
from dsdmae_cli.methods.ema import EMATeacher
from dsdmae_cli.optim import build_optimizer, learning_rate, parameter_groups
from dsdmae_cli.runs.build import build_method
from dsdmae_cli.runtime import Runtime, choose_device, choose_micro_batch, choose_precision
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


class Listener:
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


def test_figures_for_a_person_who_waits_change_no_record() -> None:
    quiet = Listener()
    plain = trainer(Toy(), quiet, log_every=3)
    plain.fit()
    asked: list[dict[str, float]] = []
    curious = Listener(lambda step: asked.append(watched.figures()))
    watched = trainer(Toy(), curious, log_every=3)
    watched.fit()
    timed = {"images_per_second"}
    records = [[{k: v for k, v in r.items() if k not in timed} for r in h.records] for h in (quiet, curious)]
    assert records[0] == records[1]
    # Where a record is due, the figures are those of it; before, they are means over the steps so far.
    assert asked[2]["loss"] == pytest.approx(curious.records[0]["loss"])
    assert asked[0]["loss"] != pytest.approx(curious.records[0]["loss"])
    assert asked[0].keys() == curious.records[0].keys() - {"step", "epoch"}
    for name, tensor in everything(plain).items():
        assert torch.equal(tensor, everything(watched)[name])


# -- schedule and parameter groups


def mae_lr(epoch: float, epochs: float, warmup: float, peak: float, lowest: float) -> float:
    """adjust_learning_rate of facebookresearch/mae, util/lr_sched.py; `epoch` may be fractional."""
    if epoch < warmup:
        return peak * epoch / warmup
    return lowest + (peak - lowest) * 0.5 * (1.0 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))


@pytest.mark.parametrize(("epochs", "per_epoch", "warmup"), [(10, 7, 2.0), (500, 24, 20.0), (3, 5, 0.12), (2, 3, 0.0)])
def test_the_learning_rate_is_maes(epochs: int, per_epoch: int, warmup: float) -> None:
    total = epochs * per_epoch
    ours = [learning_rate(s, total, warmup * per_epoch, 2e-3, 1e-5) for s in range(total)]
    assert ours == pytest.approx([mae_lr(s / per_epoch, epochs, warmup, 2e-3, 1e-5) for s in range(total)], rel=1e-12)
    top = math.ceil(warmup * per_epoch)
    assert all(a < b for a, b in pairwise(ours[: top + 1]) if top > 1)
    assert all(a > b for a, b in pairwise(ours[top:]))
    assert max(ours) <= 2e-3
    assert learning_rate(total, total, warmup * per_epoch, 2e-3, 1e-5) == pytest.approx(1e-5)


def test_the_trainer_follows_the_schedule() -> None:
    hooks = Listener()
    run = trainer(Toy(), hooks, optim=OptimSettings(lr=1e-2, min_lr=1e-4, warmup_epochs=0.5), epochs=3)
    run.fit()
    assert [r["lr"] for r in hooks.records] == pytest.approx([mae_lr(s / 3, 3, 0.5, 1e-2, 1e-4) for s in range(9)])
    assert [r["step"] for r in hooks.records] == list(range(1, 10))
    assert [r["epoch"] for r in hooks.records] == pytest.approx([s / 3 for s in range(1, 10)])
    assert hooks.epochs == [1, 2, 3]
    assert all(set(r) == {"step", "epoch", "loss", "part", "grad_norm", "skipped", "lr", "images_per_second"}
               for r in hooks.records)  # fmt: skip
    assert hooks.records[-1]["loss"] < hooks.records[0]["loss"]


@pytest.mark.parametrize("more", [(), ("backbone.class_token=true", "backbone.pos_embed=learn")])
@pytest.mark.parametrize("method", ["dsdmae", "mae"])
def test_decay_spares_what_timm_spares(method: str, more: tuple[str, ...]) -> None:
    module = build_method(resolve(settings("digits", *more, method=method).settings))
    names = {id(p): name for name, p in module.named_parameters()}
    ours = [{names[id(p)] for p in group["params"]} for group in parameter_groups(module, 0.05)]  # type: ignore[attr-defined]
    assert [group["weight_decay"] for group in parameter_groups(module, 0.05)] == [0.05, 0.0]
    tokens = [n for n in names.values() if n.endswith(("pos_embed", "cls_token", "mask_token"))]
    theirs = timm.optim.param_groups_weight_decay(module, 0.05, no_weight_decay_list=tokens)
    assert {frozenset(group) for group in ours} == {frozenset(names[id(p)] for p in g["params"]) for g in theirs}
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert ours[0] | ours[1] == trained
    assert not [name for name in trained if name.startswith("teacher")]


# -- a step


def reference(steps: int, clip: float | None = None) -> list[tuple[dict[str, Tensor], float, float]]:
    """The training of Toy written plainly in float64: (weights, loss, gradient norm) after each step."""
    method = Toy().double()
    decayed = [p for p in method.net.parameters() if p.ndim > 1]
    free = [p for p in method.net.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": free, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), foreach=False, fused=False)
    batching = Batching(len(IMAGES), 16, 16, seed=0)
    after = []
    for step in range(steps):
        epoch, within = divmod(step, 3)
        images = IMAGES[batching.order(epoch)[16 * within : 16 * within + 16]].double()
        for group in optimizer.param_groups:
            group["lr"] = mae_lr(step / 3, 2, 1, 1e-2, 0)
        loss = (method.net(images) - images[:, :, 0, 0]).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.pow(2).sum()) for p in method.net.parameters() if p.grad is not None))
        if clip is not None and norm > clip:
            for p in method.net.parameters():
                assert p.grad is not None
                p.grad *= clip / norm
        optimizer.step()
        eta = 0.9 - 0.4 * (math.cos(math.pi * (step + 1) / 6) + 1) / 2
        with torch.no_grad():
            for mine, theirs in zip(method.teacher.module.parameters(), method.net.parameters(), strict=True):
                mine.copy_(eta * mine + (1 - eta) * theirs)
        after.append(({k: v.clone() for k, v in method.state_dict().items()}, loss.item(), norm))
    return after


@pytest.mark.parametrize("micro", [16, 8, 5, 1])  # 5: the last micro-batch is smaller and weighs less
@pytest.mark.parametrize("clip", [None, 0.05])
def test_micro_batches_do_what_one_batch_does(micro: int, clip: float | None) -> None:
    expected = reference(6, clip)
    hooks = Listener()
    snapshots: list[dict[str, Tensor]] = []
    hooks.look = lambda step: snapshots.append(everything(run))
    run = trainer(Toy(), hooks, micro=micro, optim=OptimSettings(lr=1e-2, warmup_epochs=1, clip_grad=clip))
    run.fit()
    for snapshot, record, (weights, loss, norm) in zip(snapshots, hooks.records, expected, strict=True):
        assert record["loss"] == pytest.approx(loss, rel=1e-5)
        assert record["part"] == pytest.approx(loss, rel=1e-5)
        assert record["grad_norm"] == pytest.approx(norm, rel=1e-4)  # before clipping
        for name, tensor in weights.items():
            torch.testing.assert_close(snapshot[name].double(), tensor, rtol=1e-4, atol=1e-5)
    assert clip is None or expected[-1][2] > clip, "nothing was clipped"


def test_the_log_window_is_a_mean() -> None:
    each, window = Listener(), Listener()
    trainer(Toy(), each).fit()
    trainer(Toy(), window, log_every=4).fit()
    assert [r["step"] for r in window.records] == [4, 6]
    for record, part in zip(window.records, (each.records[:4], each.records[4:]), strict=True):
        for key in ("loss", "grad_norm"):
            assert record[key] == pytest.approx(sum(r[key] for r in part) / len(part), rel=1e-6)


# -- steps that are not finite


@pytest.mark.parametrize("fault", ["nan", "inf", "-inf", "gradient"])
@pytest.mark.parametrize("bad", [{0}, {2, 3}, {5}])
def test_a_non_finite_step_changes_nothing(fault: str, bad: set[int]) -> None:
    before: dict[str, Tensor] = {}

    def look(step: int) -> None:
        now = everything(run)
        same = {name: torch.equal(now[name], before[name]) for name in before}
        if step - 1 in bad:
            # Before the first step there are no moments; made by a skipped one, they are zero.
            assert all(same.values()), same
            new = [now[name] for name in now.keys() - before.keys()]
            assert all(not tensor.any() for tensor in new)
        elif step > 1:  # the first step has a learning rate of zero
            assert not any(equal for name, equal in same.items() if name.endswith("weight")), same
        before.clear()
        before.update(now)

    hooks = Listener(look)
    run = trainer(Toy(lambda step: fault if step in bad else ""), hooks)
    before.update(everything(run))
    run.fit()
    assert [r["skipped"] for r in hooks.records] == [float(s in bad) for s in range(6)]
    for step, record in enumerate(hooks.records):
        assert ("loss" in record) == (step not in bad)
        assert all(math.isfinite(value) for value in record.values())
    assert int(run.skipped) == len(bad)


def test_only_good_steps_count_in_a_window() -> None:
    hooks, good = Listener(), Listener()
    trainer(Toy(lambda step: "nan" if step == 1 else ""), hooks, log_every=3).fit()
    trainer(Toy(lambda step: "nan" if step == 1 else ""), good).fit()
    expected = [r["loss"] for r in good.records[:3] if "loss" in r]
    assert hooks.records[0]["loss"] == pytest.approx(sum(expected) / 2, rel=1e-6)
    assert hooks.records[0]["skipped"] == 1


@pytest.mark.parametrize(("log_every", "step"), [(1, 5), (2, 6), (100, 12)])
def test_too_many_non_finite_steps_in_a_row_stop_the_run(log_every: int, step: int) -> None:
    # One good step in between starts the count anew.
    hooks = Listener()
    run = trainer(Toy(lambda s: "" if s == 1 else "nan"), hooks, epochs=4, max_nonfinite=3, log_every=log_every)
    with pytest.raises(RunFailed) as failed:
        run.fit()
    assert run.step == step
    message = str(failed.value)
    assert failed.value.exit_code == 1
    assert len(message.splitlines()) == 1
    for advice in ("non-finite", "--lr", "optim.clip_grad", "--precision"):
        assert advice in message


def test_memory_that_runs_out_names_a_smaller_micro_batch() -> None:
    class Greedy(Toy):
        def forward(self, images: Tensor, corruption: Tensor) -> Losses:
            raise torch.OutOfMemoryError("no more")

    with pytest.raises(RunFailed, match=r"--set train\.micro_batch=4"):
        trainer(Greedy(), Listener(), micro=8).fit()


@pytest.mark.parametrize("stop_at", [1, 3, 4])
def test_stopped_and_restored_is_as_if_never_stopped(stop_at: int) -> None:
    def fault(step: int) -> str:
        return "nan" if step == 2 else ""

    whole_hooks, first_hooks, second_hooks = Listener(), Listener(stop_at=stop_at), Listener()
    whole = trainer(Toy(fault), whole_hooks, log_every=4)
    whole.fit()
    first = trainer(Toy(fault), first_hooks, log_every=4)
    first.fit()
    assert first.step == stop_at
    weights, training, rest = first.state()
    method = Toy(fault)
    method.load_state_dict({k: v.clone() for k, v in weights.items()})
    method.steps = stop_at
    second = trainer(method, second_hooks, log_every=4)
    second.restore(stop_at, {k: v.clone() for k, v in training.items()}, rest)
    second_hooks.step = stop_at
    second.fit()
    end, expected = everything(second), everything(whole)
    assert end.keys() == expected.keys()
    assert all(torch.equal(end[name], expected[name]) for name in expected)
    timeless = [
        [{k: v for k, v in r.items() if k != "images_per_second"} for r in records]
        for records in (first_hooks.records + second_hooks.records, whole_hooks.records)
    ]
    assert timeless[0] == timeless[1]
    assert int(second.skipped) == 1


# -- precision and compilation, with the real method


def digits_run(precision: str, compile: bool = False) -> list[dict[str, float]]:
    """Six steps of a tiny DSdMAE on random images."""

    class Squares(Fixed):
        def steps(self, epoch: int, first_step: int = 0) -> Iterator[Iterator[MicroBatch]]:
            large = [[MicroBatch(m.images.repeat(1, 1, 4, 4), m.seed) for m in step] for step in super().steps(epoch)]
            return iter([iter(step) for step in large])

    method = build_method(resolve(settings("digits").settings))
    hooks = Listener()
    source = Squares(Batching(len(IMAGES), 16, 8, seed=0))
    optim = OptimSettings(lr=1e-2, warmup_epochs=1)
    chosen = TrainSettings(epochs=2, batch_size=16, log_every=1)
    Trainer(method, source, optim, chosen, Runtime(CPU, precision, compile, 8), hooks).fit()
    return hooks.records


def test_bf16_stays_near_fp32() -> None:
    exact, rough = digits_run("fp32"), digits_run("bf16")
    for a, b in zip(exact, rough, strict=True):
        for key in ("loss", "pixel", "feature"):
            assert b[key] == pytest.approx(a[key], rel=0.02, abs=0.005), key
    assert rough != exact


@pytest.mark.slow
def test_compiled_is_eager_within_rounding(unchecked_shapes: None) -> None:
    eager, compiled = digits_run("fp32"), digits_run("fp32", compile=True)
    for a, b in zip(eager, compiled, strict=True):
        for key in ("loss", "pixel", "feature", "grad_norm"):
            assert b[key] == pytest.approx(a[key], rel=1e-3, abs=1e-5), key


def test_the_optimiser_is_fused_adamw_with_the_settings() -> None:
    optimizer = build_optimizer(Toy(), OptimSettings(lr=0.5, betas=(0.8, 0.7), weight_decay=0.3))
    assert optimizer.defaults["fused"]
    assert [g["betas"] for g in optimizer.param_groups] == [(0.8, 0.7)] * 2
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.3, 0.0]


# -- what the hardware decides


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu") == CPU
    with pytest.raises(SettingsError, match=r"train\.device = 'warp' is not a device; try auto, cpu"):
        choose_device("warp")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    for wanted in ("cuda", "cuda:1", "mps", "xpu"):
        with pytest.raises(SettingsError, match=f"'{wanted}' is not on this machine; there is cpu"):
            choose_device(wanted)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("mps")
    monkeypatch.setattr(distributed, "launched_by_torchrun", lambda: True)
    assert choose_device("auto") == CPU
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:1")
    assert choose_device("cuda:0") == torch.device("cuda:0")
    assert chosen[-1] == torch.device("cuda:0")
    with pytest.raises(SettingsError, match="'cuda:2' is not on this machine; there is cuda:0, cuda:1, cpu"):
        choose_device("cuda:2")


def test_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    for hardware, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(runtime, "cpu_multiplies_bf16", lambda answer=hardware: answer)
        assert choose_precision("auto", CPU) == expected
    for hardware, expected in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, answer=hardware: answer)
        assert choose_precision("auto", cuda) == expected
    assert choose_precision("fp16", cuda) == "fp16"
    assert choose_precision("bf16", CPU) == "bf16"
    assert choose_precision("auto", torch.device("mps")) == "fp32"
    with pytest.raises(SettingsError, match=r"train\.precision = 'fp16' needs a CUDA device, this is cpu; use bf16"):
        choose_precision("fp16", CPU)


def test_micro_batches_fit_the_cache_and_divide_the_batch() -> None:
    assert choose_micro_batch("auto", 256, 256, 192, CPU) == 16  # ViT-T on CIFAR, as measured
    assert choose_micro_batch("auto", 24, 256, 192, CPU) == 8
    assert choose_micro_batch("auto", 7, 256, 192, CPU) == 1
    assert choose_micro_batch("auto", 8, 16, 32, CPU) == 8
    assert choose_micro_batch("auto", 256, 4096, 4096, CPU) == 1
    assert choose_micro_batch("auto", 2048, 256, 192, torch.device("cuda")) == 2048
    assert choose_micro_batch(100, 64, 16, 32, CPU) == 64
    assert choose_micro_batch(5, 64, 16, 32, CPU) == 5


def test_plain_attention_only_on_a_cpu_in_bf16() -> None:
    method = build_method(resolve(settings("digits").settings))
    flags = {name: part.fused_attn for name, part in method.named_modules() if hasattr(part, "fused_attn")}
    assert flags
    for precision in ("fp32", "bf16"):
        runtime.choose_attention(method, Runtime(CPU, precision, False, 8))
        now = {name: part.fused_attn for name, part in method.named_modules() if hasattr(part, "fused_attn")}
        assert now == (flags if precision == "fp32" else dict.fromkeys(flags, False))


# -- which images make up which step


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("micro", [1, 4, 5, 100])
def test_each_sample_once_an_epoch(world: int, micro: int) -> None:
    ranks = [Batching(50, 12, micro, seed=7, rank=rank, world_size=world) for rank in range(world)]
    assert {b.steps_per_epoch for b in ranks} == {4}
    orders = [ranks[0].order(epoch) for epoch in range(3)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(50))
        steps = [[b.micro_batches(order, step) for b in ranks] for step in range(4)]
        for step, shares in enumerate(steps):
            # The ranks' shares, one after the other, are one process's batch.
            assert torch.cat([ids for share in shares for ids in share]).tolist() == order[12 * step :][:12].tolist()
            assert all(len(ids) <= micro for share in shares for ids in share)
    assert not torch.equal(orders[0], orders[1])
    assert torch.equal(orders[1], Batching(50, 12, 3, seed=7).order(1))
    assert not torch.equal(orders[0], Batching(50, 12, 3, seed=8).order(0))
    positions = [b.position(i) for b in ranks for i in range(-(-b.local_batch // micro))]
    assert positions == list(range(len(positions)))


def test_batches_that_cannot_be() -> None:
    with pytest.raises(DataError, match=r"train\.batch_size = 64 is larger than the 50 training images"):
        Batching(50, 64, 8, seed=0)
    with pytest.raises(DataError, match="multiple of 2"):
        Batching(50, 9, 8, seed=0, world_size=2)


def test_seeds_are_independent() -> None:
    keys = [
        (seed, purpose, *numbers)
        for seed in (0, 1, 2**40)
        for purpose in ("weights", "order", "augment", "corrupt")
        for numbers in [(), *((a,) for a in range(30)), *((a, b) for a in range(30) for b in range(30))]
    ]
    seeds = [derive_seed(*key) for key in keys]  # type: ignore[arg-type]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, "x", 23) != derive_seed(12, "x", 3) != derive_seed(1, "x", 2, 3)
    # A fixed function: were it to change, no run could be resumed by a later version.
    assert derive_seed(0, "order", 1) == 5723403778144229568
    bits = torch.tensor([[seed >> i & 1 for i in range(63)] for seed in seeds], dtype=torch.float64)
    spread = 0.5 / math.sqrt(len(keys))
    assert (bits.mean(dim=0) - 0.5).abs().max() < 5 * spread


class Restless(Toy):
    """Draws from torch's global generator in every forward pass, as stochastic depth does."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[float] = []

    def forward(self, images: Tensor, corruption: Tensor) -> Losses:
        self.drawn.append(torch.rand(()).item())
        return super().forward(images, corruption)


def test_the_global_generator_starts_every_micro_batch_with_its_seed() -> None:
    method = Restless()
    torch.manual_seed(12345)  # whatever came before
    trainer(method, Listener(stop_at=2), micro=8).fit()
    source = Fixed(Batching(48, 16, 8, seed=0))
    seeds = [batch.seed for step in islice(source.steps(0), 2) for batch in step]
    assert len(set(seeds)) == 4
    assert method.drawn == [torch.rand((), generator=Generator().manual_seed(seed)).item() for seed in seeds]
