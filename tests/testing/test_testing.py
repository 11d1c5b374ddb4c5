"""The checks for plugins' authors pass what is whole and name what is not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from dsdmae_builtin.digits import build as digits
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.errors import PluginError
from dsdmae_cli.methods.base import Method
from dsdmae_cli.testing import check_backbone, check_dataset, check_method, check_tracker
from dsdmae_cli.testing import methods as promises
from dsdmae_cli.testing.datasets import _is_the_same_every_time, _labels_fit

# One distribution with a method, a dataset and a tracker, each with a fault.
FAULTY = """
import numpy as np
from dsdmae_cli.data.base import ImageDataset
from dsdmae_cli.plugins import DatasetSpec, MethodSpec, TrackerSpec
from dsdmae_cli.tracking import Tracker

class Failing(Tracker):
    def __init__(self, run):
        self.path = run.path
    def log(self, record):
        if self.path.name == "trained":
            raise ValueError("no such project")
    def close(self, result):
        pass

class Grey(ImageDataset):
    def __len__(self):
        return 8
    def load(self, index):
        return np.zeros((16, 16), dtype=np.uint8)
    def name(self, index):
        return f"image {index}"

def build(settings, split):
    return Grey()

DATASET = DatasetSpec(summary="grey", build="faulty_plugin:build", image_size=16)
TRACKER = TrackerSpec(summary="fails", build="faulty_plugin:Failing")
"""
HEAVY = (
    'import torch\nfrom dsdmae_cli.plugins import MethodSpec\nSPEC = MethodSpec(summary="heavy", build="heavy:build")\n'
)


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed as pip lays it out."""
    info = tmp_path / "faulty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[dsdmae.datasets]\ngrey = faulty_plugin:DATASET\n[dsdmae.trackers]\nfailing = faulty_plugin:TRACKER\n"
        "[dsdmae.methods]\nheavy = heavy_plugin:SPEC\n"
    )
    (tmp_path / "faulty_plugin.py").write_text(FAULTY)
    (tmp_path / "heavy_plugin.py").write_text(HEAVY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for module in ("faulty_plugin", "heavy_plugin"):
        monkeypatch.delitem(sys.modules, module, raising=False)


def test_ours_are_whole() -> None:
    check_method("mae")
    check_backbone(
        "vit-tiny", "backbone.patch_size=4", "backbone.embed_dim=32", "backbone.depth=1", "backbone.num_heads=2"
    )
    check_dataset("digits")
    check_tracker("tensorboard")


def test_what_is_not_installed_is_named() -> None:
    for check in (check_method, check_backbone, check_dataset, check_tracker):
        with pytest.raises(PluginError, match="'nosuch' is not installed"):
            check("nosuch")


@pytest.mark.usefixtures("faulty")
def test_faulty_plugins_are_told_what_is_wrong() -> None:
    with pytest.raises(AssertionError, match=r"train image 0 has the shape \(16, 16\), not \[height, width, 3\]"):
        check_dataset("grey")
    with pytest.raises(AssertionError, match="tracker failing failed and is told no more: ValueError: no such project"):
        check_tracker("failing")
    with pytest.raises(AssertionError, match="the spec of method 'heavy' loads torch"):
        check_method("heavy")


class Wrapped(Method):
    """A whole method with one fault."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.inner = promises.build("mae")
        self.fault = fault
        self.whole_batch = fault == "whole"
        self.register_buffer("count", torch.zeros(()))
        if fault == "idle":
            self.idle = torch.nn.Parameter(torch.zeros(3))

    def corrupt(self, images: Tensor, generator: Generator) -> object:
        if self.fault == "global":
            torch.rand(1)
        if self.fault == "fixed":
            generator.manual_seed(5)
        return self.inner.corrupt(images, generator)

    def forward(self, images: Tensor, corruption: object) -> dict[str, Tensor]:
        losses = self.inner(images, corruption)
        if self.fault == "attached":
            losses["more"] = losses["loss"] * 2
        if self.fault == "sum":
            losses = {"loss": losses["loss"] * len(images)}
        if self.fault == "dropout":
            losses["loss"] = losses["loss"] * (1 + torch.rand(()))
        if self.fault == "bf16" and torch.is_autocast_enabled("cpu"):
            losses["loss"] = losses["loss"] * 1.2
        return losses

    def after_step(self, info: object) -> None:
        if self.fault == "skipped":
            self.count.add_(1)

    def encoder(self) -> Backbone:
        return self.inner.encoder()

    def show(self, images: Tensor, corruption: object) -> dict[str, Tensor]:
        return {"given": images[:, 0]} if self.fault == "show" else {"given": images}


@pytest.mark.parametrize(
    ("fault", "promise", "said"),
    [
        ("attached", promises.all_but_teachers_learn, "detach all others"),
        ("idle", promises.all_but_teachers_learn, "idle: requires_grad is True, a gradient False"),
        ("skipped", promises.skipped_step_changes_nothing, "after_step changed count"),
        ("global", promises.randomness_is_the_generators, "corrupt draws from torch's global state"),
        ("fixed", promises.randomness_is_the_generators, "corrupt gives the same for two seeds"),
        ("dropout", promises.randomness_is_the_generators, "forward gives two losses for one corruption"),
        ("sum", promises.batch_may_be_cut, "not close"),
        ("whole", promises.batch_may_be_cut, "cutting the batch makes no difference"),
        ("bf16", promises.bf16_is_near_fp32, "under bf16 autocast"),
        ("show", promises.shows_pictures, r"row 'given' of show is \(3, 16, 16\)"),
    ],
)
def test_a_method_with_a_fault_is_told_which(fault: str, promise: Callable[[Method], None], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        promise(Wrapped(fault))


def test_a_dataset_with_a_fault_is_told_which() -> None:
    from dsdmae_cli.settings.models import DataSettings

    train, other = (digits(DataSettings(), "train") for _ in range(2))
    assert train.labels is not None
    train.labels = np.asarray(train.labels + 5)
    with pytest.raises(AssertionError, match="a label of train is 14, and there are 10 classes"):
        _labels_fit(train, "train")
    other._images = np.ascontiguousarray(other._images[::-1])
    with pytest.raises(AssertionError, match="train image 0 is another one when it is opened anew"):
        _is_the_same_every_time(digits(DataSettings(), "train"), other, "train")
