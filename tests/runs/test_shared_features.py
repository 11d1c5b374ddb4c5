"""Features that the processes of a run compute together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import settings
from torch import Tensor

from dsdmae_cli import distributed
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.data.run_data import Rows
from dsdmae_cli.evaluation.features import mean_features
from dsdmae_cli.runs.build import build_method
from dsdmae_cli.runs.observers.features import features_of


@pytest.mark.parametrize(("count", "world"), [(7, 3), (6, 3), (2, 3), (1, 2), (5, 1)])
@pytest.mark.parametrize("some", [False, True], ids=["all", "rows"])
def test_each_process_computes_its_share(count: int, world: int, some: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    method = build_method(resolve(settings("cifar10", "data.image_size=16").settings))
    run: Any = SimpleNamespace(
        method=method, runtime=SimpleNamespace(micro_batch=4, precision="fp32", device=torch.device("cpu"))
    )
    drawn = torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = Rows(drawn, torch.arange(8, 8 - count, -1)) if some else drawn[:count]
    expected = mean_features(method.encoder(), images, 64)
    shares: list[Tensor] = []
    monkeypatch.setattr(distributed, "world_size", lambda: world)

    def gather(share: Tensor) -> Tensor:
        shares.append(share)
        return share

    monkeypatch.setattr(distributed, "gather", gather)
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        features_of(run, images)
    assert {len(share) for share in shares} == {-(-count // world)}
    monkeypatch.setattr(distributed, "gather", lambda share: torch.cat(shares))
    torch.testing.assert_close(features_of(run, images), expected, rtol=1e-5, atol=1e-6)
