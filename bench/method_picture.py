"""A picture of what a method is given and what it predicts, from a run: the rows of Method.show, the images below.

    python bench/method_picture.py RUN PICTURE.png [--columns 8]

Held-out images of the run's dataset, its newest checkpoint. docs/methods/ has one for each method.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

from dsdmae_cli import checkpoint
from dsdmae_cli.config.compose import from_tables
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.config.sources import read_toml
from dsdmae_cli.data.augment import prepare
from dsdmae_cli.data.open import choose, open_dataset
from dsdmae_cli.data.resident import to_tensor
from dsdmae_cli.data.source import Unreadable, seeded
from dsdmae_cli.data.square import decode_square
from dsdmae_cli.figures.sheet import sheet
from dsdmae_cli.runs.build import build_method
from dsdmae_cli.runs.rundir import REQUIRED

TILE = 128


def tile(image: torch.Tensor) -> Image.Image:
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.BOX)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--columns", type=int, default=8)
    arguments = parser.parse_args()

    settings = resolve(from_tables(read_toml(arguments.run / "settings.toml"), "settings.toml").settings)
    method = build_method(settings, arguments.run / REQUIRED)
    saved, _ = checkpoint.load_newest_weights(arguments.run / "checkpoints")
    assert saved is not None, f"{arguments.run} has no checkpoint"
    checkpoint.load_into(method, saved.model, str(arguments.run))
    size = settings.data.image_size
    assert isinstance(size, int)
    dataset = open_dataset(settings.data, "test")
    shown = choose(len(dataset), arguments.columns, 0, "pictures")
    pixels, _ = decode_square(dataset, shown, size, Unreadable(len(dataset), settings.data))
    images = prepare(to_tensor(pixels, torch.device("cpu")), size, "bicubic")
    batch = method.as_views(images)
    rows = method.eval().show(batch, method.corrupt(batch, seeded(images.device, 0)))
    page = sheet([(name, [tile(image) for image in row]) for name, row in {**rows, "image": images}.items()])
    page.quantize(128, dither=Image.Dither.NONE).save(arguments.picture, optimize=True)


if __name__ == "__main__":
    main()
