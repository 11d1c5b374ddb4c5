"""DSdMAE and MAE against a second implementation in float64, and the promises of each of their settings.

The parts of the second implementation are in reference.py, other backbones and the way out to timm in
test_method_backbones.py, and what every method promises in test_methods_common.py.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from helpers import settings
from reference import (
    CONVNEXT,
    CPU,
    SWIN,
    blocks,
    cosine,
    cut,
    embed,
    images,
    linear,
    mae_reference,
    normalised,
    positions,
    standardised,
    tiny,
)
from torch import Tensor, nn

from dsdmae_builtin.methods.dsdmae import DSdMAE, Noised
from dsdmae_cli.backbone import gather_tokens
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.corruption import ids_to_mask, patchify
from dsdmae_cli.data.source import seeded
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.methods.base import Method, StepInfo
from dsdmae_cli.methods.ema import EMATeacher
from dsdmae_cli.runs.build import build_method


def dsdmae_reference(method: DSdMAE, clean: Tensor, corruption: Noised) -> dict[str, float]:
    """Patches that are neither noisy nor read clean do not exist to student or teacher."""
    w = {name: tensor.double() for name, tensor in method.state_dict().items()}
    s = method.settings
    pixel, feature = [], []
    for i, (image, corrupted, chosen) in enumerate(
        zip(clean.double(), corruption.images.double(), corruption.ids_noisy, strict=True)
    ):
        read = torch.arange(16)
        if corruption.ids_clean is not None:
            read = torch.cat([chosen, corruption.ids_clean[i]]).sort().values
        noisy = torch.isin(read, chosen)
        latents = blocks(embed(corrupted, w, "student.vit")[read], w, "student.vit", heads=2)[noisy]
        at = latents + positions(4, 32)[chosen]
        if s.lambda_ > 0:
            decoded = linear(blocks(at, w, "decoder", heads=1), w, "decoder.project")
            target = normalised(cut(image)) if s.norm_pix_loss else cut(image)
            pixel.append((decoded - target[chosen]).pow(2).mean())
        if s.lambda_ < 1:
            told = blocks(embed(image, w, "teacher.module.vit")[read], w, "teacher.module.vit", heads=2)[noisy]
            if s.target_norm == "token":
                told = standardised(told)
            guess = blocks(at, w, "regressor", heads=1)
            pairs = {
                "token": list(zip(guess, told, strict=True)),
                "channel": list(zip(guess.T, told.T, strict=True)),
                "global": [(guess, told)],
            }[s.cosine]
            feature.append(1 - sum(cosine(a, b) for a, b in pairs) / len(pairs))
    parts = {name: float(sum(v) / len(v)) for name, v in (("pixel", pixel), ("feature", feature)) if v}  # type: ignore[arg-type]
    return parts | {"loss": s.lambda_ * parts.get("pixel", 0) + (1 - s.lambda_) * parts.get("feature", 0)}


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("method.mask_ratio=0.5", "method.lambda=0.25"),
        ("method.lambda=1",),
        ("method.lambda=0",),
        ("method.cosine=global",),
        ("method.cosine=channel", "method.target_norm=token"),
        ("method.target_norm=token", "method.norm_pix_loss=true"),
        ("method.noise=replace", "method.noise_std=[0.5, 2]"),
        ("method.noise_std=1", "method.mask_ratio=0.9"),
        ("method.noise=mix", "method.noise_std=0.7", "method.mask_ratio=1"),
        ("method.patch_dropout=0", "method.cosine=global"),
        ("method.patch_dropout=0.7", "method.mask_ratio=0.5", "method.cosine=channel"),
    ],
    ids=" ".join,
)
def test_dsdmae_is_its_formulas(more: tuple[str, ...]) -> None:
    method = tiny(*more).train()
    clean = images()
    corruption = method.corrupt(clean, seeded(CPU, 1))
    assert_losses(method, clean, corruption, dsdmae_reference(method, clean, corruption))


def test_dropout_of_patches_is_for_training_and_for_backbones_that_can() -> None:
    method, clean = tiny("method.mask_ratio=0.75").train(), images(16)
    corruption = method.corrupt(clean, seeded(CPU, 2))
    read = torch.cat([corruption.ids_noisy, corruption.ids_clean], dim=1)  # eight of sixteen, six of them noisy
    assert (corruption.ids_noisy.shape, read.shape) == ((16, 6), (16, 8))
    assert len({tuple(row) for row in read.sort(dim=1).values.tolist()}) > 8, "each image reads patches of its own"
    assert method.eval().corrupt(clean, seeded(CPU, 2)).ids_noisy.shape == (16, 12)
    assert method.corrupt(clean, seeded(CPU, 2)).ids_clean is None
    for more, wanted in (
        ((), 0.5), (("backbone.patch_size=2",), 0.75), (("backbone.patch_size=8",), 0),
        (SWIN, 0), (CONVNEXT, 0), (("method.heads=conv",), 0),
    ):  # fmt: skip
        assert tiny(*more).settings.patch_dropout == wanted
    with pytest.raises(SettingsError, match=r"method.patch_dropout = 0.5 leaves patches out, and the backbone cannot"):
        tiny(*SWIN, "method.patch_dropout=0.5")


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("method.mask_ratio=0.3",),
        ("method.norm_pix_loss=true", "method.decoder_dim=16"),
        ("backbone.class_token=true", "method.decoder_heads=4"),
    ],
    ids=" ".join,
)
def test_mae_is_its_formulas(more: tuple[str, ...]) -> None:
    method = tiny(*more, name="mae")
    clean = images()
    corruption = method.corrupt(clean, seeded(CPU, 1))
    loss = mae_reference(method, clean, corruption.ids_keep, corruption.ids_masked)
    assert_losses(method, clean, corruption, {"loss": loss, "pixel": loss})


@pytest.mark.parametrize("name", ["mae", "msa", "sdae", "tscae", "cae"])
def test_what_hides_some_patches_needs_several(name: str) -> None:
    with pytest.raises(SettingsError, match=r"one patch of an image of 16x16 px; lower backbone\.patch_size"):
        tiny("backbone.patch_size=16", name=name)


def test_a_class_token_learns_through_the_decoder() -> None:
    """Its own gradient is not zero: what it gathers from the patches helps to restore the others."""
    for name in ("mae", "sdae"):
        method = tiny("backbone.class_token=true", name=name)
        clean = images()
        method(clean, method.corrupt(clean, seeded(CPU, 1)))["loss"].backward()
        assert method.encoder().vit.cls_token.grad.abs().max() > 0
    with pytest.raises(SettingsError, match="decoder_heads = 5 does not divide the decoder's width of 32"):
        tiny("method.decoder_heads=5", name="mae")


def assert_losses(method: Method, clean: Tensor, corruption: Any, expected: dict[str, float]) -> None:
    exact = copy.deepcopy(method).double()
    wide = type(corruption)(*(t.double() if t is not None and t.is_floating_point() else t for t in corruption))
    # In float64 but for the loss itself, which the program computes in float32.
    for losses, tolerance in ((exact(clean.double(), wide), 1e-6), (method(clean, corruption), 2e-5)):
        assert losses.keys() == expected.keys()
        for name, value in losses.items():
            assert value.item() == pytest.approx(expected[name], rel=tolerance, abs=tolerance), name
            assert value.requires_grad == (name == "loss")


# -- the teacher and the heads


def test_the_teacher_gets_no_gradient() -> None:
    method = tiny().train()
    assert not method.teacher.training
    clean = images()
    losses = method(clean, method.corrupt(clean, seeded(CPU, 1)))
    losses["loss"].backward()
    teacher: list[tuple[str, torch.Tensor]] = []
    rest: list[tuple[str, torch.Tensor]] = []
    for name, parameter in method.named_parameters():
        (teacher if name.startswith("teacher.") else rest).append((name, parameter))
    assert teacher
    assert all(not p.requires_grad and p.grad is None for _, p in teacher)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for name, p in rest if p.requires_grad)
    # Fixed positions apart, all of the rest is trained.
    assert [name for name, p in rest if not p.requires_grad] == ["student.vit.pos_embed"]


@pytest.mark.parametrize(("weight", "absent"), [("1", {"teacher", "regressor"}), ("0", {"decoder"}), ("0.5", set())])
def test_lambda_switches_heads_off(weight: str, absent: set[str]) -> None:
    method = tiny(f"method.lambda={weight}", "method.patch_dropout=0").train()
    built = {name.split(".")[0] for name in method.state_dict()}
    assert built == {"student", "decoder", "regressor", "teacher"} - absent
    ran: list[str] = []
    for name, part in method.named_children():
        network = part.module if isinstance(part, EMATeacher) else part
        network.register_forward_hook(lambda *_, name=name: ran.append(name))
    clean = images()
    corruption = method.corrupt(clean, seeded(CPU, 1))
    losses = method(clean, corruption)
    method.after_step(StepInfo(1, 10, 5, torch.zeros(())))
    assert sorted(ran) == sorted(built)  # each once: the clean image is read by the teacher alone
    assert ("pixel" in losses, "feature" in losses) == ("decoder" in built, "teacher" in built)
    assert (method.restore(clean, corruption) is None) == ("decoder" in absent)


def weights_of(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def test_the_teacher_starts_as_the_student_or_at_random() -> None:
    def build(start: str) -> tuple[nn.Module, nn.Module]:
        method: Any = build_method(resolve(settings("digits", f"method.teacher_start={start}").settings))
        return method.student, method.teacher.module

    student, teacher = build("student")
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters(), strict=True))
    same_student, stranger = build("random")
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), same_student.parameters(), strict=True))
    for (name, mine), theirs in zip(stranger.named_parameters(), student.parameters(), strict=True):
        if name.endswith("weight") and mine.ndim > 1:
            assert not torch.equal(mine, theirs), name
    assert torch.equal(stranger.vit.pos_embed, student.vit.pos_embed)  # type: ignore[union-attr]


@pytest.mark.parametrize("every", ["step", "epoch"])
def test_when_the_teacher_moves(every: str) -> None:
    method = tiny(f"method.ema_every={every}", "method.ema_momentum=[0.5, 0.5]")
    method.student.vit.norm.bias.data += 1
    moved = []
    for step in range(1, 7):
        before = weights_of(method.teacher)
        method.after_step(StepInfo(step, 6, 3, torch.zeros(())))
        after = weights_of(method.teacher)
        moved.append(not all(torch.equal(a, b) for a, b in zip(before, after, strict=True)))
        for a, b, s in zip(before, after, weights_of(method.student), strict=True):
            torch.testing.assert_close(b, (a + s) / 2 if moved[-1] else a)
    assert moved == [every == "step" or step % 3 == 0 for step in range(1, 7)]


# -- masks and noise


@pytest.mark.parametrize("ratio", ["0.9", "0.5", "0.01", "1", "0.84"])
@pytest.mark.parametrize("noise", ["add", "replace", "mix"])
def test_exactly_so_many_patches_are_noisy_and_the_rest_untouched(ratio: str, noise: str) -> None:
    method = tiny(f"method.mask_ratio={ratio}", f"method.noise={noise}", "method.noise_std=1")
    clean = images(16)
    corruption = method.corrupt(clean, seeded(CPU, 2))
    count = max(1, round(float(ratio) * 16))
    assert corruption.ids_noisy.shape == (16, count)
    for before, after, ids in zip(clean, corruption.images, corruption.ids_noisy, strict=True):
        a, b = cut(before), cut(after)
        changed = (a != b).all(dim=1)
        assert changed.nonzero().flatten().tolist() == ids.tolist() == sorted(set(ids.tolist()))
        assert torch.equal(a.view(torch.int32)[~changed], b.view(torch.int32)[~changed])
    if 1 < count < 16:
        assert len({tuple(ids.tolist()) for ids in corruption.ids_noisy}) > 1, "all images have one mask"
    again = method.corrupt(clean, seeded(CPU, 2))
    assert torch.equal(again.images, corruption.images)
    assert not torch.equal(method.corrupt(clean, seeded(CPU, 3)).images, corruption.images)


@pytest.mark.parametrize(("noise", "slope"), [("add", 1.0), ("replace", 0.0), ("mix", math.sqrt(1 - 0.7**2))])
def test_kinds_of_noise(noise: str, slope: float) -> None:
    method = tiny(f"method.noise={noise}", "method.noise_std=0.7", "method.mask_ratio=1")
    clean = images(128)
    noisy = method.corrupt(clean, seeded(CPU, 0)).images
    # Regression of what comes out on what went in: slope, and what the slope does not explain.
    found = ((noisy * clean).mean() / clean.pow(2).mean()).item()
    assert found == pytest.approx(slope, abs=0.02)
    rest = noisy - slope * clean
    assert rest.std().item() == pytest.approx(0.7, abs=0.01)
    assert rest.mean().item() == pytest.approx(0, abs=0.01)
    assert rest.pow(4).mean().item() / 0.7**4 == pytest.approx(3, abs=0.1)  # Gaussian


def test_a_range_of_sigma_is_drawn_from_for_each_image() -> None:
    method = tiny("method.noise_std=[0.2, 1.4]", "method.mask_ratio=1")
    clean = images(400)
    levels = (method.corrupt(clean, seeded(CPU, 0)).images - clean).flatten(1).std(dim=1)
    assert 0.18 < levels.min() < 0.26
    assert 1.3 < levels.max() < 1.5
    assert levels.mean().item() == pytest.approx(0.8, abs=0.06)
    assert levels.std().item() == pytest.approx(1.2 / math.sqrt(12), abs=0.04)


@pytest.mark.parametrize(
    "more",
    [
        ("method.noise_correlation=0",),
        ("method.noise_std=[0.05, 5]", "method.noise_law=loguniform", "method.noise_per=patch"),
    ],
    ids=str,
)
def test_a_level_of_its_own_for_each_patch(more: tuple[str, ...]) -> None:
    """The default's levels, and the same said; white, so that a patch says its own."""
    method = tiny(*more, "method.mask_ratio=0.75")
    clean = images(200)
    corruption = method.corrupt(clean, seeded(CPU, 0))
    noise = patchify(corruption.images - clean, (4, 4)).gather(1, corruption.ids_noisy[..., None].expand(-1, -1, 48))
    assert corruption.std.shape == (200, 12)
    # 48 values a patch: the level is measured to a tenth, and over all patches much better.
    ratio = noise.std(dim=2) / corruption.std
    assert ratio.mean().item() == pytest.approx(1, abs=0.01)
    assert ratio.std().item() == pytest.approx(1 / math.sqrt(2 * 48), abs=0.015)
    levels = corruption.std.log()
    assert levels.mean().item() == pytest.approx((math.log(0.05) + math.log(5)) / 2, abs=0.1)
    # Drawn for each patch: as far apart within an image as between images.
    assert levels.std(dim=1).mean().item() == pytest.approx(math.log(100) / math.sqrt(12), rel=0.05)


