"""One picture through a denoiser: tiles in, bands out, at its own depth. recipes/denoise.py says which pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dsdmae_cli import corruption as C
from dsdmae_cli.artifacts.denoiser import Denoiser, load_denoiser
from dsdmae_cli.data.source import derive_seed, seeded
from dsdmae_cli.pictures.noise import noise_level
from dsdmae_cli.pictures.picture import Picture, Pixels
from dsdmae_cli.pictures.tiling import Corner, blended, grids, reflected, turn, turn_back
from dsdmae_cli.pictures.traces import judge
from dsdmae_cli.runtime import (
    Runtime,
    autocast,
    choose_attention,
    choose_device,
    choose_micro_batch,
    choose_precision,
)

# Tiles overlap by a quarter of their side: less shows seams, more costs time that shifted passes spend better.
_OVERLAP = 0.25
_GPU_TILES = 256
_ROWS = 512
Progress = Callable[[int, int], None]


class Restored(NamedTuple):
    """What came of a picture.

    Attributes:
        picture: without its noise.
        noise_level: what the network would take out, root mean square, in units of 1/255 of the full range: σ of the
            noise where it is noise that was taken.
        found: what kind of noise it is (pictures/traces.py); empty for none.
        strength: share of the network's correction that was taken, 0..1.
    """

    picture: Picture
    noise_level: float
    found: str
    strength: float


@dataclass(frozen=True)
class Restorer:
    """A denoiser at work on a device; `open_restorer` makes one.

    Args:
        denoiser: its network is moved to the device.
        precision: bf16, fp16 or fp32; of the network alone, pictures are put together in float32.
        passes: shifted and turned passes to average.
    """

    denoiser: Denoiser
    device: torch.device
    precision: str
    passes: int = 1

    def __post_init__(self) -> None:
        network = self.denoiser.network.to(self.device)
        choose_attention(network, Runtime(self.device, self.precision, compile=False, micro_batch=self.batch_size))

    @property
    def batch_size(self) -> int:
        """Tiles that go through the network at once."""
        encoder = self.denoiser.network.encoder()
        return choose_micro_batch("auto", _GPU_TILES, encoder.num_tokens, encoder.width, self.device)

    def __call__(self, picture: Picture, strength: float | None = None, progress: Progress | None = None) -> Restored:
        """The picture without its noise; alpha is as it was.

        Args:
            strength: 0 gives the picture back, 1 what the network says, between is a mixture; None = by the traces of
                noise in what the network would take out (pictures/traces.py).
            progress: told the number of tiles done and of all tiles.
        """
        result = self._restored(picture, progress or _silent)
        colors = slice(3 if picture.num_colors >= 3 else 1)
        verdict = judge(picture.pixels[..., colors], result[..., colors])
        strength = verdict.strength if strength is None else strength
        _mix(picture.pixels, result, strength)
        return Restored(picture.with_pixels(result), verdict.removed, verdict.kind, strength)

    @torch.inference_mode()
    def _restored(self, picture: Picture, progress: Progress) -> Pixels:
        """All of the network's correction, rounded to the picture's depth."""
        result = picture.pixels.copy()
        # Bands run across the shorter side, so that they stay small for panoramas and strips too.
        turned = picture.width > picture.height
        source, target = (image.transpose(1, 0, 2) if turned else image for image in (picture.pixels, result))
        height, width, _ = source.shape
        side = self.denoiser.image_size
        passes = grids(height, width, side, int(side * _OVERLAP), self.passes)
        num_tiles = sum(map(len, passes))
        grey = _is_grey(picture)
        groups = [(0,)] if grey else picture.color_groups
        for number, channels in enumerate(groups):
            color_noise = _ColorNoise(picture.pixels[..., channels], self.device) if len(channels) == 1 else None

            def predict(
                corners: list[Corner], channels: tuple[int, ...] = channels, noise: _ColorNoise | None = color_noise
            ) -> Float[Tensor, "b c s s"]:
                tiles = [turn(_cut(source, corner, side, channels), corner.way) for corner in corners]
                restored = self._predict(np.stack(tiles), turned, noise)
                return torch.stack([turn_back(x, c.way) for x, c in zip(restored, corners, strict=True)])

            for band in blended(height, width, side, passes, predict, self.batch_size):
                rows = slice(band.top, band.top + band.pixels.shape[1])
                restored = (band.pixels.permute(1, 2, 0).numpy() + 1) * (picture.peak / 2)
                target[rows][..., channels] = np.rint(restored).clip(0, picture.peak).astype(result.dtype)
                progress(number * num_tiles + band.tiles, len(groups) * num_tiles)
        if grey:
            result[..., 1 : picture.num_colors] = result[..., :1]
        return result

    def _predict(self, tiles: Pixels, turned: bool, color_noise: _ColorNoise | None) -> Float[Tensor, "b c s s"]:
        """What the network makes of tiles [b, s, s, c]."""
        peak = float(np.iinfo(tiles.dtype).max)
        # The network sees every tile the way up that the picture has.
        x = torch.from_numpy(tiles).to(self.device).permute((0, 3, 2, 1) if turned else (0, 3, 1, 2))
        x = x.to(torch.float32) / (peak / 2) - 1
        if color_noise is not None:
            x = color_noise.added_to(x)
        with autocast(self.device, self.precision):
            restored = self.denoiser(x.contiguous())
        if color_noise is not None:
            restored = restored.mean(dim=1, keepdim=True)
        return restored.transpose(2, 3).cpu() if turned else restored.cpu()


def open_restorer(
    run: Path | None = None,
    weights: Path | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    passes: int = 1,
) -> Restorer:
    """The denoiser of a run, of a file, or by default the one that is packaged, at work on a device.

    Args:
        device, precision: as in the settings of a training; "auto" = what the machine has and what is fast there.
        passes: shifted and turned passes to average.

    Raises:
        CheckpointError: there is no denoiser, it is damaged, or does not fit its own settings.
        SettingsError: there is no such device, or the method restores no pixels.
    """
    where = choose_device(device)
    return Restorer(load_denoiser(run, weights), where, choose_precision(precision, where), passes)


def _mix(given: Pixels, restored: Pixels, strength: float) -> None:
    """Take only a share of a correction, in place, some rows at a time."""
    if strength == 1:
        return
    for top in range(0, len(given), _ROWS):
        rows = slice(top, top + _ROWS)
        before, after = given[rows].astype(np.float32), restored[rows].astype(np.float32)
        restored[rows] = np.rint(before + strength * (after - before)).astype(restored.dtype)


def _silent(done: int, total: int) -> None:
    pass


class _ColorNoise:
    """What makes grey noise look to a network for colour like the noise that it knows.

    Such a network has learned from noise that is independent in every channel, and takes the noise of three equal
    channels for something depicted (at σ = 25 it then restores half a decibel out of six). Noise of σ in brightness
    alone becomes noise of √3 σ independent in each channel by adding what is missing: √3 σ along the two directions of
    colour, whose mean over channels is zero, so that brightness stays as it is.
    """

    def __init__(self, grey: Pixels, device: torch.device) -> None:
        self.std = 3**0.5 * noise_level(grey) / 127.5
        self.generator = seeded(device, 0)

    def added_to(self, grey: Float[Tensor, "b 1 s s"]) -> Float[Tensor, "b 3 s s"]:
        """Three channels whose mean is the grey one, but for clipping to [-1, 1]."""
        size = (grey.shape[0], 3, *grey.shape[2:])
        noise = torch.randn(size, generator=self.generator, device=grey.device)
        return (grey + self.std * (noise - noise.mean(dim=1, keepdim=True))).clamp(-1, 1)


def _is_grey(picture: Picture) -> bool:
    """Whether three channels of colour are one and the same: black and white, stored as colour."""
    if picture.mode not in {"RGB", "RGBA"}:
        return False
    first, *others = (picture.pixels[..., channel] for channel in range(3))
    return all(np.array_equal(first, other) for other in others)


def _cut(source: Pixels, corner: Corner, side: int, channels: tuple[int, ...]) -> Pixels:
    """A tile [s, s, c], mirrored where it reaches over the picture's edge."""
    height, width, _ = source.shape
    if 0 <= corner.y <= height - side and 0 <= corner.x <= width - side:
        return source[corner.y : corner.y + side, corner.x : corner.x + side, channels]
    rows, columns = reflected(corner.y, side, height), reflected(corner.x, side, width)
    return source[rows[:, None], columns[None, :]][..., channels]


