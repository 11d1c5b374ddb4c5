"""A setting of a probe is chosen by more images than a tenth of few."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from dsdmae_builtin.probes import knn as knn_probe
from dsdmae_builtin.probes.knn import KnnSettings
from dsdmae_cli.evaluation import linear, logistic
from dsdmae_cli.evaluation.linear import Protocol
from dsdmae_cli.evaluation.probes import ProbeData
from dsdmae_cli.evaluation.split import HeldOut, hold_out, hold_out_others


def test_few_images_are_held_out_in_turns() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    labels[:3] = (4, 5, 5)  # a class of one image, and one of two
    first, others = hold_out(labels, 0.1, 0), hold_out_others(labels, 0.1, 0)
    parts = (first, *others)
    assert len(first.held) < 50
    assert 250 <= sum(len(part.held) for part in parts) < 300
    held = np.concatenate([part.held for part in parts])
    assert len(np.unique(held)) == len(held)
    for part in parts:
        assert sorted([*part.fit, *part.held]) == list(range(400))
        assert set(labels[part.fit]) == set(range(6))
    assert hold_out_others(rng.integers(0, 4, 3000), 0.1, 0) == ()
    assert len(hold_out_others(rng.integers(0, 2, 10), 0.2, 0)) == 4  # each image once
    assert hold_out_others(np.arange(5), 0.1, 0) == ()


@pytest.mark.parametrize("kind", ["logistic", "linear", "knn"])
def test_all_turns_choose(kind: str) -> None:
    """The choice is by the right answers of all turns, each image counting once."""
    rng = np.random.default_rng(0)
    y = torch.from_numpy(rng.integers(0, 2, 50))
    x = torch.from_numpy(rng.normal(size=(50, 3))).float() + 1.5 * y[:, None]
    split, others = hold_out(y.numpy(), 0.1, 0), hold_out_others(y.numpy(), 0.1, 0)
    accuracies = [turn(kind, x, y, part) for part in (split, *others)]
    counts = [len(part.held) for part in (split, *others)]
    expected = {v: sum(a[v] * n for a, n in zip(accuracies, counts, strict=True)) / sum(counts) for v in accuracies[0]}
    assert turn(kind, x, y, split, others) == pytest.approx(expected)
    assert any(accuracies[0][v] != pytest.approx(expected[v]) for v in expected)


def turn(kind: str, x: Tensor, y: Tensor, split: HeldOut, others: Sequence[HeldOut] = ()) -> dict[float, float]:
    """Held-out accuracies by value of what the probe chooses."""
    if kind == "logistic":
        return logistic.select_and_fit(x, y, split, x, 2, (1e-4, 1.0), others=others).held_out
    if kind == "linear":
        protocol = Protocol("sgd", 3, 1, 16)
        return linear.select_and_fit(x, y, split, x, 2, (1e-3, 1.0), protocol, others=others).held_out
    data = object.__new__(ProbeData)  # of which k-NN wants these alone
    vars(data).update(
        train_features=x, train_labels=y, test_features=x, split=split, others=others, num_classes=2,
        device=torch.device("cpu"),
    )  # fmt: skip
    return dict(knn_probe.fit(KnnSettings(k=(1, 20)), data).held_out)
