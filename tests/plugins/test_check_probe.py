"""The check that authors of probes run: ours pass it, and each promise that is broken is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from dsdmae_cli import plugins
from dsdmae_cli.evaluation.probes import ProbeData, ProbeResult
from dsdmae_cli.testing import check_probe

Fit = Callable[[Any, ProbeData], ProbeResult]
good: Fit = plugins.load("dsdmae_builtin.probes.knn:fit")


@pytest.mark.parametrize("name", ["linear", "knn", "logistic", "attentive", "ep", "segment", "segment-knn"])
def test_ours_keep_what_every_probe_promises(name: str) -> None:
    check_probe(name)


def moves_the_random_state(settings: Any, data: ProbeData) -> ProbeResult:
    torch.rand(1)
    return good(settings, data)


def answers_for_some(settings: Any, data: ProbeData) -> ProbeResult:
    found = good(settings, data)
    return replace(found, logits=found.logits[1:])


def guesses(settings: Any, data: ProbeData) -> ProbeResult:
    logits = torch.rand(len(data.test_features), 10, generator=torch.Generator().manual_seed(0))
    return ProbeResult(logits, "a guess")


def draws_without_the_seed(settings: Any, data: ProbeData) -> ProbeResult:
    found = good(settings, data)
    generator = torch.Generator()
    generator.seed()
    return replace(found, logits=found.logits + torch.rand(len(found.logits), 10, generator=generator))


def looks_at_all_test_images(settings: Any, data: ProbeData) -> ProbeResult:
    found = good(settings, data)
    return replace(found, logits=found.logits + len(data.test_features))


def chooses_by_test_images(settings: Any, data: ProbeData) -> ProbeResult:
    value = float(len(data.test_features))
    return replace(good(settings, data), chosen=("k", value), held_out={value: 1.0})


def chooses_the_worst(settings: Any, data: ProbeData) -> ProbeResult:
    return replace(good(settings, data), chosen=("k", 1.0), held_out={1.0: 0.2, 2.0: 0.9})


def needs_a_choice(settings: Any, data: ProbeData) -> ProbeResult:
    return good(settings.model_copy(update={"k": (1, 3)}), data)


@pytest.mark.parametrize(
    ("fit", "said"),
    [
        (moves_the_random_state, "changed torch's random state"),
        (answers_for_some, r"its logits are \(199, 10\), not"),
        (guesses, "hardly above chance"),
        (draws_without_the_seed, "the same seed gave other logits"),
        (looks_at_all_test_images, "depends on the other test images"),
        (chooses_by_test_images, "its choice depends on the test images"),
        (chooses_the_worst, "did not choose what is best"),
    ],
)
def test_a_broken_promise_is_named(fit: Fit, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load = plugins.load
    monkeypatch.setattr(plugins, "load", lambda name: fit if name.endswith("knn:fit") else load(name))
    with pytest.raises(AssertionError, match=said):
        check_probe("knn")


def test_a_choice_with_nothing_held_out_is_the_probes_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from dsdmae_cli.errors import DataError

    load = plugins.load
    monkeypatch.setattr(plugins, "load", lambda name: needs_a_choice if name.endswith("knn:fit") else load(name))
    with pytest.raises(DataError, match="none can be held out to choose between 2 values of k"):
        check_probe("knn")