@pytest.mark.parametrize("more", [(), ("method.noise_std=0.5",), ("method.noise_std=0.5", "method.noise=mix")], ids=str)
def test_noise_that_is_alike_within_a_patch(more: tuple[str, ...]) -> None:
    """As loud as white noise, clean patches untouched, and nothing of it in a checkpoint."""
    method = tiny("method.noise_correlation=0.9", "method.mask_ratio=0.75", *more)
    clean = images(200)
    corruption = method.corrupt(clean, seeded(CPU, 0))
    where = ids_to_mask(corruption.ids_noisy, 16)
    given, was = patchify(corruption.images, (4, 4)), patchify(clean, (4, 4))
    assert torch.equal(given[~where], was[~where])
    keep = math.sqrt(1 - 0.25) if len(more) > 1 else 1.0
    level = corruption.std.expand(-1, 12) if corruption.std.shape[1] == 1 else corruption.std
    noise = (given - keep * was)[where] / level.flatten()[:, None]
    assert noise.square().mean().sqrt().item() == pytest.approx(1, abs=0.03)
    by_place = noise.unflatten(1, (4, 4, 3))
    for one, other, wanted in (
        (by_place[:, :-1], by_place[:, 1:], 0.9),
        (by_place[:, :, :-2], by_place[:, :, 2:], 0.81),
        (by_place[..., 0], by_place[..., 2], 0.9),
    ):
        assert (one * other).mean().item() == pytest.approx(wanted, abs=0.04)
    white = tiny("method.noise_correlation=0", *more)
    assert method.state_dict().keys() == white.state_dict().keys()


