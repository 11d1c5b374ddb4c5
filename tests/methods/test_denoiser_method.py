"""What a blind denoiser needs of DSdMAE: its settings, the U-Net, convolutional heads, unscaled windows, the preset."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import cli, digit_folder, one_line, records
from torch import Tensor
from torch.nn import functional as F

from dsdmae_builtin.backbones import UNetSettings
from dsdmae_builtin.convolutions import GridConvolutions, to_map, to_tokens
from dsdmae_builtin.methods.dsdmae import DSdMAE, Noised
from dsdmae_builtin.unet import UNet
from dsdmae_cli import corruption as C
from dsdmae_cli.config.compose import load
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.data.augment import Augmentation, augment
from dsdmae_cli.data.open import open_dataset, open_source, place
from dsdmae_cli.data.source import Batching, Unreadable, seeded
from dsdmae_cli.degradation.photographs import Photographs, degrade
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.methods.losses import cosine_loss
from dsdmae_cli.recipes.pretrain import pretrain
from dsdmae_cli.runs.build import build_method
from dsdmae_cli.settings.judge import FinetuneSection
from dsdmae_cli.tasks.classifier import Classifier

CPU = torch.device("cpu")
UNET = ("backbone.name=unet", "backbone.patch_size=2", "backbone.widths=[8, 12]", "backbone.depths=[1, 1]")
BLIND = (
    "method.mask_ratio=1", "method.noise_std=[0, 0.5]", "method.noise_clip=true", "method.residual=true",
    "method.pixel_weight=noise", "method.heads=conv", "method.lambda=0.9",
)  # fmt: skip


PHOTOGRAPH = ("method.noise=photograph", "method.mask_ratio=1", "method.heads=conv", "method.residual=true")


def images(count: int = 4, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=seeded(CPU, 0)) * 2 - 1


def built(*more: str, unet: bool = True) -> DSdMAE:
    """A tiny method with weights away from zero, so that no last layer hides what comes before it."""
    given = [*(UNET if unet else ()), *more]
    # helpers.assignments adds a ViT's sizes to anything that is no timm model.
    method = build_method(resolve(load(assignments=_tiny(given), environ={}).settings))
    assert isinstance(method, DSdMAE)
    generator = seeded(CPU, 1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return method.eval()


def _tiny(given: list[str]) -> list[str]:
    vit = [] if "backbone.name=unet" in given else ["backbone.embed_dim=32", "backbone.depth=1", "backbone.num_heads=2"]
    return ["data.dataset=digits", "data.image_size=16", "method.decoder_depth=1", "method.regressor_depth=1",
            *([] if "backbone.name=unet" in given else ["backbone.patch_size=4"]), *vit, *given]  # fmt: skip


# -- the defaults compute what they did before there was anything else


def test_defaults_leave_dsdmae_as_it_was() -> None:
    method, x = built("method.noise_std=1", "method.mask_ratio=0.9", unet=False), images()
    s = method.settings
    assert (s.noise_clip, s.residual, s.pixel_weight, s.heads) == (False, False, "none", "transformer")

    got = method.corrupt(x, seeded(CPU, 5))
    generator = seeded(CPU, 5)
    ids, _ = C.random_ids(4, 16, 14, generator)
    noisy = C.mask_to_pixels(C.ids_to_mask(ids, 16), (4, 4), (4, 4))
    assert torch.equal(got.ids_noisy, ids)
    noise = torch.randn(x.shape, generator=generator)
    assert torch.equal(got.images, torch.where(noisy, x + noise, x))

    ids_of = ids.unsqueeze(-1)
    latents = method.student(got.images).gather(1, ids_of.expand(-1, -1, 32))
    assert method.decoder is not None
    assert method.regressor is not None
    assert method.teacher is not None
    pixel = F.mse_loss(method.decoder(latents, ids), C.patchify(x, (4, 4)).gather(1, ids_of.expand(-1, -1, 48)))
    feature = cosine_loss(method.regressor(latents, ids), method.teacher(x).gather(1, ids_of.expand(-1, -1, 32)))
    losses = method(x, got)
    assert torch.equal(losses["pixel"], pixel)
    assert torch.equal(losses["loss"], torch.stack([0.6 * pixel, 0.4 * feature]).sum())


# -- the settings against formulas


def test_noise_is_clipped_where_it_is_drawn_and_only_there() -> None:
    x, generator = images(8), seeded(CPU, 3)
    noisy = torch.rand(8, 1, 16, 16, generator=generator) < 0.5
    std = torch.full((8, 1, 1, 1), 0.7)
    free = C.add_noise(x, noisy, std, "add", seeded(CPU, 4))
    clipped = C.add_noise(x, noisy, std, "add", seeded(CPU, 4), clip=True)
    assert free.abs().max() > 1
    assert torch.equal(clipped, torch.where(noisy, free.clamp(-1, 1), x))

    method = built(*BLIND)
    assert method.corrupt(x, seeded(CPU, 0)).images.abs().max() <= 1


def test_every_image_has_the_level_that_its_weight_says() -> None:
    method, x = built(*BLIND, "method.noise_clip=false"), torch.zeros(64, 3, 16, 16)
    corruption = method.corrupt(x, seeded(CPU, 0))
    measured = corruption.images.flatten(1).double().std(dim=1)
    torch.testing.assert_close(
        measured, corruption.std[:, 0].double(), rtol=0.12, atol=0
    )  # 768 pixels: 1/sqrt(2 * 768)
    assert 0 <= corruption.std.min() < 0.1
    assert 0.4 < corruption.std.max() <= 0.5


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("weight", ["none", "noise"])
def test_pixel_loss_against_the_formula(residual: bool, weight: str) -> None:
    method = built(
        *BLIND, f"method.residual={str(residual).lower()}", f"method.pixel_weight={weight}", "method.mask_ratio=0.5"
    )
    x = images()
    corruption = method.corrupt(x, seeded(CPU, 7))
    assert method.decoder is not None
    latents = method.student(corruption.images)
    total = 0.0
    for i in range(4):
        ids = corruption.ids_noisy[i]
        decoded = method.decoder(latents[i, ids][None], ids[None])[0].double()
        given, clean = (C.patchify(t[i : i + 1].double(), (2, 2))[0, ids] for t in (corruption.images, x))
        mse = (decoded + (given if residual else 0) - clean).square().mean()
        total += mse / (corruption.std[i, 0].double() ** 2 + 0.01) if weight == "noise" else mse
    torch.testing.assert_close(method(x, corruption)["pixel"].double(), total / 4, rtol=1e-5, atol=0)


def test_residual_needs_raw_pixels(capfd: pytest.CaptureFixture[str]) -> None:
    given = ("--set", "method.residual=true", "--set", "method.norm_pix_loss=true")
    code, _, err = cli(capfd, "pretrain", "--dry-run", *given)
    assert code == 2
    assert "residual = true adds to raw pixels and norm_pix_loss = true has none" in one_line(err)


# -- denoise


@pytest.mark.parametrize("unet", [True, False])
@pytest.mark.parametrize("residual", [True, False])
def test_denoise_decodes_every_patch(unet: bool, residual: bool) -> None:
    method = built("method.mask_ratio=1", f"method.residual={str(residual).lower()}",
                   f"method.heads={'conv' if unet else 'transformer'}", unet=unet)  # fmt: skip
    x = images(3)
    got = method.denoise(x)
    assert got is not None
    assert got.shape == x.shape
    assert got.dtype == torch.float32
    everything = torch.arange(method.student.num_tokens).expand(3, -1)
    restored = method.restore(x, Noised(x, everything, torch.zeros(3, 1)))
    assert restored is not None
    torch.testing.assert_close(got, restored.restored)


def test_denoise_without_pixels() -> None:
    assert built("method.lambda=0", unet=False).denoise(images()) is None
    assert built("method.norm_pix_loss=true", unet=False).denoise(images()) is None


def test_an_untrained_residual_denoiser_gives_the_picture_back() -> None:
    method = build_method(resolve(load(assignments=_tiny([*UNET, *BLIND]), environ={}).settings))
    assert isinstance(method, DSdMAE)
    got = method.denoise(images())
    assert got is not None
    assert torch.equal(got, images())


# -- the U-Net and the convolutional heads


def test_maps_and_tokens_are_the_same_memory() -> None:
    tokens = torch.randn(2, 12, 5)
    features = to_map(tokens, (3, 4))
    assert features.is_contiguous(memory_format=torch.channels_last)
    assert features.data_ptr() == tokens.data_ptr()
    assert torch.equal(features[1, :, 2, 3], tokens[1, 2 * 4 + 3])
    assert torch.equal(to_tokens(features), tokens)


def test_heads_see_zeros_where_no_token_is_given() -> None:
    head = GridConvolutions((4, 4), 6, depth=2, out_features=3)
    torch.nn.init.normal_(head.project.weight)  # type: ignore[arg-type]
    tokens = torch.randn(2, 5, 6)
    ids = torch.tensor([[0, 3, 7, 8, 15], [1, 2, 3, 4, 5]])
    dense = torch.zeros(2, 6, 4, 4, dtype=torch.float64)
    for b in range(2):
        for k in range(5):
            dense[b, :, ids[b, k] // 4, ids[b, k] % 4] = tokens[b, k].double()
    weights = {name: value.double() for name, value in head.state_dict().items()}

    def conv(x: Tensor, name: str) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    for i in range(2):
        dense = dense + conv(conv(dense, f"blocks.{i}.conv1").relu(), f"blocks.{i}.conv2")
    expected = conv(dense, "project")
    got = head(tokens, ids)
    assert got.shape == (2, 5, 3)
    for b in range(2):
        for k in range(5):
            torch.testing.assert_close(
                got[b, k].double(), expected[b, :, ids[b, k] // 4, ids[b, k] % 4], rtol=1e-4, atol=1e-5
            )


def test_unet_moves_with_its_image() -> None:
    """A step of the coarsest scale moves the tokens by as much, away from the edges: nothing depends on the place."""
    net = UNet(UNetSettings(widths=(8, 12), depths=(1, 1)), 64).eval()
    x = images(1, 64)
    tokens, moved = (to_map(net(image), net.grid) for image in (x, x.roll(4, dims=-1)))
    middle = slice(12, -12)
    torch.testing.assert_close(moved.roll(-2, dims=-1)[..., middle, middle], tokens[..., middle, middle])


def test_layer_decay_knows_the_layers_of_a_unet() -> None:
    """From the first convolution to the last stage of the U a factor a layer, where all had that of one layer."""
    net = UNet(UNetSettings(widths=(8, 12, 16), depths=(1, 1, 1)), 16)
    scales = Classifier(FinetuneSection(), net, 3, 0.5).lr_scales()
    layers = ("embed", "encode.0", "shrink.0", "encode.1", "encode.2", "enlarge.1", "decode.1", "enlarge.0", "decode.0")
    found = [{s for name, s in scales.items() if f"backbone.{layer}." in name} for layer in layers]
    assert found == [{0.5**n} for n in (6, 5, 5, 4, 3, 2, 2, 1, 1)]
    assert scales["network.head.weight"] == 1


def test_unet_takes_other_sizes_with_the_same_weights() -> None:
    net = UNet(UNetSettings(widths=(8, 12), depths=(1, 1)), 16)
    net.set_image_size(24)
    assert net(images(2, 24)).shape == (2, net.num_tokens, 8)
    assert net.patch_shape == (2, 2)
    with pytest.raises(SettingsError, match=r"data.image_size = 18 must be a multiple of 4"):
        net.set_image_size(18)


def test_unet_refuses_scales_without_depths(capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = cli(capfd, "pretrain", "--dry-run", "--backbone", "unet", "--set", "backbone.widths=[8, 16]",
                       "--set", "backbone.depths=[1]")  # fmt: skip
    assert code == 2
    assert "widths has 2 scales and depths 1" in one_line(err)


# -- windows that are not rescaled


def test_windows_are_cut_unscaled_and_everywhere() -> None:
    square = torch.arange(12 * 12, dtype=torch.uint8).reshape(1, 1, 12, 12).expand(400, 3, 12, 12)
    plan = Augmentation(8, None, (1, 1), "bicubic", flip=False, shift=0, crop_from=12)
    got = ((augment(square, plan, seeded(CPU, 0)) + 1) * 127.5).round().long()
    corners = got[:, 0, 0, 0]
    assert set(corners.tolist()) == {12 * y + x for y in range(5) for x in range(5)}
    window = torch.arange(8)[:, None] * 12 + torch.arange(8)
    assert torch.equal(got, (corners[:, None, None, None] + window).expand_as(got))


@pytest.mark.parametrize("placement", ["resident", "streaming"])
def test_windows_come_out_of_the_pictures(photos_folder: Path, placement: str) -> None:
    loaded = load(
        assignments=[f"data.dataset=folder:{photos_folder}", "data.image_size=32", "data.crop_from=64",
                     f"data.placement={placement}", "data.workers=0", "data.flip=false"], environ={},
    )  # fmt: skip
    data = resolve(loaded.settings).data
    dataset = open_dataset(data, "train")
    batching = Batching(len(dataset), batch_size=6, micro_batch=6, seed=0)
    unreadable = Unreadable(len(dataset), data)
    where = place(dataset, data, CPU)
    assert where.word == placement
    source = open_source(dataset, data, where, batching, CPU, unreadable)
    [batch] = next(iter(source.steps(0)))
    source.close()
    from dsdmae_cli.data.square import to_square

    order = batching.order(0)[:6].tolist()
    for index, window in zip(order, batch.images, strict=True):
        square = to_square(dataset.load(index), 64).transpose(2, 0, 1)
        pixels = ((window + 1) * 127.5).round().numpy().astype(np.uint8)
        every = np.lib.stride_tricks.sliding_window_view(square, (3, 32, 32))[0]
        assert (every == pixels).all(axis=(2, 3, 4)).any()


def test_windows_must_fit(capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = cli(capfd, "pretrain", "--dry-run", "--set", "data.crop_from=8")
    assert code == 2
    assert "data.crop_from = 8 must be at least data.image_size = 16" in one_line(err)


# -- a run


def test_a_blind_denoiser_learns_from_a_folder(tmp_path: Path) -> None:
    folder = digit_folder(tmp_path / "digits")
    given = [text for text in _tiny([*UNET, *BLIND]) if not text.startswith("data.dataset=")]
    given += ["backbone.widths=[16, 24]", "method.noise_std=[0.2, 0.5]", "optim.clip_grad=1"]
    loaded = load(
        assignments=[f"data.dataset=folder:{folder}", "data.crop_from=16", "optim.lr=5e-3", "train.epochs=16",
                     "train.batch_size=8", "train.log_every=1", "train.precision=fp32", "train.knn_every=none", *given],
        environ={},
    )  # fmt: skip
    pretrain(loaded, out=tmp_path / "run", resume=False, overridden=False, as_json=True)
    losses = [record["pixel"] for record in records(tmp_path / "run") if "pixel" in record]
    print([round(x, 2) for x in losses])
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def test_the_preset_trains_a_blind_denoiser(capfd: pytest.CaptureFixture[str], photos_folder: Path) -> None:
    given: dict[str, Any] = {
        "preset": "denoiser",
        "assignments": [f"data.dataset=folder:{photos_folder}"],
        "environ": {},
    }
    s = resolve(load(**given).settings)
    method = s.method
    assert method.mask_ratio == 1  # type: ignore[attr-defined]
    assert isinstance(method.noise_std, tuple)  # type: ignore[attr-defined]
    assert method.noise_std[1] * 127.5 > 50  # type: ignore[attr-defined]
    assert 0 < method.lambda_ < 1  # type: ignore[attr-defined]  # student, decoder, regressor and teacher
    code, out, _ = cli(capfd, "pretrain", "--preset", "denoiser", "--dataset", f"folder:{photos_folder}", "--dry-run")
    assert code == 0
    assert "resident" in out


# -- noise = "photograph"


def test_only_noisy_patches_are_degraded_and_the_level_is_what_was_added() -> None:
    method = built("method.noise=photograph", "method.mask_ratio=0.5", unet=False)
    clean = images(8)
    noised = method.corrupt(clean, seeded(CPU, 0))
    mask = C.ids_to_mask(noised.ids_noisy, method.student.num_tokens)
    pixels = C.mask_to_pixels(mask, method.student.patch_shape, method.student.grid).expand_as(clean)
    assert torch.equal(noised.images[~pixels], clean[~pixels])
    added = (noised.images - clean)[pixels]
    assert added.abs().max() > 0.05
    whole = degrade(clean, method.photographs, _after_ids(method, clean))
    assert torch.allclose(noised.std[:, 0], (whole - clean).square().mean(dim=(1, 2, 3)).sqrt())
    assert torch.equal(noised.images[pixels], whole[pixels])


def _after_ids(method: DSdMAE, clean: Tensor) -> torch.Generator:
    """The generator of `corrupt` once it has drawn which patches are noisy."""
    generator = seeded(CPU, 0)
    C.random_ids(len(clean), method.student.num_tokens, method.student.num_tokens // 2, generator)
    return generator


def test_photographs_settings_reach_the_mixture() -> None:
    more = ("method.photograph_shares=[0.2,0.3,0.5]", "method.noise_std=0.1", "method.photograph_jpeg=[50,60]")
    how = built(
        *PHOTOGRAPH, *more, "method.photograph_jpeg_alone=[20,30]", "method.photograph_shot=[1e-3,2e-3]"
    ).photographs
    assert how == Photographs((0.2, 0.3, 0.5), (0.1, 0.1), (1e-3, 2e-3), (50, 60), (20, 30))
    assert built(*PHOTOGRAPH).photographs.white == (0, 0.45)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("method.photograph_shares=[0.5,0.5,0.5]", "sum to 1.5"),
        ("method.noise_law=lognormal", "does not go with noise = 'photograph'"),
        ("method.noise_per=patch", "does not go with noise = 'photograph'"),
        ("method.photograph_jpeg=[95,30]", "write [30.0, 95.0]"),
        ("method.photograph_jpeg_alone=[0,30]", "takes a pair of numbers from 1 to 100"),
    ],
)
def test_what_photographs_refuse(given: str, words: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(words)):
        resolve(load(assignments=_tiny([*UNET, *PHOTOGRAPH, given]), environ={}).settings)
