"""The plugins as dsdmae will use them. The package has to be installed: pip install -e '.[test]'."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dsdmae_cli.errors import DataError, SettingsError
from dsdmae_cli.plugins import Kind, find, load
from dsdmae_cli.settings.models import DataSettings
from dsdmae_cli.testing import check_probe
from PIL import Image
from torch import Generator, Tensor

from dsdmae_example.colour import LUMA, Colour, Greyed
from dsdmae_example.gratings import Gratings
from dsdmae_example.mixer import Mixer


def backbone(patch_size: int = 8, image_size: int = 32) -> Mixer:
    torch.manual_seed(0)
    spec = find("backbone", "example-mixer").spec
    made: Mixer = load(spec.build)(spec.settings(patch_size=patch_size, width=32, depth=2), image_size)
    return made


def gratings(split: str = "train") -> Gratings:
    spec = find("dataset", "example-gratings").spec
    made: Gratings = load(spec.build)(spec.settings(num_images=40), split)
    return made


def method(**settings: Any) -> Colour:
    spec = find("method", "example-colour").spec
    made: Colour = load(spec.build)(spec.settings(**settings), backbone())
    return made


def images() -> Tensor:
    """Eight real images as dsdmae hands them over: [b, 3, s, s] in [-1, 1]."""
    made = gratings()
    return torch.from_numpy(np.stack([made.load(i) for i in range(8)])).permute(0, 3, 1, 2) / 127.5 - 1


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("backbone", "example-mixer"),
        ("dataset", "example-gratings"),
        ("dataset", "example-table:PATH"),
        ("method", "example-colour"),
        ("probe", "example-ridge"),
    ],
)
def test_dsdmae_finds_them(kind: Kind, name: str) -> None:
    assert find(kind, name).distribution == "dsdmae-example"


def test_the_specs_are_read_without_torch() -> None:
    code = "import sys, dsdmae_example.specs, dsdmae_example.ridge; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_probe_keeps_what_every_probe_promises() -> None:
    check_probe("example-ridge")


@pytest.mark.parametrize(("image_size", "patch_size"), [(32, 8), (32, 2), (96, 16)])
def test_the_mixer_makes_a_grid(image_size: int, patch_size: int) -> None:
    net, side = backbone(patch_size, image_size), image_size // patch_size
    assert net.grid == (side, side)
    assert net(torch.randn(2, 3, image_size, image_size)).shape == (2, side * side, 32)


def test_gradients_reach_all_of_the_mixer() -> None:
    net = backbone()
    tokens = net(images())
    (tokens * torch.randn_like(tokens)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_the_mixer_refuses_patches_that_do_not_cover_the_image() -> None:
    with pytest.raises(SettingsError, match=r"backbone\.patch_size = 5"):
        backbone(patch_size=5)


def test_gratings_are_what_they_say() -> None:
    train, test = gratings("train"), gratings("test")
    assert (len(train), len(test)) == (40, 8)
    assert np.bincount(train.labels).tolist() == [10] * 4
    assert np.array_equal(train.load(7), gratings().load(7))
    assert not np.array_equal(train.load(7), test.load(7))
    # A wave along the columns (0 degrees) does not change from row to row, and the other way round.
    assert (train.load(0) == train.load(0)[:1]).all()
    assert (train.load(2) == train.load(2)[:, :1]).all()


def test_a_table_says_what_files_show(tmp_path: Path) -> None:
    for index, kind in enumerate(("leaf", "bark", "leaf")):
        Image.fromarray(gratings().load(index)).save(tmp_path / f"{index}.png")
        with (tmp_path / "train.csv").open("a") as table:
            table.write(f"{index}.png,{kind}\n" if index else f"file,class\n{index}.png,{kind}\n")
    make, chosen = (
        load(find("dataset", "example-table:x").spec.build),
        DataSettings(dataset=f"example-table:{tmp_path}"),
    )
    dataset = make(chosen, "train")
    assert dataset.classes == ("bark", "leaf")
    assert dataset.labels.tolist() == [1, 0, 1]
    assert np.array_equal(dataset.load(2), gratings().load(2))
    assert dataset.size(2) == (32, 32)
    with pytest.raises(DataError, match=r"test\.csv must be a table"):
        make(chosen, "test")


def test_only_masked_patches_turn_grey() -> None:
    mask = torch.zeros(8, 16, dtype=torch.bool)
    mask[:, 0] = True
    shown = method().restore(images(), Greyed(mask))
    grey, colour = shown.corrupted[:, :, :8, :8], images()[:, :, :8, :8]
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert torch.allclose(grey[:, 0], torch.einsum("bchw,c->bhw", colour, torch.tensor(LUMA)), atol=1e-6)
    assert torch.equal(shown.corrupted[:, :, 8:], images()[:, :, 8:])
    assert torch.equal(shown.restored[:, :, 8:], images()[:, :, 8:])


def test_all_randomness_comes_from_the_generator() -> None:
    task = method(mask_ratio=0.5)
    first, same, other = (task.corrupt(images(), seeded(seed)).mask for seed in (0, 0, 1))
    assert first.sum(dim=1).tolist() == [8] * 8
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_the_loss_falls(loss: str) -> None:
    task = method(loss=loss)
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    losses = []
    for step in range(30):
        value = task(images(), task.corrupt(images(), seeded(step)))["loss"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None for p in task.encoder().parameters())
