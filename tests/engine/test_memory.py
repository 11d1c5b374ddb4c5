"""Memory of a training: what is counted, what is chosen by it, and what happens where it does not do."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from helpers import settings
from test_presets import FROZEN, combination
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from toy import Listener, Toy, trainer

from dsdmae_cli import distributed, engine, runtime, work
from dsdmae_cli.config.compose import load
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.data import open as opening
from dsdmae_cli.engine import Trainer
from dsdmae_cli.errors import RunFailed, SettingsError
from dsdmae_cli.methods.base import Losses, Method
from dsdmae_cli.methods.projection import is_synchronized, synchronized
from dsdmae_cli.methods.recomputing import recompute
from dsdmae_cli.runs.build import build_method
from dsdmae_cli.runtime import choose_runtime, dividing_power

GB = 10**9


def chosen(monkeypatch: pytest.MonkeyPatch, resolved: Any, method: Method, free: int, held: int = 0) -> int:
    """The micro-batch on a GPU of this much free memory."""
    monkeypatch.setattr(runtime, "choose_device", lambda wanted: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    made = choose_runtime(resolved, method, held)
    assert made.may_halve == (not method.whole_batch)
    return made.micro_batch


def small(*more: str, name: str = "dsdmae") -> tuple[Any, Method]:
    resolved = resolve(settings("cifar10", "data.image_size=32", "train.precision=bf16", *more, method=name).settings)
    return resolved, build_method(resolved)


def test_a_dividing_power() -> None:
    assert [dividing_power(96, most) for most in (1, 2, 7, 31, 32, 63, 95)] == [1, 2, 4, 16, 32, 32, 32]
    assert [dividing_power(7, most) for most in (1, 6)] == [1, 1]


def test_kept_bytes_are_counted_without_the_weights() -> None:
    """Of a linear layer and a GELU are kept the input and what the GELU is given; the weight is no activation."""

    class Small(Toy):
        def encoder(self) -> Any:
            return SimpleNamespace(in_chans=3, image_size=4)

        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 1024), torch.nn.GELU())
            del self.teacher

        def forward(self, images: Tensor, corruption: Tensor) -> Losses:
            return {"loss": self.net(images).sum()}

    assert work.measure_work(Small())[1] == 4 * (48 + 1024)


def test_fused_attention_keeps_no_matrix_of_tokens() -> None:
    resolved, method = small("backbone.patch_size=2", "method.patch_dropout=0")
    plain, fused = (work.measure_work(method, fused_attention=fused)[1] for fused in (False, True))
    tokens, heads = method.encoder().num_tokens, resolved.backbone.num_heads
    assert plain - fused > 4 * heads * tokens**2


def test_the_micro_batch_is_what_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved, method = small("train.batch_size=96")
    _, kept = work.measure_work(method, fused_attention=True)
    state = work.state_bytes(method) + 2 * sum(p.numel() for p in method.parameters())
    for most, expected in ((200, 96), (96, 96), (95, 32), (31, 16), (1, 1), (0, 1)):
        free = int((state + (most + 0.5) * 1.25 * kept / 2) / 0.9)
        assert chosen(monkeypatch, resolved, method, free) == expected
        assert chosen(monkeypatch, resolved, method, free + 5 * GB, held=5 * GB) == expected


def test_a_batch_that_may_not_be_cut_is_refused_where_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved, method = small("train.batch_size=96", name="mocov3")
    _, kept = work.measure_work(method, fused_attention=True)
    state = work.state_bytes(method) + 2 * sum(p.numel() for p in method.parameters())
    free = int((state + 40.5 * kept / 2) / 0.9)
    assert chosen(monkeypatch, resolved, method, 4 * free) == 96
    with pytest.raises(SettingsError) as refused:
        chosen(monkeypatch, resolved, method, free)
    for advice in (
        "of 96 images",
        "about 40 fit",
        "--batch-size 32",
        "3 processes in place of 1",
        "train.micro_batch=96",
    ):
        assert advice in str(refused.value)
    tried = resolved.model_copy(update={"train": resolved.train.model_copy(update={"micro_batch": 96})})
    assert chosen(monkeypatch, tried, method, free) == 96
    with pytest.raises(SettingsError, match="the network does not fit"):
        chosen(monkeypatch, resolved, method, 1000)


class OfEncoder(Toy):
    """A toy that says what an image of it looks like, and holds `most` images at once; statistics move as it runs."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(()))

    def encoder(self) -> Any:
        return SimpleNamespace(in_chans=3, image_size=4)

    def forward(self, images: Tensor, corruption: Tensor) -> Losses:
        self.seen += len(images)
        if len(images) > self.most:
            raise torch.OutOfMemoryError("no more")
        return super().forward(images, corruption)


def halving(method: Method, hooks: Listener, micro: int, batch: int = 24) -> Trainer:
    made = trainer(method, hooks, micro=micro, batch_size=batch)
    made.runtime = dataclasses.replace(made.runtime, automatic=True, may_halve=True)
    return made


