"""Weights, gradients and moments divided among processes: the same training, the same checkpoints, less in each."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import digit_folder, settings
from test_engine import IMAGES, Listener, Toy, everything, trainer
from torch import Tensor, nn

from dsdmae_cli import distributed, runtime, sharding, work
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.engine import Trainer
from dsdmae_cli.errors import RunFailed, SettingsError
from dsdmae_cli.methods.base import Method
from dsdmae_cli.methods.ema import EMATeacher
from dsdmae_cli.methods.recomputing import blocks_of
from dsdmae_cli.runs.build import build_method
from dsdmae_cli.runs.plan import make_plan
from dsdmae_cli.runtime import choose_runtime

GB = 10**9
CPU = torch.device("cpu")


def small(*more: str, name: str = "dsdmae") -> tuple[Any, Method]:
    resolved = resolve(settings("cifar10", *more, method=name).settings)
    return resolved, build_method(resolved)


class Net(nn.Module):
    """Two blocks, and what stands beside them."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.LayerNorm(16))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(2))
        if shared:
            self.blocks[1][0].bias = self.blocks[0][0].bias
        self.last = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


class Blocks(Toy):
    """A toy of blocks; a teacher follows."""

    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.net = Net(shared)  # type: ignore[assignment]
        self.teacher = EMATeacher(self.net, (0.5, 0.9))

    def encoder(self) -> Any:
        return SimpleNamespace(in_chans=3, image_size=4)


# -- what can be divided, and what is


def test_what_cannot_be_divided_says_why() -> None:
    assert sharding.obstacle(Blocks()) is None
    assert sharding.obstacle(small()[1]) is None
    assert "it has no blocks" in str(sharding.obstacle(Toy()))
    alone = Blocks()
    alone.temperature = nn.Parameter(torch.ones(()))
    assert sharding.obstacle(alone) == "its weight temperature is a single number, which has no slices"
    assert sharding.obstacle(Blocks().bfloat16()) == "its weight net.first.1.weight is of bfloat16, not float32"
    assert "net.blocks.1.0.bias belongs to several blocks" in str(sharding.obstacle(Blocks(shared=True)))


