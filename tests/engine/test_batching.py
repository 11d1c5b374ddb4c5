"""Which images make up which step, and the seeds that everything random is drawn with."""

from __future__ import annotations

import math
from itertools import islice

import pytest
import torch
from torch import Generator, Tensor
from toy import Fixed, Listener, Toy, trainer

from dsdmae_cli.data.source import Batching, derive_seed
from dsdmae_cli.errors import DataError
from dsdmae_cli.methods.base import Losses


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


def test_the_global_generator_starts_every_micro_batch_with_a_seed_of_its_own() -> None:
    """Which is not that of masks and noise, or dropped paths would go with them."""
    method = Restless()
    torch.manual_seed(12345)  # whatever came before
    trainer(method, Listener(stop_at=2), micro=8).fit()
    source = Fixed(Batching(48, 16, 8, seed=0))
    seeds = [batch.seed for step in islice(source.steps(0), 2) for batch in step]
    assert len(set(seeds)) == 4
    drawn, corrupting = (
        [torch.rand((), generator=Generator().manual_seed(seed)).item() for seed in of]
        for of in ([derive_seed(seed, "depth") for seed in seeds], seeds)
    )
    assert method.drawn == drawn
    assert not set(drawn) & set(corrupting)
