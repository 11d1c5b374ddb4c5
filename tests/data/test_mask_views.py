"""Masks as a run learns from them: wherever an image is cut, scaled, flipped or moved, its mask is too."""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import masked_folder
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from dsdmae_cli.config.compose import compose
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.config.schema import FINETUNE
from dsdmae_cli.data.augment import Augmentation, augment, augment_with_masks, crop_boxes
from dsdmae_cli.data.cutting import crop_box
from dsdmae_cli.data.mask_views import MaskedSubset, mask_crop, mask_square, mask_squares, pixels_by_class
from dsdmae_cli.data.masks import VOID, MaskedFiles, MaskedImages
from dsdmae_cli.data.open import open_dataset, open_source, place
from dsdmae_cli.data.source import Batching, MicroBatch, Unreadable, seeded
from dsdmae_cli.data.square import to_square
from dsdmae_cli.errors import DataError

CPU = torch.device("cpu")
PLAIN = Augmentation((24, 32), None, (0.75, 4 / 3), "bilinear", False, 0)
MOVED = Augmentation((24, 32), None, (0.75, 4 / 3), "bilinear", True, 3)
CROPPED = Augmentation((24, 32), (0.2, 0.9), (0.75, 4 / 3), "bilinear", False, 0)


def masks_of(count: int, height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (count, height, width), dtype=torch.uint8, generator=seeded(CPU, 0))


@pytest.mark.parametrize("plan", [PLAIN, MOVED])
def test_what_is_only_moved_is_moved_alike(plan: Augmentation) -> None:
    masks = masks_of(16, 24, 32)
    images, seen = augment_with_masks(masks.unsqueeze(1).expand(-1, 3, -1, -1), masks, plan, seeded(CPU, 1))
    assert torch.equal(((images[:, 0] + 1) * 127.5).round().to(torch.uint8), seen)
    assert torch.equal(seen, masks) == (plan is PLAIN)


@pytest.mark.parametrize("plan", [PLAIN, MOVED, CROPPED])
def test_images_are_what_they_are_without_masks(plan: Augmentation) -> None:
    images = masks_of(6, 40, 30).unsqueeze(1).expand(-1, 3, -1, -1)
    with_masks, _ = augment_with_masks(images, images[:, 0], plan, seeded(CPU, 2))
    assert torch.equal(with_masks, augment(images, plan, seeded(CPU, 2)))


def test_a_crop_of_a_mask_is_torchvisions_nearest() -> None:
    masks = masks_of(12, 45, 60)
    _, seen = augment_with_masks(masks.unsqueeze(1).expand(-1, 3, -1, -1), masks, CROPPED, seeded(CPU, 3))
    assert CROPPED.crop_scale is not None
    boxes = crop_boxes(12, 45, 60, CROPPED.crop_scale, CROPPED.ratios, seeded(CPU, 3))
    for mask, mine, corner, sides in zip(masks, seen, boxes.corner.T.tolist(), boxes.sides.T.tolist(), strict=True):
        expected = tvf.resized_crop(mask[None], *corner, *sides, [24, 32], InterpolationMode.NEAREST_EXACT)[0]
        # Floating-point numbers put a middle that lies on the border of two pixels into either.
        assert (mine == expected).float().mean() > 0.97
        if sides[0] % 24 and sides[1] % 32:
            assert (mine == expected).float().mean() > 0.99


def test_masks_stay_on_their_images_when_cropped_and_flipped() -> None:
    """Classes are flat colours: where image and mask disagree is the border between them alone."""
    blocks = torch.arange(6, dtype=torch.uint8).view(2, 3).repeat_interleave(30, 0).repeat_interleave(30, 1)
    masks = blocks.expand(32, -1, -1).contiguous()
    plan = Augmentation((48, 64), (0.3, 1.0), (0.75, 4 / 3), "bilinear", True, 2)
    images, seen = augment_with_masks((masks * 40).unsqueeze(1).expand(-1, 3, -1, -1), masks, plan, seeded(CPU, 4))
    named = ((images[:, 0] + 1) * 127.5 / 40).round()
    assert (named == seen).float().mean() > 0.98
    assert len({seen[i].numpy().tobytes() for i in range(32)}) == 32


@pytest.mark.parametrize("size", [16, (24, 32), (32, 24)])
def test_a_square_of_a_mask_lies_on_that_of_its_image(size: int | tuple[int, int]) -> None:
    blocks = np.arange(6, dtype=np.uint8).reshape(2, 3).repeat(30, 0).repeat(40, 1)
    image = np.repeat(blocks[..., None] * np.uint8(40), 3, axis=2)
    named = np.rint(to_square(image, size)[..., 0] / 40)
    assert np.mean(named == mask_square(blocks, size)) > 0.93


