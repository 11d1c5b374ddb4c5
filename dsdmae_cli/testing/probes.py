"""What every probe promises."""

from __future__ import annotations

from dsdmae_cli.testing.dense_probes import check_dense_probe


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
    from torch import Tensor

    from dsdmae_cli import plugins
    from dsdmae_cli.backbone import Backbone
    from dsdmae_cli.config.compose import compose
    from dsdmae_cli.config.resolve import resolve
    from dsdmae_cli.config.schema import PROBE
    from dsdmae_cli.data.base import Subset
    from dsdmae_cli.evaluation.judging import LabelledSplits, open_labelled
    from dsdmae_cli.evaluation.probe_data import drawn, gather
    from dsdmae_cli.evaluation.probes import ProbeResult
    from dsdmae_cli.evaluation.split import few_shot
    from dsdmae_cli.report import Report

    if plugins.find("probe", name).spec.dense:
        check_dense_probe(name)
        return

    class Places(Backbone):
        """The 8x8 values of a digit, each in a token of its own at a place of its own: their mean is all of them."""

        grid, width, image_size, timm_name, timm_kwargs = (8, 8), 64, 16, "", {}

        def forward(self, images: Tensor) -> Tensor:
            return 64 * torch.diag_embed(torch.nn.functional.avg_pool2d(images.mean(dim=1), 2).flatten(1))

    quick = ("data.dataset=digits", "probe.cache=false", "train.epochs=4", "train.device=cpu", "train.precision=fp32")
    settings = resolve(compose(PROBE, assignments=[f"probe.kind={name}", *quick], environ={}).settings)
    whole = open_labelled(settings.data)
    few = LabelledSplits(Subset(whole.train, np.arange(300)), Subset(whole.test, np.arange(200)), whole.classes)
    data, truth = gather(Places().eval(), few, settings, torch.device("cpu"), "fp32", Report())
    fit = plugins.load(plugins.find("probe", name).spec.build)

    before = torch.get_rng_state()
    found: ProbeResult = fit(settings.probe, data)
    assert torch.equal(torch.get_rng_state(), before), "it changed torch's random state; draw from a torch.Generator"
    shape = tuple(found.logits.shape)
    assert shape == (200, 10), f"its logits are {shape}, not [test images, classes] = (200, 10)"
    assert found.logits.device.type == "cpu", "its logits must be on the CPU"
    assert not found.logits.isnan().any(), "its logits have NaN among them"
    assert found.protocol, "it says nothing of its protocol"
    if found.held_out:
        assert found.chosen is not None, "it has held-out accuracies and chose nothing"
        chosen = found.held_out[found.chosen[1]]
        assert chosen == max(found.held_out.values()), "it did not choose what is best on the held-out images"
    accuracy = float((found.logits.argmax(dim=1) == truth.labels).double().mean())
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