def test_pixel_weights_by_patch_against_the_formula() -> None:
    method = tiny("method.noise_std=[0.05, 5]", "method.noise_law=loguniform", "method.noise_per=patch",
                  "method.pixel_weight=noise", "method.mask_ratio=0.5")  # fmt: skip
    clean = images(3)
    corruption = method.corrupt(clean, seeded(CPU, 1))
    assert method.decoder is not None
    ids = corruption.ids_noisy
    decoded = method.decoder(gather_tokens(method.student(corruption.images), ids), ids)
    total = 0.0
    for i in range(3):
        for k, token in enumerate(ids[i].tolist()):
            truth = patchify(clean[i : i + 1], (4, 4))[0, token].double()
            mse = (decoded[i, k].double() - truth).square().mean()
            total += mse / (corruption.std[i, k].double() ** 2 + 0.01) / (3 * 8)
    torch.testing.assert_close(method(clean, corruption)["pixel"].double(), torch.as_tensor(total), rtol=1e-5, atol=0)


def test_a_range_of_ratios_is_drawn_from_for_each_batch() -> None:
    method = tiny("method.mask_ratio=[0.25, 0.75]")
    clean = images(2)
    counts = [method.corrupt(clean, seeded(CPU, seed)).ids_noisy.shape[1] for seed in range(300)]
    assert set(counts) == set(range(4, 13))
    assert sum(counts) / len(counts) == pytest.approx(8, abs=0.5)


def test_restored_pictures_keep_the_clean_patches() -> None:
    cases = [("dsdmae", "norm_pix_loss=true"), ("dsdmae", "lambda=1"), ("mae", "mask_ratio=0.5")]
    for name, more in cases:
        method = tiny(f"method.{more}", name=name)
        clean = images()
        corruption = method.corrupt(clean, seeded(CPU, 1))
        shown = method.restore(clean, corruption)
        ids = corruption[1] if name == "dsdmae" else corruption.ids_masked
        for original, corrupted, restored, chosen in zip(clean, *shown, ids, strict=True):
            hidden = torch.zeros(16, dtype=torch.bool)
            hidden[chosen] = True
            for picture in (corrupted, restored):
                changed = (cut(picture) != cut(original)).any(dim=1)
                assert torch.equal(changed, hidden)