def test_memory_that_does_not_do_halves_the_micro_batch_and_goes_on() -> None:
    hooks, expected = Listener(), Listener()
    method, other = OfEncoder(3), OfEncoder(3)
    made = halving(method, hooks, micro=24)
    made.fit()
    assert hooks.recuts == [(24, 8), (8, 4), (4, 2)]
    assert made.runtime.micro_batch == made.source.batching.micro_batch == 2
    # The trials left nothing: neither gradients, nor statistics, nor a step.
    trainer(other, expected, micro=2, batch_size=24).fit()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in method.state_dict().items())
    assert [r["loss"] for r in hooks.records] == [r["loss"] for r in expected.records]
    assert made.state()[2]["micro_batch"] == 2


def test_what_fits_is_not_halved() -> None:
    hooks = Listener()
    halving(OfEncoder(24), hooks, micro=24).fit()
    assert not hooks.recuts


def test_no_room_for_an_image_is_said() -> None:
    with pytest.raises(RunFailed, match="not the memory for a single image"):
        halving(OfEncoder(0), Listener(), micro=2).fit()


def test_what_waits_for_other_processes_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one whose memory does not do would leave its batch norm, and the others wait for it there."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    with monkeypatch.context() as patched:
        assert not is_synchronized(synchronized(net))
        patched.setattr(distributed, "world_size", lambda: 2)
        assert not is_synchronized(net)
        assert is_synchronized(synchronized(net))
        assert not is_synchronized(synchronized(net).eval())  # as a teacher's, or a frozen tokenizer's
    monkeypatch.setattr(engine, "is_synchronized", lambda method: True)
    hooks = Listener()
    with pytest.raises(RunFailed, match=r"try --set train\.micro_batch=12"):
        halving(OfEncoder(3), hooks, micro=24).fit()
    assert not hooks.recuts


def test_a_resumed_run_keeps_the_micro_batch_that_fitted() -> None:
    first = halving(OfEncoder(4), Listener(stop_at=1), micro=24)
    first.fit()
    _, training, rest = first.state()
    second = halving(OfEncoder(24), Listener(), micro=24)
    second.restore(1, training, rest)
    assert second.runtime.micro_batch == second.source.batching.micro_batch == 4
    # On a CPU, where nothing is tried, an older version may have chosen otherwise.
    for automatic, expected in [(True, 4), (False, 24)]:
        third = trainer(OfEncoder(24), Listener(), micro=24, batch_size=24)
        third.runtime = dataclasses.replace(third.runtime, automatic=automatic)
        third.restore(1, training, rest)
        assert third.runtime.micro_batch == third.source.batching.micro_batch == expected


def test_on_a_cpu_the_patches_that_are_read_count() -> None:
    """64 of 256 by DSdMAE; MAE's decoder sees all of them."""
    wanted = {("dsdmae", "0"): 16, ("dsdmae", "auto"): 64, ("mae", None): 16}
    for (name, dropout), expected in wanted.items():
        more = [f"method.patch_dropout={dropout}"] if dropout else []
        resolved, method = small(
            "backbone.patch_size=2", "backbone.embed_dim=192", "train.batch_size=128", *more, name=name
        )
        made = choose_runtime(resolved, method)
        assert (made.micro_batch, made.automatic, made.may_halve) == (expected, True, False), name


