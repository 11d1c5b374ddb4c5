"""Several views of each image out of the data layer: crops of their own, and one-view runs as they always were."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from helpers import records, settings, steps_done, train, untimed
from safetensors.torch import load_file
from torch import Tensor

from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.data.augment import augment, prepare
from dsdmae_cli.data.open import augmentation, open_dataset, open_source, place
from dsdmae_cli.data.source import Batching, Source, Unreadable, derive_seed, seeded

CPU = torch.device("cpu")


def source(folder: Path, placement: str, num_views: int, *more: str) -> Source:
    data = resolve(settings(folder, f"data.placement={placement}", "data.workers=0", *more).settings).data
    dataset = open_dataset(data, "train")
    batching = Batching(num_images=len(dataset), batch_size=8, micro_batch=4, seed=3)
    unreadable = Unreadable(len(dataset), data)
    return open_source(dataset, data, place(dataset, data, CPU), batching, CPU, unreadable, num_views=num_views)


def batches(from_: Source, steps: int = 3) -> list[Tensor]:
    return [b.images for _, step in zip(range(steps), from_.steps(1, 1), strict=False) for b in step]


@pytest.mark.parametrize("placement", ["resident", "streaming"])
@pytest.mark.parametrize("more", [("data.crop_scale=[0.08, 1]",), ("data.crop_scale=none", "data.shift=3")])
def test_the_first_view_is_that_of_a_run_with_one(digits: Path, placement: str, more: tuple[str, ...]) -> None:
    one, two = (batches(source(digits, placement, views, *more)) for views in (1, 2))
    three = batches(source(digits, placement, 3, *more))
    assert len(one) == len(two) == 6
    for single, pair, triple in zip(one, two, three, strict=True):
        assert single.shape == (4, 3, 16, 16)
        assert pair.shape == (4, 2, 3, 16, 16)
        assert torch.equal(pair[:, 0], single)
        assert torch.equal(triple[:, :2], pair)
    first, second = (torch.cat([pair[:, view] for pair in two]) for view in (0, 1))
    same = (first == second).flatten(1).all(dim=1)
    assert same.double().mean() < 0.3, "two views are one"


def test_views_are_crops_of_the_same_image(digits: Path) -> None:
    """With the only crop there is, the whole image, they are equal."""
    for placement in ("resident", "streaming"):
        whole = ("data.crop_scale=none", "data.flip=false", "data.shift=0")
        for pair in batches(source(digits, placement, 2, *whole)):
            assert torch.equal(pair[:, 0], pair[:, 1])


def test_one_view_is_drawn_as_before_there_were_several(digits: Path) -> None:
    """The seeds of docs/design/randomness.md, written out: a change here is another run for every old seed."""
    drawn = source(digits, "resident", 1, "data.crop_scale=[0.2, 1]")
    [step] = [next(iter(drawn.steps(1, 1)))]
    data = resolve(settings(digits, "data.crop_scale=[0.2, 1]").settings).data
    dataset = open_dataset(data, "train")
    order = torch.randperm(42, generator=seeded(CPU, derive_seed(3, "order", 1)))[8:16]
    number = 1 * (42 // 8) + 1
    for index, batch in enumerate(step):
        pixels = torch.stack(
            [torch.from_numpy(dataset.load(int(i)).transpose(2, 0, 1)) for i in order[4 * index :][:4]]
        )
        text = f"3:augment:{number}:{index}"
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
        assert torch.equal(batch.images, augment(pixels, augmentation(data), seeded(CPU, seed)))
        assert batch.seed == derive_seed(3, "corrupt", number, index)
        assert prepare(pixels, 16, "bicubic").shape == batch.images.shape


@pytest.mark.parametrize("method", ["mocov3", "msa"])
@pytest.mark.parametrize("placement", ["resident", "streaming"])
def test_a_run_with_two_views_resumes_bit_for_bit(method: str, placement: str, digits: Path, tmp_path: Path) -> None:
    more = ("data.crop_scale=[0.3, 1]", f"data.placement={placement}", "data.workers=0", "train.checkpoint_every=1")
    whole = train(digits, tmp_path / "whole", *more, method=method)
    assert whole["skipped_steps"] == 0
    assert steps_done(tmp_path / "whole") == 10
    assert {"loss", "contrastive", "grad_norm"} <= records(tmp_path / "whole")[0].keys()
    # Taken back to the first epoch's checkpoint, as if it had been stopped there.
    train(digits, tmp_path / "part", *more, method=method)
    for name in ("result.json", "encoder.safetensors"):
        (tmp_path / "part" / name).unlink()
    newest = sorted((tmp_path / "part" / "checkpoints").iterdir())[-1]
    for file in sorted(newest.rglob("*"), reverse=True):
        file.unlink()
    newest.rmdir()
    train(digits, tmp_path / "part", method=method, resume=True)
    assert untimed(tmp_path / "part") == untimed(tmp_path / "whole")
    encoders = [load_file(tmp_path / run / "encoder.safetensors") for run in ("whole", "part")]
    assert all(torch.equal(tensor, encoders[1][name]) for name, tensor in encoders[0].items())