def test_what_a_process_holds_is_its_share_and_what_a_step_gathers() -> None:
    method = Blocks()
    block, outside = 16 * 16 + 16, (48 * 16 + 16) + 2 * 16 + (16 * 3 + 3)
    trained = outside + 2 * block
    assert work.state_bytes(method) == 20 * trained  # a teacher has neither gradient nor moments
    # Its blocks are blocks too, and what is outside of them is gathered with the student's.
    gathered = 4 * (4 * 2 * outside + 6 * block)
    assert work.state_bytes(method, 3) == -(-20 * trained // 3) + gathered


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Eight processes, each with a GPU of the free memory that is set."""
    free = SimpleNamespace(bytes=80 * GB)
    monkeypatch.setattr(runtime, "choose_device", lambda wanted: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free.bytes, free.bytes))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(distributed, "world_size", lambda: 8)
    measured, measure = {}, work.measure_work

    def once(method: Method, **more: Any) -> tuple[float, int]:
        if id(method) not in measured:
            measured[id(method)] = measure(method, **more)
        return measured[id(method)]

    monkeypatch.setattr(work, "measure_work", once)
    return free


def needed(method: Method, images: float, shards: int = 1) -> int:
    """Free bytes for so many images at once, in bf16."""
    _, kept = work.measure_work(method, fused_attention=True)
    casts = 2 * sum(p.numel() for p in method.parameters())
    spare = 1.0 if method.whole_batch else 1.25
    return int((work.state_bytes(method, shards) + casts + spare * images * kept / 2) / 0.9) + 1


LARGE = ("backbone.embed_dim=128", "backbone.depth=6", "train.batch_size=64", "train.precision=bf16")


def test_auto_divides_what_does_not_fit_beside_a_micro_batch(gpus: Any) -> None:
    resolved, method = small(*LARGE)
    gpus.bytes = needed(method, 1)
    chosen = choose_runtime(resolved, method)
    assert (chosen.sharded, chosen.micro_batch, chosen.unshared) == (False, 1, None)
    gpus.bytes = needed(method, 1) - 1000
    chosen = choose_runtime(resolved, method)
    assert chosen.sharded
    # The micro-batch is of what is left beside the slices, and is kept by a run that goes on.
    assert needed(method, 8, shards=8) < gpus.bytes
    assert (chosen.micro_batch, chosen.may_halve) == (8, True)
    # Images that lie on the GPU count.
    gpus.bytes = needed(method, 1) + 5 * GB
    assert not choose_runtime(resolved, method, held=5 * GB).sharded
    assert choose_runtime(resolved, method, held=5 * GB + 2000).sharded


def test_auto_asks_for_the_micro_batch_that_is_wanted(gpus: Any) -> None:
    resolved, method = small(*LARGE, "train.micro_batch=4")
    gpus.bytes = needed(method, 4)
    assert not choose_runtime(resolved, method).sharded
    gpus.bytes = needed(method, 4) - 1000
    chosen = choose_runtime(resolved, method)
    assert (chosen.sharded, chosen.micro_batch) == (True, 4)
    resolved, method = small(*LARGE)
    method.whole_batch = True
    gpus.bytes = needed(method, 8)
    assert not choose_runtime(resolved, method).sharded
    gpus.bytes = needed(method, 8) - 1000
    chosen = choose_runtime(resolved, method)
    assert (chosen.sharded, chosen.micro_batch) == (True, 8)
    gpus.bytes = needed(method, 8, shards=8) - 1000
    with pytest.raises(SettingsError, match="needs its batch whole"):
        choose_runtime(resolved, method)


def test_auto_keeps_what_cannot_be_divided_whole_with_a_word(gpus: Any) -> None:
    resolved, method = small(*LARGE)
    method.temperature = nn.Parameter(torch.ones(()))
    gpus.bytes = needed(method, 0)
    chosen = choose_runtime(resolved, method)
    assert not chosen.sharded
    assert chosen.unshared is not None
    assert "cannot be divided: its weight temperature is a single number" in chosen.unshared


def test_muon_keeps_matrices_whole(gpus: Any) -> None:
    resolved, method = small(*LARGE, "optim.optimizer=muon")
    gpus.bytes = needed(method, 0)
    chosen = choose_runtime(resolved, method)
    assert not chosen.sharded
    assert "needs each weight matrix whole" in str(chosen.unshared)
    with pytest.raises(SettingsError, match=r"cannot be divided: optim.optimizer = 'muon'.*optim.optimizer=adamw"):
        choose_runtime(*small(*LARGE, "optim.optimizer=muon", "train.shard=full"))


def test_none_and_full_are_followed(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved, method = small(*LARGE, "train.shard=none")
    gpus.bytes = needed(method, 0)
    assert not choose_runtime(resolved, method).sharded
    resolved, method = small(*LARGE, "train.shard=full")
    gpus.bytes = 80 * GB
    assert choose_runtime(resolved, method).sharded
    monkeypatch.setattr(distributed, "world_size", lambda: 1)
    chosen = choose_runtime(resolved, method)
    assert not chosen.sharded
    assert chosen.unshared is not None
    assert "the only process" in chosen.unshared


def test_on_a_cpu_nothing_is_divided_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    resolved, method = small()
    assert not choose_runtime(resolved, method).sharded
    resolved, method = small("train.shard=full")
    assert choose_runtime(resolved, method).sharded
    method.temperature = nn.Parameter(torch.ones(()))
    with pytest.raises(
        SettingsError, match=r"train\.shard = 'full', .* temperature is a single number.*; leave it out"
    ):
        choose_runtime(resolved, method)


def test_a_plan_says_what_is_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = settings(digit_folder(tmp_path / "digits"), "train.shard=full")
    alone = make_plan(resolve(loaded.settings), timed=False)
    assert "the only process" in alone.text()
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_gathered", lambda value: [value] * 2)
    two = make_plan(resolve(loaded.settings), timed=False)
    assert (two.sharded, two.processes, two.unshared) == (True, 2, None)
    assert "of each of 2 processes" in two.text()
    assert "divided among the processes" in two.text()
    assert two.memory_gib < alone.memory_gib


# -- a group of one: nothing travels, and everything is as in a larger one


@pytest.fixture
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sharded(method: Method, hooks: Listener, *, compiled: bool = False, **more: Any) -> Trainer:
    made = trainer(Blocks(), hooks, **more)
    runtime = dataclasses.replace(made.runtime, sharded=True, compile=compiled)
    return Trainer(method, made.source, made.optim, made.train, runtime, hooks)


@pytest.mark.usefixtures("group_of_one")
def test_a_divided_method_trains_as_a_whole_one_and_is_whole_when_looked_at() -> None:
    plain, divided = trainer(Blocks(), Listener(), micro=4), Blocks()
    kinds = [type(part) for part in divided.modules()]
    other = sharded(divided, Listener(), micro=4)
    plain.fit()
    other.fit()
    expected, found = everything(plain), everything(other)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5, msg=name)
        assert not sharding.is_slice(tensor)
    assert all(sharding.is_slice(p) for p in divided.parameters())
    for _ in range(2):  # it can be entered again
        with other.gathered(), other.gathered(), torch.no_grad():
            assert [type(part) for part in divided.modules()] == kinds
            assert not any(sharding.is_slice(p) for p in divided.parameters())
            twin = copy.deepcopy(divided)
            assert all(torch.equal(value, found[name]) for name, value in twin.state_dict().items())
            ones = torch.ones(2, 3, 4, 4)
            assert torch.equal(divided.net(ones), twin.net(ones))
        assert all(sharding.is_slice(p) for p in divided.parameters())
    before = everything(other)
    assert all(torch.equal(value, before[name]) for name, value in found.items())


@pytest.mark.usefixtures("group_of_one")
def test_steps_after_a_look_are_those_without_it() -> None:
    ends = []
    for looks in (False, True):
        method, hooks = Blocks(), Listener()
        made = sharded(method, hooks, micro=8)

        def look(step: int, made: Trainer = made, method: Blocks = method) -> None:
            with made.gathered(), torch.no_grad():
                method(IMAGES[:2], IMAGES[:2, :, 0, 0])

        hooks.look = look if looks else hooks.look
        made.fit()
        ends.append(everything(made))
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.usefixtures("group_of_one")
def test_activations_computed_again_go_with_slices() -> None:
    ends = []
    for again in (False, True):
        made = sharded(Blocks(), Listener(), checkpoint_activations=again)
        made.fit()
        ends.append(everything(made))
        with made.gathered():
            assert work.measure_work(made.method)[0] > 0  # a copy on the meta device
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own question
@pytest.mark.usefixtures("group_of_one", "unchecked_shapes")
def test_compiled_blocks_train_alike_and_are_looked_at_uncompiled() -> None:
    ends = []
    for compiled in (False, True):
        made = sharded(Blocks(), Listener(), compiled=compiled)
        block = blocks_of(made.method)[0]
        forward = block.forward
        with made.gathered():
            assert (block.forward != forward) == compiled
        made.fit()
        ends.append(everything(made))
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.usefixtures("group_of_one")
def test_no_room_for_whole_weights_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    made = sharded(Blocks(), Listener())

    def none_left(tensor: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(sharding, "whole", none_left)
    with pytest.raises(RunFailed, match=r"the whole weights \(.* GiB\).* start more processes"), made.gathered():
        pass


class Early(Blocks):
    """It looks at its weights where randomness is drawn."""

    def corrupt(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return self.net(images)


@pytest.mark.usefixtures("group_of_one")
def test_a_method_that_uses_slices_as_weights_is_told_so() -> None:
    with pytest.raises(RunFailed, match=r"cannot be divided among processes; say --set train\.shard=none"):
        sharded(Early(), Listener()).fit()