@pytest.mark.parametrize(
    "plan", [CROPPED, PLAIN, Augmentation((24, 32), None, (1, 1), "bilinear", False, 0, crop_from=40)]
)
def test_workers_cut_masks_by_the_draws_of_their_images(plan: Augmentation) -> None:
    mask = masks_of(1, 45, 60)[0].numpy()
    found = mask_crop(mask, plan, seeded(CPU, 5))
    assert found.shape == (24, 32)
    if plan.crop_scale is None:
        whole = mask_square(mask, plan.crop_from or plan.image_size)
        windows = np.lib.stride_tricks.sliding_window_view(whole, (24, 32))
        assert (windows == found.numpy()).all(axis=(2, 3)).any()
        return
    box = crop_box(45, 60, plan.crop_scale, plan.ratios, seeded(CPU, 5))
    expected = tvf.resized_crop(torch.from_numpy(mask)[None], *box, [24, 32], InterpolationMode.NEAREST_EXACT)[0]
    assert (found == expected).float().mean() > 0.97


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return masked_folder(tmp_path_factory.mktemp("masked") / "digits", train=12, test=4)


def batches(folder: Path, *assignments: str) -> tuple[MaskedImages, list[MicroBatch]]:
    chosen = (f"data.dataset=folder:{folder}", "data.image_size=24,32", "finetune.task=segment", *assignments)
    data = resolve(compose(FINETUNE, assignments=chosen, environ={}).settings).data
    dataset = open_dataset(data, "train")
    assert isinstance(dataset, MaskedImages)
    where = place(dataset, data, CPU, masked=True)
    unreadable = Unreadable(len(dataset), data)
    source = open_source(dataset, data, where, Batching(12, 4, 2, 0), CPU, unreadable, masked=dataset)
    found = [batch for step in source.steps(0) for batch in step]
    source.close()
    return dataset, found


@pytest.mark.parametrize("placement", ["resident", "streaming"])
def test_batches_carry_masks_that_lie_on_their_images(placement: str, folder: Path) -> None:
    _, found = batches(folder, f"data.placement={placement}", "data.workers=0")
    assert len(found) == 6
    for batch in found:
        assert batch.labels is not None
        assert (batch.labels.dtype, tuple(batch.labels.shape)) == (torch.uint8, (2, 24, 32))
        grey = (batch.images[:, 0] + 1) * 127.5
        named = torch.bucketize(grey, torch.tensor([60.0, 160.0]), right=True)
        judged = batch.labels != VOID
        assert (named == batch.labels)[judged].float().mean() > 0.85  # borders are resampled


@pytest.mark.parametrize("placement", ["resident", "streaming"])
def test_a_mask_is_read_once_each_time_that_it_is_used(
    placement: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    opened = MaskedFiles._open

    def counted(self: MaskedFiles, index: int) -> Image.Image:
        reads.append(index)
        return opened(self, index)

    monkeypatch.setattr(MaskedFiles, "_open", counted)
    batches(folder, f"data.placement={placement}", "data.workers=0")
    assert sorted(reads) == list(range(12))


def test_a_mask_of_another_size_is_refused_when_it_is_used(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    mask = next((other / "masks" / "train").glob("*.png"))
    Image.fromarray(np.zeros((24, 30), np.uint8)).save(mask)
    with pytest.raises(DataError, match=f"the mask {mask} has 30x24 px and its image 32x24"):
        batches(other, "data.placement=resident")


def test_pixels_are_counted_by_class(folder: Path) -> None:
    dataset, _ = batches(folder)
    counts = np.bincount(np.concatenate([dataset.load_mask(i).ravel() for i in range(12)]), minlength=256)
    assert pixels_by_class(dataset).tolist() == counts[:3].tolist()
    assert counts[VOID] == 12 * 55


def test_a_part_has_the_masks_of_its_images(folder: Path) -> None:
    dataset, _ = batches(folder)
    part = MaskedSubset(MaskedSubset(dataset, np.array([1, 4, 7])), np.array([2, 0]))
    assert np.array_equal(part.load_mask(0), dataset.load_mask(7))
    assert (part.mask_name(1), part.mask_size(1)) == (dataset.mask_name(1), (32, 24))
    assert part.identity() != MaskedSubset(dataset, np.array([7, 4])).identity()
    assert torch.equal(
        mask_squares(part, [0, 1], 12, CPU, print)[1], torch.from_numpy(mask_square(dataset.load_mask(1), 12))
    )


def test_masks_of_nothing_but_void_teach_nothing(folder: Path) -> None:
    dataset, _ = batches(folder)

    class Void(MaskedSubset):
        def load_mask(self, index: int) -> np.ndarray:
            return np.full((24, 32), VOID, np.uint8)

    with pytest.raises(DataError, match="every pixel of the training masks is void"):
        pixels_by_class(Void(dataset, np.arange(3)))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_masks_of_few_bits_are_their_values(tmp_path: Path, bits: int) -> None:
    """Pillow spreads those of 2 and 4 bits over 0 to 255: class 3 of 2 bits was void."""
    classes = min(2**bits, 20)
    values = (np.arange(16 * 16).reshape(16, 16) % classes).astype(np.uint8)
    rows = b"".join(b"\0" + np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :]).tobytes() for row in values)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 16, 16, bits, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for number in range(2):
            (tmp_path / kind / f"{number}.png").write_bytes(png)
    (tmp_path / "classes.txt").write_text("".join(f"kind {k}\n" for k in range(classes)))
    dataset = open_dataset(
        compose(FINETUNE, assignments=[f"data.dataset=folder:{tmp_path}"], environ={}).settings.data, "train"
    )
    assert isinstance(dataset, MaskedFiles)
    np.testing.assert_array_equal(dataset.load_mask(0), values)