# On 80 and 141 GB; None = refused. Where a batch is cut, and where not, agrees with the analytic 24 to 34 bytes a
# token, block and feature: ViT-T 20 to 29 MB an image, ViT-S 41 to 58, ViT-B 82 to 116.
PRESETS: dict[str, tuple[int | None, int | None]] = {
    "beit-cifar10-vit-small": (1024, 2048),
    "beit-cifar10-vit-tiny": (2048, 2048),
    "beit-imagenet-vit-base": (512, 1024),
    "beit-stl10-vit-small": (1024, 2048),
    "cae-cifar10-vit-small": (1024, 2048),
    "cae-cifar10-vit-tiny": (2048, 2048),
    "cae-imagenet-vit-base": (512, 1024),
    "cae-stl10-vit-small": (1024, 2048),
    "cifar10-vit-small": (1024, 1024),
    "cifar10-vit-tiny": (2048, 2048),
    "cifar100-vit-small": (1024, 1024),
    "cifar100-vit-tiny": (2048, 2048),
    "denoiser": (8, 8),
    "maskfeat-cifar10-vit-small": (1024, 2048),
    "maskfeat-cifar10-vit-tiny": (2048, 2048),
    "maskfeat-imagenet-vit-base": (512, 1024),
    "maskfeat-stl10-vit-small": (1024, 2048),
    "mocov3-cifar10-vit-small": (512, 512),
    "mocov3-cifar10-vit-tiny": (512, 512),
    "mocov3-imagenet-vit-base": (None, 1024),
    "mocov3-stl10-vit-small": (512, 512),
    "msa-cifar10-vit-small": (512, 512),
    "msa-cifar10-vit-tiny": (512, 512),
    "msa-imagenet-vit-base": (1024, 1024),
    "msa-stl10-vit-small": (512, 512),
    "quick": (32, 32),
    "quick-ablate": (32, 32),
    "sdae-cifar10-vit-small": (2048, 2048),
    "sdae-cifar10-vit-tiny": (2048, 2048),
    "sdae-imagenet-vit-base": (768, 768),
    "sdae-stl10-vit-small": (2048, 2048),
    "stl10-vit-base": (512, 512),
    "stl10-vit-small": (1024, 1024),
    "tokenizer": (128, 128),
    "tokenizer-quick": (32, 32),
    "tscae-cifar10-vit-small": (None, 2048),
    "tscae-cifar10-vit-tiny": (2048, 2048),
    "tscae-imagenet-vit-base": (None, None),
    "tscae-stl10-vit-small": (None, 2048),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_what_packaged_presets_choose(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = resolve(load(preset=combination(name), environ={}).settings)
    method = build_method(resolved)
    measured = work.measure_work(method, fused_attention=True)
    monkeypatch.setattr(work, "measure_work", lambda *given, **more: measured)  # once for both
    batch = resolved.train.batch_size
    for gigabytes, expected in zip((80, 141), PRESETS[name], strict=True):
        if expected is None:
            with pytest.raises(SettingsError, match="needs its batch whole"):
                chosen(monkeypatch, resolved, method, gigabytes * GB)
            continue
        micro = chosen(monkeypatch, resolved, method, gigabytes * GB)
        assert micro == expected
        assert micro == batch or (batch % micro == 0 and micro & (micro - 1) == 0)


def test_every_combination_is_asked() -> None:
    assert set(PRESETS) == set(FROZEN["pretrain"]) - {"all"}


# -- activations computed again


@pytest.mark.parametrize("name", ["dsdmae", "beit"])
def test_recomputed_activations_give_the_same_gradients_and_keep_less(name: str) -> None:
    _, method = small("backbone.depth=3", "backbone.drop_path=0.5", name=name)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    corruption = method.corrupt(images, torch.Generator().manual_seed(2))
    found = []
    for again in (False, True):
        if again:
            recompute(method)
        kept: dict[int, int] = {}

        def remember(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(3)  # stochastic depth
        with saved_tensors_hooks(remember, lambda tensor: tensor):
            loss = method.train()(images, corruption)["loss"]
        method.zero_grad()
        loss.backward()
        found.append((loss.detach(), [p.grad.clone() for p in method.parameters() if p.grad is not None], kept))
    (loss, gradients, kept), (same, recomputed, less) = found
    assert torch.equal(loss, same)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(gradients, recomputed, strict=True))
    assert sum(less.values()) < 0.5 * sum(kept.values())


def test_what_recomputed_blocks_keep_is_their_inputs_and_one_of_them() -> None:
    resolved, method = small("backbone.patch_size=2", "backbone.depth=6", name="mae")
    plain, less = (work.measure_work(method, recomputed=recomputed)[1] for recomputed in (False, True))
    shallow = work.measure_work(small("backbone.patch_size=2", "backbone.depth=5", name="mae")[1])[1]
    block = plain - shallow
    inputs = 4 * resolved.backbone.embed_dim * round(0.25 * method.encoder().num_tokens)
    assert less < plain - 4 * block
    # One block more is its input more.
    deeper = work.measure_work(small("backbone.patch_size=2", "backbone.depth=7", name="mae")[1], recomputed=True)[1]
    assert deeper - less == inputs


def test_a_network_without_blocks_cannot_recompute() -> None:
    with pytest.raises(SettingsError, match=r"train\.checkpoint_activations needs a network of blocks"):
        recompute(torch.nn.Linear(3, 3))


# -- the machine's memory


def test_resident_images_are_counted_once_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=16 << 30))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70 << 30, 80 << 30))
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    assert opening._room(cpu)[0] == 8 << 30
    assert opening._room(cuda)[0] == 8 << 30
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert opening._room(cuda) == (8 << 30, "in the machine's memory, where they are decoded")
    assert opening._room(cpu) == (8 << 30, "in the memory that 8 processes have in common")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 40))
    assert opening._room(cuda) == (35 << 30, "on cuda:0")


def test_work_is_that_of_the_plain_network() -> None:
    """Computing activations again, and norms of several GPUs, are no part of what a method is."""
    _, method = small()
    plain = work.measure_work(method)
    recompute(method)
    assert work.measure_work(method) == plain
    norms = torch.nn.SyncBatchNorm.convert_sync_batchnorm(torch.nn.Sequential(torch.nn.BatchNorm2d(3)))
    assert work._ghost(norms)(torch.zeros(2, 3, 4, 4, device="meta")).shape == (2, 3, 4, 4)
