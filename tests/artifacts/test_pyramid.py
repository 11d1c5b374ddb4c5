"""The pyramid for torchvision's detectors: ViTDet's four scales against their formula, and the documented program."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator

import dsdmae_cli as dsdmae
from dsdmae_cli.artifacts.pyramid import FeaturePyramid
from dsdmae_cli.errors import SettingsError

_NET = {"name": "vit-tiny", "patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}


def pyramid(**how: Any) -> FeaturePyramid:
    torch.manual_seed(0)
    return dsdmae.feature_pyramid("scratch", backbone=_NET, image_size=(64, 96), out_channels=24, **how)


def norm(x: Tensor, of: Any) -> Tensor:
    return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], of.weight, of.bias, 1e-6).permute(0, 3, 1, 2)


@torch.no_grad()
def test_scales_are_those_of_the_paper() -> None:
    """Deconvolutions of stride 2, the map itself, max pooling; then 1x1 and 3x3, each with a norm over the channels."""
    net, images = pyramid(), torch.rand(2, 3, 64, 96) * 2 - 1
    found = net(images)
    assert list(found) == ["0", "1", "2", "3", "pool"]
    assert net.strides == (4, 8, 16, 32, 64)
    scales, outputs = list[Any](net.scales), list[Any](net.outputs)
    last = net.encoder(images).transpose(1, 2).unflatten(2, (4, 6))
    first, middle, _, second = scales[0]
    fine = F.conv_transpose2d(last, first.weight, first.bias, stride=2)
    fine = F.conv_transpose2d(F.gelu(norm(fine, middle)), second.weight, second.bias, stride=2)
    half = F.conv_transpose2d(last, scales[1].weight, scales[1].bias, stride=2)
    for level, scaled in enumerate((fine, half, last, F.max_pool2d(last, 2))):
        one, one_norm, three, three_norm = outputs[level]
        want = norm(F.conv2d(norm(F.conv2d(scaled, one.weight), one_norm), three.weight, padding=1), three_norm)
        torch.testing.assert_close(found[str(level)], want, rtol=1e-4, atol=1e-5)
        assert want.shape == (2, 24, 64 // net.strides[level], 96 // net.strides[level])
    torch.testing.assert_close(found["pool"], found["3"][:, :, ::2, ::2], rtol=0, atol=0)


def test_any_whole_number_of_patches_goes_through() -> None:
    net = pyramid()
    assert net(torch.zeros(1, 3, 96, 160))["0"].shape == (1, 24, 24, 40)
    with pytest.raises(SettingsError, match="64,90 px is no whole number of patches"):
        net(torch.zeros(1, 3, 64, 90))


@pytest.mark.parametrize("frozen", [False, True])
def test_what_learns(frozen: bool) -> None:
    net = pyramid(frozen=frozen).train()
    sum(level.square().mean() for level in net(torch.rand(1, 3, 64, 96)).values()).backward()
    learned = [p.grad is not None for p in net.encoder.parameters() if p.requires_grad]
    assert learned == [] if frozen else all(learned) and len(learned) > 5
    assert all(p.grad is not None for p in [*net.scales.parameters(), *net.outputs.parameters()])
    assert net.encoder.training is not frozen


def test_faster_rcnn_takes_it() -> None:
    net = pyramid()
    detector = FasterRCNN(
        net, num_classes=3, image_mean=net.image_mean, image_std=net.image_std, fixed_size=(96, 64),
        rpn_anchor_generator=AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 5),
    )  # fmt: skip
    target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 30.0]]), "labels": torch.tensor([1])}
    losses = detector.train()([torch.rand(3, 64, 96)], [target])
    assert all(loss.isfinite() for loss in losses.values())
    [found] = detector.eval()([torch.rand(3, 64, 96)])
    assert set(found) == {"boxes", "labels", "scores"}


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.filterwarnings("ignore:position embeddings resampled")  # which the page says
def test_the_documented_program_runs(test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(test_data / "camvid.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "detection.md").read_text(encoding="utf-8")
    program = "\n".join(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL))
    told: dict[str, Any] = {"__name__": "detection"}
    exec(compile(program, "docs/detection.md", "exec"), told)
    coco = json.loads(Path("camvid/train.json").read_text())
    assert {annotation["category_id"] for annotation in coco["annotations"]} == {1, 2, 3}
    assert len(coco["images"]) == 367
    assert told["found"]["boxes"].shape[1] == 4
    # Of the batch that came first, again: steps of other pictures are not to be compared.
    told["loader"].generator.manual_seed(0)
    images, targets = next(iter(told["loader"]))
    with torch.no_grad():
        again = float(sum(told["detector"].train()(list(images), list(targets)).values()))
    assert again < told["losses"][0]
