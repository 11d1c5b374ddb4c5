"""MSA, as we read its abstract, against its formulas in float64."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from helpers import cli, one_line
from reference import blocks, embed, mae_reference
from test_mocov3 import CPU, build, contrast, mlp_of, pairs, perturbed, whole_images

from dsdmae_builtin.methods.msa import MSA, Siamese
from dsdmae_cli.data.source import seeded
from dsdmae_cli.methods.base import StepInfo


def reference(method: MSA, corruption: Siamese) -> dict[str, float]:
    w = {name: tensor.double() for name, tensor in method.state_dict().items()}
    weak, (masked, kept, _), strong = corruption.weak.double(), corruption.split, corruption.strong.double()
    mae = SimpleNamespace(
        settings=method.settings,
        state_dict=lambda: {name.removeprefix("mae."): t for name, t in w.items() if name.startswith("mae.")},
    )
    pixel = mae_reference(mae, weak, kept, masked)
    name = "mae.backbone.vit"
    seen = [embed(image, w, name)[keep] for image, keep in zip(weak, kept, strict=True)]
    pooled = torch.stack([blocks(tokens, w, name, heads=2).mean(0) for tokens in seen])
    queries = mlp_of(mlp_of(pooled, w, "projector", 3), w, "predictor", 2)
    keys = mlp_of(whole_images(strong, w, "teacher.module.vit"), w, "teacher_projector.module", 3)
    tau = method.settings.temperature
    contrastive = contrast(queries, keys, tau)
    if method.settings.symmetric:
        contrastive = (contrastive + contrast(keys, queries, tau)) / 2
    return {
        "pixel": pixel,
        "contrastive": contrastive,
        "loss": pixel + method.settings.contrastive_weight * contrastive,
    }


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("method.contrastive_weight=0.3", "method.norm_pix_loss=true", "method.temperature=0.5"),
        ("method.mask_ratio=0.3", "method.symmetric=false"),
    ],
    ids=" ".join,
)
def test_msa_is_its_formulas(more: tuple[str, ...]) -> None:
    method = perturbed(build("msa", *more)).train()
    images = pairs()
    given = method.corrupt(images, seeded(CPU, 1))
    expected = reference(method, given)
    wide = Siamese(given.weak.double(), given.split, given.strong.double())
    for losses in (copy.deepcopy(method).double()(images.double(), wide), method(images, given)):
        assert losses.keys() == expected.keys()
        for name, value in losses.items():
            assert value.item() == pytest.approx(expected[name], rel=3e-5), name
            assert value.requires_grad == (name == "loss")


def test_the_student_reads_the_weak_crop_and_the_teacher_the_strong_one() -> None:
    assert (MSA.num_views, MSA.whole_batch) == (2, True)
    method, images = build("msa"), pairs()
    given = method.corrupt(images, seeded(CPU, 1))
    assert torch.equal(given.weak, images[:, 0])
    changed = (given.strong - images[:, 1]).abs().flatten(1).amax(1) > 1e-3
    assert changed.any()
    assert given.split.ids_keep.shape == (5, 4)  # a quarter of 16 patches
    assert method.strength.blur_probability == 0
    assert build("msa", "data.image_size=64", "backbone.patch_size=16").strength.blur_probability == 0.5


def test_the_teacher_follows_and_gets_no_gradient() -> None:
    method, images = perturbed(build("msa", "method.ema_momentum=[0, 0]")).train(), pairs()
    method(images, method.corrupt(images, seeded(CPU, 1)))["loss"].backward()
    for name, p in method.named_parameters():
        teacher = name.startswith("teacher")
        assert (p.grad is None) == (teacher or name == "mae.backbone.vit.pos_embed"), name
        assert p.requires_grad != (p.grad is None)
    method.after_step(StepInfo(1, 10, 5, torch.zeros(())))
    for teacher, student in ((method.teacher, method.mae.backbone), (method.teacher_projector, method.projector)):
        for a, b in zip(teacher.parameters(), student.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)  # t + (s - t) is s but for rounding


def test_pictures_are_maes() -> None:
    method, images = perturbed(build("msa")).eval(), pairs()
    given = method.corrupt(images, seeded(CPU, 1))
    shown, expected = method.restore(images, given), method.mae.restore(images[:, 0], given.split)
    assert torch.equal(shown.restored, expected.restored)
    assert torch.equal(shown.corrupted, expected.corrupted)
    rows = method.show(images, given)
    assert list(rows) == ["student", "restored", "teacher"]
    assert torch.equal(rows["teacher"], given.strong)


def test_it_refuses_networks_that_can_drop_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = cli(capfd, "pretrain", "--method", "msa", "--backbone", "timm:test_convnext", "--dry-run")
    assert code == 2
    assert "method 'msa' drops patches" in one_line(err)


def test_the_abstract_is_named_wherever_the_method_is_listed(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = cli(capfd, "plugins")
    assert code == 0
    [line] = [line for line in out.splitlines() if line.startswith("msa ")]
    assert "re-implemented from the abstract" in line
