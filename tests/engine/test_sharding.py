"""Weights, gradients and moments divided among processes: the same training, the same checkpoints, less in each."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import digit_folder, settings, start
from test_distributed import TORCHRUN
from test_engine import IMAGES, Listener, Toy, everything, trainer
from torch import Tensor, nn

from dsdmae_cli import checkpoint, distributed, runtime, sharding, work
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


# -- several processes


DRIVER = '''
import dataclasses, json, sys
from pathlib import Path

import torch
from helpers import settings
from torch import nn

from dsdmae_cli import checkpoint, distributed, sharding
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.data.source import Batching, MicroBatch, Source
from dsdmae_cli.engine import Trainer
from dsdmae_cli.runs.build import build_method
from dsdmae_cli.runtime import choose_runtime
from test_engine import Listener

IMAGES = torch.rand(32, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
CHOSEN = ("data.image_size=16", "backbone.depth=2", "backbone.drop_path=0.3", "train.epochs=1", "optim.clip_grad=0.5")


class Fixed(Source):
    def __init__(self, batching, views):
        self.batching, self.views = batching, views

    def steps(self, epoch, first_step=0):
        order = self.batching.order(epoch)
        for step in range(first_step, self.batching.steps_per_epoch):
            chunks = self.batching.micro_batches(order, step)
            yield (
                MicroBatch(
                    IMAGES[ids] if self.views == 2 else IMAGES[ids, 0], self.micro_seed("corrupt", epoch, step, i)
                )
                for i, ids in enumerate(chunks)
            )


def made(name, shard, *more, stop_at=-1, fault=None):
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
    return Trainer(method, Fixed(batching, method.num_views), resolved.optim, resolved.train, runtime,
                   Listener(stop_at=stop_at))


def furthest(ours, theirs, prefix):
    """The largest difference of tensors whose name begins so, in units of the largest value of each, or of a tenth of
    the largest of all where that is more."""
    assert ours.keys() == theirs.keys()
    names = [name for name in ours if name.startswith(prefix)]
    spans = {name: theirs[name].abs().max().item() for name in names}
    least = 0.1 * max(spans.values())
    return max((ours[name] - theirs[name]).abs().max().item() / max(spans[name], least) for name in names)


def apart(ours, theirs, kept):
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


def main():
    found = {}
    for name in sys.argv[2:]:
        states, norms = {}, {}
        for shard in ("none", "full"):
            trainer = made(name, shard)
            trainer.fit()
            states[shard] = trainer.state()
            norms[shard] = [(r["loss"], r["grad_norm"]) for r in trainer.hooks.records]
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
                "losses": max(abs(a / b - 1) for pair in zip(norms["full"], norms["none"]) for a, b in zip(*pair)),
            }
        else:
            assert not states["full"][0] and not states["full"][1]
    found["resumed"] = resumed()
    found["skipped"] = skipped()
    Path(sys.argv[1], f"rank{distributed.rank()}.json").write_text(json.dumps(found))


def resumed():
    "Two steps, a checkpoint, two more: as four. It is left for one process, which goes on too."
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
    second.hooks.step = 2
    second.fit()
    whole = made(sys.argv[2], "full")
    whole.fit()
    ends = [{**t.state()[0], **t.state()[1]} for t in (second, whole)]
    if distributed.rank() == 0:
        torch.save(ends[1], Path(sys.argv[1], "end.pt"))
        return [name for name in ends[0] if not torch.equal(ends[0][name], ends[1][name])]


def skipped():
    "A step whose loss is infinite in the last process alone, and its gradient nowhere."
    calls = []

    def fault(module, given, losses):
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


with distributed.process_group(torch.device("cpu")):
    main()
'''


def several(count: int, folder: Path, *methods: str) -> dict[str, Any]:
    """What the processes found; what each holds is the most of any of them."""
    script = folder / "driver.py"
    script.write_text(DRIVER)
    here = Path(__file__).parent
    environ = {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])}
    process = start(*TORCHRUN[:-1], str(count), script, folder, *methods, environ=environ)
    _, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    found = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(count)]
    for name in methods:
        for key in ("held", "moments"):
            found[0][name][key] = max(told[name][key] for told in found)
    return found[0]  # type: ignore[no-any-return]


def agrees(found: dict[str, Any], count: int, *methods: str) -> None:
    for name in methods:
        told = found[name]
        # Rounding: sums over micro-batches and processes in another order. A step of AdamW is up to 1e-3 here, of a
        # gradient that is rounding alone (a bias of keys) too.
        assert told["first"] < 2e-5, (name, told)
        assert told["second"] < 2e-5, (name, told)
        assert told["losses"] < 1e-5, (name, told)
        assert told["weights"] < 1e-4, (name, told)
        # Of few rows the first processes have more.
        assert told["held"] < 1.25 / count, (name, told)
        assert told["moments"] < 2.5 / count, (name, told)
    assert found["resumed"] == []
    count_of_one, same, far = found["skipped"]
    assert (count_of_one, same) == (1, 1)
    assert far < 1e-4


def goes_on_alone(folder: Path, name: str) -> None:
    """What several processes saved, one process takes up, and it ends as theirs."""
    made: dict[str, Any] = {}
    exec(compile(DRIVER.partition("def main()")[0], "driver", "exec"), made)
    alone = made["made"](name, "full")
    found = checkpoint.load(folder / "checkpoints" / "step-00000002")
    checkpoint.load_into(alone.method, found.model, "the checkpoint")
    alone.restore(2, found.training, found.state)
    alone.hooks.step = 2
    alone.fit()
    theirs = torch.load(folder / "end.pt")
    ours = {**alone.state()[0], **alone.state()[1]}
    assert made["furthest"](ours, theirs, "optimizer/exp_avg/") < 2e-5
    weights = {key: value for key, value in theirs.items() if "/" not in key}
    assert made["apart"]({key: ours[key] for key in weights}, weights, theirs) < 1e-4


def test_two_processes_with_slices_train_as_two_with_all(tmp_path: Path) -> None:
    """One cuts its batch, has a teacher and heads; the other's processes exchange features in the midst of a pass."""
    methods = ("dsdmae", "mocov3")
    agrees(several(2, tmp_path, *methods), 2, *methods)
    goes_on_alone(tmp_path, methods[0])


@pytest.mark.slow
def test_four_processes_with_slices_train_as_four_with_all(tmp_path: Path) -> None:
    methods = ("dsdmae", "mae", "sdae", "mocov3")
    agrees(several(4, tmp_path, *methods), 4, *methods)
    goes_on_alone(tmp_path, methods[0])


@pytest.mark.slow
def test_so_do_the_other_methods(tmp_path: Path) -> None:
    methods = ("mae", "sdae", "maskfeat", "beit", "cae", "msa", "tscae", "lejepa", "tokenizer")
    agrees(several(2, tmp_path, *methods), 2, *methods)
