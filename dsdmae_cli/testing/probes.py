"""What every probe promises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsdmae_cli.testing.dense_probes import assert_sound, check_dense_probe

if TYPE_CHECKING:
    from torch import Tensor

    from dsdmae_cli.evaluation.probes import ProbeData, ProbeResult
    from dsdmae_cli.settings.resolved import ResolvedProbeSettings


def check_probe(name: str) -> None:
    """Hold an installed probe against what every probe promises, on scikit-learn's digits.

    One that labels pixels (ProbeSpec.dense) is held to what dense_probes.py says; any other to this. It answers for
    every test image, better than by chance, without having seen a test label; the same again with the
    same seed; the same whatever other test images there are; with a single image of each class too; and torch's random
    state is afterwards what it was.

    Args:
        name: as `dsdmae probe --kind` takes it.

    Raises:
        AssertionError: it does not; the message says what.
        PluginError: it is not installed, or is broken.
    """
    from dataclasses import replace

    import numpy as np
    import torch

    from dsdmae_cli import plugins
    from dsdmae_cli.data.base import Subset
    from dsdmae_cli.evaluation.probe_data import drawn
    from dsdmae_cli.evaluation.split import few_shot

    if plugins.find("probe", name).spec.dense:
        check_dense_probe(name)
        return
    settings, data, labels = _of_digits(name)
    fit = plugins.load(plugins.find("probe", name).spec.build)

    before = torch.get_rng_state()
    found: ProbeResult = fit(settings.probe, data)
    assert_sound(found, before)
    shape = tuple(found.logits.shape)
    assert shape == (200, 10), f"its logits are {shape}, not [test images, classes] = (200, 10)"
    assert found.logits.device.type == "cpu", "its logits must be on the CPU"
    assert not found.logits.isnan().any(), "its logits have NaN among them"
    accuracy = float((found.logits.argmax(dim=1) == labels).double().mean())
    assert accuracy > 0.2, f"its accuracy on ten digits is {accuracy:.1%}, hardly above chance"

    again: ProbeResult = fit(settings.probe, data)
    assert torch.equal(again.logits, found.logits), "the same seed gave other logits; draw from data.schedule.seed"

    others = replace(data, test_features=data.test_features[:50], test_images=Subset(data.test_images, np.arange(50)))
    alone: ProbeResult = fit(settings.probe, others)
    assert (alone.chosen, alone.held_out) == (found.chosen, found.held_out), "its choice depends on the test images"
    same = torch.allclose(alone.logits, found.logits[:50], rtol=1e-3, atol=1e-3)
    assert same, "its answer for an image depends on the other test images"

    single = drawn(data, few_shot(data.train_labels.numpy(), 1e-6, 0), 0.1)
    assert not len(single.split.held)
    answers: ProbeResult = fit(settings.probe.without_choice(), single)
    assert tuple(answers.logits.shape) == (200, 10), "with one image of each class its logits have another shape"


def _of_digits(name: str) -> tuple[ResolvedProbeSettings, ProbeData, Tensor]:
    """Settings of a quick probe, what it is given of 300 digits to train and 200 to test, and the labels of those."""
    import numpy as np
    import torch

    from dsdmae_cli.backbone import Backbone
    from dsdmae_cli.config.compose import compose
    from dsdmae_cli.config.resolve import resolve
    from dsdmae_cli.config.schema import PROBE
    from dsdmae_cli.data.base import Subset
    from dsdmae_cli.evaluation.judging import LabelledSplits, open_labelled
    from dsdmae_cli.evaluation.probe_data import gather
    from dsdmae_cli.report import Report

    class Places(Backbone):
        """The 8x8 values of a digit, each in a token of its own at a place of its own: their mean is all of them."""

        grid, width, image_size, timm_name, timm_kwargs = (8, 8), 64, 16, "", {}

        def forward(self, images: Tensor) -> Tensor:
            return 64 * torch.diag_embed(torch.nn.functional.avg_pool2d(images.mean(dim=1), 2).flatten(1))

    quick = ("data.dataset=digits", "probe.cache=false", "train.epochs=4", "train.device=cpu", "train.precision=fp32")
    settings = resolve(compose(PROBE, assignments=[f"probe.kind={name}", *quick], environ={}).settings)
    whole = open_labelled(settings.data)
    few = LabelledSplits(Subset(whole.train, np.arange(300)), Subset(whole.test, np.arange(200)), whole.classes)
    tried, truth = gather({"last": Places().eval()}, few, settings, torch.device("cpu"), "fp32", Report())
    return settings, tried["last"], truth.labels
