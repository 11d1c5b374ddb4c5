"""What a network that names pixels computes and learns, held against torch's own and scikit-learn's."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn import functional as F

from dsdmae_cli.config.compose import compose
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.config.schema import FINETUNE
from dsdmae_cli.data.masks import VOID
from dsdmae_cli.data.source import seeded
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.runs.build import build_backbone
from dsdmae_cli.settings.judge import FinetuneSection
from dsdmae_cli.tasks.segmenter import Segmenter, upsampled
from dsdmae_cli.work import measure_work

CPU = torch.device("cpu")
SIZE = (16, 24)
SMALL = ("backbone.depth=2", "backbone.embed_dim=16", "backbone.num_heads=2", "backbone.patch_size=4")
CONVNEXT = ("backbone.patch_size=1", "backbone.options={depths=[1, 1, 1, 1], dims=[16, 16, 24, 32]}")


def backbone(size: Any = SIZE) -> Any:
    settings = compose(FINETUNE, assignments=["data.dataset=digits", *SMALL], environ={}).settings
    return build_backbone(settings.backbone, size, 0)


def segmenter(**settings: Any) -> Segmenter:
    section = FinetuneSection(task="segment", head_std=0.5, **settings)
    return Segmenter(section, backbone(), 5, 0.75).double()


def batch(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draws = seeded(CPU, seed)
    images = torch.rand(count, 3, *SIZE, generator=draws, dtype=torch.float64) * 2 - 1
    masks = torch.randint(0, 5, (count, *SIZE), generator=draws).to(torch.uint8)
    for index in range(count):  # void unevenly, the last all of it
        masks[index, : SIZE[0] * index // max(1, count - 1)] = VOID
    return images, masks


@pytest.mark.parametrize(("grid", "size"), [((3, 4), (12, 16)), ((4, 6), (16, 25)), ((2, 2), (2, 2)), ((1, 5), (9, 7))])
def test_upsampling_is_torchs(grid: tuple[int, int], size: tuple[int, int]) -> None:
    scores = torch.randn(2, *grid, 3, generator=seeded(CPU, 0))
    expected = F.interpolate(scores.movedim(3, 1), size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsampled(scores, size), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_cross_entropy_over_judged_pixels(smoothing: float) -> None:
    method = segmenter(label_smoothing=smoothing).eval()
    method.weigh_pixels(torch.tensor([5, 1, 2, 8, 4]))
    images, masks = batch(4)
    losses = method(images, method.corrupt_labelled(images, masks, seeded(CPU, 0)))
    judged = masks != VOID
    logits = method.network(images).movedim(1, 3)[judged]
    own = F.cross_entropy(
        logits, masks[judged].long(), method.class_weights, reduction="sum", label_smoothing=smoothing
    )
    torch.testing.assert_close(losses["loss"].double(), own.double() / masks.numel(), rtol=1e-5, atol=0)
    right = (logits.argmax(dim=1) == masks[judged]).double().mean()
    assert float(losses["accuracy"]) == pytest.approx(float(right))


def test_micro_batches_make_the_gradient_of_the_batch() -> None:
    """However unevenly pixels are void."""
    method = segmenter().eval()
    images, masks = batch(6)
    found = []
    for sizes in ((6,), (2, 2, 2), (1, 2, 3)):
        method.zero_grad()
        parts = zip(images.split(sizes), masks.split(sizes), strict=True)
        for some, own in parts:
            loss = method(some, method.corrupt_labelled(some, own, seeded(CPU, 0)))["loss"]
            (loss * len(some) / 6).backward()
        found.append(torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-9)


def test_images_do_not_see_each_other() -> None:
    method = segmenter().train()
    images, _ = batch(3)
    torch.testing.assert_close(method.network(images)[:1], method.network(images[:1]))


def test_class_weights_are_scikit_learns() -> None:
    labels = np.repeat([0, 1, 3, 4], [40, 3, 7, 10])
    method = segmenter()
    method.weigh_pixels(torch.from_numpy(np.bincount(labels, minlength=5)))
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3, 4]), y=labels)
    assert method.class_weights is not None
    assert method.class_weights[[0, 1, 3, 4]].tolist() == pytest.approx(expected.tolist())
    assert method.class_weights[2] == 0


def test_layer_decay_reaches_every_weight() -> None:
    method = segmenter()
    scales = method.lr_scales()
    assert scales.keys() == dict(method.named_parameters()).keys()
    assert scales["network.head.weight"] == scales["network.head.bias"] == 1
    by_part = {
        part: {scale for name, scale in scales.items() if part in name}
        for part in ("blocks.1.", "blocks.0.", "patch_embed.")
    }
    assert by_part == {"blocks.1.": {0.75}, "blocks.0.": {0.75**2}, "patch_embed.": {0.75**3}}


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        *itertools.product(["vit-tiny", "timm:vit_tiny_patch16_224", "beit-tiny"], ["last", "1", "last:2"]),
        ("timm:test_convnext", "last"),  # whose blocks have maps of several sizes
    ],
)
def test_every_weight_that_is_trained_has_a_gradient(name: str, blocks: str) -> None:
    """DDP waits for each; and what follows the block that is read is not among them, nor changed."""
    own = {"vit-tiny": SMALL, "beit-tiny": SMALL, "timm:test_convnext": CONVNEXT}
    flags = (f"backbone.name={name}", *own.get(name, ("backbone.options={embed_dim=24, depth=2, num_heads=2}",)))
    given = compose(FINETUNE, assignments=["data.dataset=digits", *flags], environ={}).settings
    net = build_backbone(resolve(given).backbone, (32, 32), 0)
    section = FinetuneSection(task="segment", blocks=blocks, ema=0.5)
    fixed = {name for name, weight in net.named_parameters() if not weight.requires_grad}
    method = Segmenter(section, net, 5, 0.75)
    images = torch.rand(2, 3, 32, 32, generator=seeded(CPU, 0)) * 2 - 1
    masks = torch.randint(0, 5, (2, 32, 32), generator=seeded(CPU, 1)).to(torch.uint8)
    method.train()(images, method.corrupt_labelled(images, masks, seeded(CPU, 0)))["loss"].backward()
    trained = {name: weight.grad is not None for name, weight in method.named_parameters() if weight.requires_grad}
    assert all(trained.values()), [name for name, met in trained.items() if not met]
    assert "network.head.weight" in trained
    left_out = {name for name, weight in net.named_parameters() if not weight.requires_grad} - fixed
    assert bool(left_out) == (blocks == "1")


def test_erasing_leaves_masks_and_images_alone() -> None:
    method = segmenter(random_erasing=1.0)
    images, masks = batch(3)
    kept = images.clone()
    seen = method.corrupt_labelled(images, masks, seeded(CPU, 0))
    assert torch.equal(images, kept)
    assert not torch.equal(seen.images, kept)
    assert seen.masks is masks


def test_its_work_is_counted_without_masks() -> None:
    flop, kept = measure_work(segmenter().float())
    assert flop > 0
    assert kept > 5 * SIZE[0] * SIZE[1] * 4  # the logits of all pixels are among it


def test_it_learns_what_a_pixels_colour_says() -> None:
    torch.manual_seed(0)
    method = Segmenter(FinetuneSection(task="segment"), backbone(), 2, 1.0).train()
    blocks = torch.rand(8, 1, 4, 6, generator=seeded(CPU, 1)).round()
    images = F.interpolate(blocks, SIZE).expand(-1, 3, -1, -1) * 2 - 1
    masks = F.interpolate(blocks, SIZE)[:, 0].to(torch.uint8)
    optimizer = torch.optim.AdamW(method.parameters(), 3e-3)
    for _ in itertools.repeat(None, 60):
        losses = method(images, method.corrupt_labelled(images, masks, seeded(CPU, 0)))
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert float(losses["accuracy"]) > 0.9


def test_a_head_on_several_blocks_reads_their_tokens_side_by_side() -> None:
    method = segmenter(blocks="last:2").eval()
    images, _ = batch(2)
    found = [tokens for tokens, _ in method.network.backbone.forward_blocks(images, (1, 2))]
    normed = torch.cat([(x - x.mean(2, keepdim=True)) / (x.var(2, keepdim=True, correction=0) + 1e-5).sqrt()
                        for x in found], dim=2)  # fmt: skip
    head = method.network.head
    expected = (normed @ head.weight.T + head.bias).unflatten(1, (4, 6)).float()
    assert head.in_features == 32
    torch.testing.assert_close(method.network.patch_scores(images), expected)
    alone = segmenter(blocks="1").network
    alone.head.load_state_dict({"weight": head.weight[:, :16], "bias": head.bias})
    torch.testing.assert_close(alone.patch_scores(images), (normed[..., :16] @ head.weight[:, :16].T + head.bias)
                               .unflatten(1, (4, 6)).float())  # fmt: skip


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ("3", "there is no block 3; this encoder has blocks 1 to 2"),
        ("last:3", "last:3 of 2 blocks, which this encoder has; take last:2 or fewer"),
    ],
)
def test_blocks_that_are_not_there(blocks: str, said: str) -> None:
    with pytest.raises(SettingsError, match=f"finetune.blocks: {said}"):
        segmenter(blocks=blocks)


def test_blocks_of_another_grid_are_refused() -> None:
    settings = compose(FINETUNE, assignments=["data.dataset=digits", "backbone.name=unet"], environ={}).settings
    net = build_backbone(settings.backbone, 16, 0)
    for blocks, said in (("last:2", "cannot be put side by side"), ("2", "its grid is not that of the final features")):
        with pytest.raises(SettingsError, match=said):
            Segmenter(FinetuneSection(task="segment", blocks=blocks), net, 5, 1.0)


def test_tokens_must_be_cells_of_the_image() -> None:
    odd = backbone()
    odd.grid = (3, 6)
    with pytest.raises(SettingsError, match="no cells of the image"):
        Segmenter(FinetuneSection(task="segment"), odd, 5, 1.0)


def test_a_batch_that_is_tried_for_memory_has_a_mask() -> None:
    """On a GPU one micro-batch goes before the first step; the engine asks the task for labels of its own form."""
    method = segmenter()
    images, _ = batch(3)
    labels = method.labels_to_try(images)
    assert (labels.shape, labels.dtype) == ((3, *SIZE), torch.uint8)
    losses = method(images, method.corrupt_labelled(images, labels, seeded(CPU, 0)))
    assert losses["loss"].isfinite()