@dataclass(frozen=True)
class Corruption:
    """The paper's noise: Gaussian, of this σ for pixels in [-1, 1], on a share of the patches."""

    ratio: float
    std: float
    seed: int


_CORRUPTED_ROWS = 64


def corrupted(picture: Picture, how: Corruption, patch: tuple[int, int]) -> Picture:
    """The picture with noise on `ratio` of its patches, rounded and clipped as a file must be; alpha is as it was."""
    generator = seeded(torch.device("cpu"), derive_seed(how.seed, "corrupt"))
    rows, columns = -(-picture.height // patch[0]), -(-picture.width // patch[1])
    count = C.num_masked(how.ratio, rows * columns, generator)
    ids, _ = C.random_ids(1, rows * columns, count, generator)
    noisy = C.ids_to_mask(ids, rows * columns).reshape(1, rows, columns)
    result, half = picture.pixels.copy(), picture.peak / 2
    for row in range(0, rows, _CORRUPTED_ROWS):
        mask = noisy[:, row : row + _CORRUPTED_ROWS]
        spread = C.mask_to_pixels(mask.flatten(1), patch, (mask.shape[1], columns))
        band = result[row * patch[0] : (row + _CORRUPTED_ROWS) * patch[0], :, : picture.num_colors]
        x = torch.from_numpy(band.astype(np.float32)).permute(2, 0, 1).unsqueeze(0) / half - 1
        x = C.add_noise(x, spread[..., : x.shape[2], : x.shape[3]], how.std, "add", generator)
        values = ((x[0].permute(1, 2, 0) + 1) * half).round().clamp(0, picture.peak)
        band[...] = values.numpy().astype(result.dtype)
    return picture.with_pixels(result)
