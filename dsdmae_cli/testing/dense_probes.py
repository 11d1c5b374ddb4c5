"""What every probe of patches promises."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from dsdmae_cli.evaluation.dense import DenseResult
    from dsdmae_cli.evaluation.probes import ProbeResult


def check_dense_probe(name: str) -> None:
    """Hold an installed probe of patches (ProbeSpec.dense) against what every such probe promises, on scikit-learn's
    digits: their ink is to be told from the paper, by tokens that hold the pixels of a patch.

    It answers for tokens of any number of windows, better than by the most frequent class, each window for itself; the
    same again with the same seed; with a single image too; and torch's random state is afterwards what it was.

    Args:
        name: as `dsdmae probe --kind` takes it.

    Raises:
        AssertionError: it does not; the message says what.
        PluginError: it is not installed, or is broken.
    """
    from dataclasses import replace

    import numpy as np
    import torch
    from sklearn.datasets import load_digits

    from dsdmae_cli import plugins
    from dsdmae_cli.config.compose import compose
    from dsdmae_cli.config.resolve import resolve
    from dsdmae_cli.config.schema import PROBE
    from dsdmae_cli.data.masks import VOID
    from dsdmae_cli.evaluation.dense import DenseData
    from dsdmae_cli.evaluation.segmentation import answer_pixels
    from dsdmae_cli.evaluation.split import HeldOut
    from dsdmae_cli.report import Report

    quick = ("data.dataset=digits", "train.epochs=8", "train.device=cpu", "train.precision=fp32")
    settings = resolve(compose(PROBE, assignments=[f"probe.kind={name}", *quick], environ={}).settings)
    spec = plugins.find("probe", name).spec
    assert spec.dense, "its ProbeSpec does not say dense = True; check_probe is for probes of images"
    values = torch.from_numpy(load_digits().images[:60]).float()
    masks = (values > 7).to(torch.uint8)
    masks[:, 0] = VOID
    tokens = values.view(60, 4, 2, 4, 2).transpose(2, 3).reshape(60, 16, 4)
    data = DenseData(
        tokens[:40], masks[:40], torch.arange(40), (4, 4), HeldOut(np.arange(32), np.arange(32, 40)), 2,
        settings.train, torch.device("cpu"), Report(),
    )  # fmt: skip
    fit = plugins.load(spec.build)

    before = torch.get_rng_state()
    found: DenseResult = fit(settings.probe, data)
    assert_sound(found, before)
    scores = found.answer(tokens[40:])
    shape = tuple(scores.shape)
    assert shape == (20, 16, 2), f"its scores are {shape}, not [windows, tokens, classes] = (20, 16, 2)"
    assert not scores.isnan().any(), "its scores have NaN among them"
    judged = masks[40:] != VOID
    right = answer_pixels(scores.unflatten(1, (4, 4)), (8, 8))[judged] == masks[40:][judged]
    share, frequent = float(right.double().mean()), float((masks[40:][judged] == 0).double().mean())
    assert share > frequent, f"it labels {share:.1%} of the pixels rightly; the most frequent class is {frequent:.1%}"

    again: DenseResult = fit(settings.probe, data)
    assert torch.equal(again.answer(tokens[40:]), scores), (
        "the same seed gave other scores; draw from data.schedule.seed"
    )
    alone = found.answer(tokens[40:41])
    assert torch.allclose(alone, scores[:1], rtol=1e-3, atol=1e-3), "its answer for a window depends on the others"

    single = replace(
        data, tokens=tokens[:1], masks=masks[:1], images=torch.zeros(1, dtype=torch.int64),
        split=HeldOut(np.arange(1), np.arange(0)),
    )  # fmt: skip
    answers = fit(settings.probe.without_choice(), single).answer(tokens[40:])
    assert tuple(answers.shape) == (20, 16, 2), "with one image its scores have another shape"


def assert_sound(found: ProbeResult | DenseResult, random_state: Tensor) -> None:
    """What a probe of either kind says of itself, and that torch's random state is still `random_state`."""
    import torch

    unchanged = torch.equal(torch.get_rng_state(), random_state)
    assert unchanged, "it changed torch's random state; draw from a torch.Generator"
    assert found.protocol, "it says nothing of its protocol"
    if found.held_out:
        assert found.chosen is not None, "it has held-out figures and chose nothing"
        chosen = found.held_out[found.chosen[1]]
        assert chosen == max(found.held_out.values()), "it did not choose what is best on the held-out images"
