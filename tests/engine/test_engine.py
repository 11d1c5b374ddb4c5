"""The Trainer: a step, its micro-batches and log, steps that are not finite, being stopped, precision.

The schedule and the optimiser are in test_optim.py, what the hardware decides in test_runtime.py, which images make up
which step in test_batching.py; the small method and source they share in toy.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import pytest
import torch
from helpers import settings
from torch import Generator, Tensor, nn
from toy import CPU, IMAGES, Fixed, Listener, Toy, everything, mae_lr, trainer

from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.data.source import Batching, MicroBatch
from dsdmae_cli.engine import Trainer
from dsdmae_cli.errors import RunFailed
from dsdmae_cli.methods.base import Losses
from dsdmae_cli.methods.ema import EMATeacher
from dsdmae_cli.runs.build import build_method
from dsdmae_cli.runtime import Runtime
from dsdmae_cli.settings.models import OptimSettings, TrainSettings

Optimizer = Literal["adamw", "muon"]


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


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("fault", ["nan", "inf", "-inf", "gradient"])
@pytest.mark.parametrize("bad", [{0}, {2, 3}, {5}])
def test_a_non_finite_step_changes_nothing(fault: str, bad: set[int], optimizer: Optimizer) -> None:
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
    optim = OptimSettings(lr=1e-2, warmup_epochs=1, optimizer=optimizer)
    run = trainer(Toy(lambda step: fault if step in bad else ""), hooks, optim=optim)
    before.update(everything(run))
    run.fit()
    assert [r["skipped"] for r in hooks.records] == [float(s in bad) for s in range(6)]
    for step, record in enumerate(hooks.records):
        assert ("loss" in record) == (step not in bad)
        assert all(math.isfinite(value) for value in record.values())
    assert int(run.skipped) == len(bad)


class Normed(Toy):
    """Its batch norm sees what is not finite in the step of this number."""

    def __init__(self, bad: int) -> None:
        super().__init__()
        self.bad = bad
        self.net = nn.Sequential(self.net[0], self.net[1], nn.BatchNorm1d(16), *self.net[3:])
        self.teacher = EMATeacher(self.net, (0.5, 0.9))

    def forward(self, images: Tensor, corruption: Tensor) -> Losses:
        return super().forward(images * math.inf if self.steps == self.bad else images, corruption)


@pytest.mark.parametrize("bad", [0, 3])
def test_a_non_finite_step_leaves_running_statistics_as_they_were(bad: int) -> None:
    def statistics() -> list[Tensor]:
        norms = [part for part in run.method.modules() if isinstance(part, nn.BatchNorm1d)]
        return [s.clone() for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None]

    def look(step: int) -> None:
        seen.append(statistics())

    seen: list[list[Tensor]] = []
    run = trainer(Normed(bad), Listener(look), micro=8, epochs=1 if bad == 0 else 2)
    seen.append(statistics())
    run.fit()
    assert int(run.skipped) == 1
    for step, (before, after) in enumerate(pairwise(seen)):
        assert all(torch.equal(*pair) == (step == bad) for pair in zip(before, after, strict=True)), step
    assert all(bool(tensor.isfinite().all()) for tensor in seen[-1])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_infinite_loss_whose_gradient_is_finite_is_skipped_too(precision: str) -> None:
    """fp16's scaler has a flag of its own, and looks at gradients alone."""

    class Infinite(Toy):
        def forward(self, images: Tensor, corruption: Tensor) -> Losses:
            losses = super().forward(images, corruption)
            return losses if self.steps != 2 else {**losses, "loss": losses["loss"] + math.inf}

    seen: list[dict[str, Tensor]] = []
    run = trainer(Infinite(), Listener(lambda step: seen.append(everything(run))), precision=precision)
    run.fit()
    same = [all(torch.equal(before[name], after[name]) for name in before) for before, after in pairwise(seen[:4])]
    assert same == [False, True, False]


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


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(("stop_at", "bad"), [(1, 0), (1, 2), (3, 2), (4, 2)])
def test_stopped_and_restored_is_as_if_never_stopped(stop_at: int, bad: int, optimizer: Optimizer) -> None:
    optim = OptimSettings(lr=1e-2, warmup_epochs=1, optimizer=optimizer)

    def fault(step: int) -> str:
        return "nan" if step == bad else ""

    whole_hooks, first_hooks, second_hooks = Listener(), Listener(stop_at=stop_at), Listener()
    whole = trainer(Toy(fault), whole_hooks, optim=optim, log_every=4)
    whole.fit()
    first = trainer(Toy(fault), first_hooks, optim=optim, log_every=4)
    first.fit()
    assert first.step == stop_at
    weights, training, rest = first.state()
    method = Toy(fault)
    method.load_state_dict({k: v.clone() for k, v in weights.items()})
    method.steps = stop_at
    second = trainer(method, second_hooks, optim=optim, log_every=4)
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


@pytest.mark.parametrize(("before", "after"), [("fp32", "fp16"), ("fp16", "fp32")])
def test_a_run_may_go_on_in_another_precision(before: str, after: str) -> None:
    """As "auto" has it where a run moves to a GPU that has no bf16; only fp16 has a scale to go on with."""
    first = trainer(Toy(), Listener(stop_at=2), precision=before)
    first.fit()
    weights, training, rest = first.state()
    second = trainer(Toy(), Listener(), precision=after)
    second.method.load_state_dict(weights)
    second.restore(2, training, rest)
    second.hooks.step = 2  # type: ignore[attr-defined]
    second.fit()
    assert (second.step, int(second.skipped)) == (6, 0)


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


def test_stochastic_depth_draws_other_numbers_than_what_corrupts() -> None:
    """Both were seeded alike: the first blocks that were dropped followed the first numbers of masks and noise."""

    class Drawing(Toy):
        def corrupt(self, images: Tensor, generator: Generator) -> Tensor:
            drawn.append(torch.rand(4, generator=generator))
            return super().corrupt(images, generator)

        def forward(self, images: Tensor, corruption: Tensor) -> Losses:
            dropped.append(torch.rand(4))
            return super().forward(images, corruption)

    drawn: list[Tensor] = []
    dropped: list[Tensor] = []
    trainer(Drawing(), Listener()).fit()
    assert len(drawn) == len(dropped) > 0
    assert not any(torch.equal(one, other) for one, other in zip(drawn, dropped, strict=True))
