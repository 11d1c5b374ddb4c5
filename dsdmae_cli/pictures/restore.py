"""One picture through a denoiser: tiles in, bands out, at its own depth. recipes/denoise.py says which pictures.

No torch here: what computes is behind pictures/network.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from dsdmae_cli.data.base import Refused
from dsdmae_cli.errors import CheckpointError
from dsdmae_cli.pictures.halving import add_enlarged, halved
from dsdmae_cli.pictures.network import Network
from dsdmae_cli.pictures.noise import noise_level
from dsdmae_cli.pictures.picture import Picture, Pixels
from dsdmae_cli.pictures.tiling import Corner, blended, grids, reflected, turn, turn_back
from dsdmae_cli.pictures.traces import judge

# Tiles overlap by a quarter of their side: less shows seams, more costs time that shifted passes spend better.
_OVERLAP = 0.25
_ROWS = 512
# Of what the network finds in the restored picture at half its size, this much goes too where noise is coarse. On 20
# real pairs 0.3 gained 0.09 dB, 0.45 to 0.6 gained 0.15, 1 gained 0.06.
_COARSE_SHARE, _SMALLEST_HALVED = 0.5, 64
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
    """A denoiser at work.

    Args:
        network: see pictures/network.py.
        passes: shifted and turned passes to average.
    """

    network: Network
    passes: int = 1

    def __call__(self, picture: Picture, strength: float | None = None, progress: Progress | None = None) -> Restored:
        """The picture without its noise; alpha is as it was.

        Args:
            strength: 0 gives the picture back, 1 what the network says, between is a mixture; None = by the traces of
                noise in what the network would take out (pictures/traces.py).
            progress: told the number of tiles done and of all tiles.

        Raises:
            CheckpointError: the network gives no numbers.
            Refused: other numbers than 8 and 16 bits, which pictures/depths.py makes of any.
        """
        if picture.pixels.dtype not in (np.uint8, np.uint16):
            raise Refused(f"{picture.pixels.dtype} values have no range of their own; give one, as --range LOW,HIGH")
        result = self._restored(picture, progress or _silent)
        colors = slice(3 if picture.num_colors >= 3 else 1)
        verdict = judge(picture.pixels[..., colors], result[..., colors])
        strength = verdict.strength if strength is None else strength
        if strength > 0 and verdict.coarse > 0:
            self._take_coarse(picture, result, _COARSE_SHARE * verdict.coarse)
        _mix(picture.pixels, result, strength)
        return Restored(picture.with_pixels(result), verdict.removed, verdict.kind, strength)

    def _take_coarse(self, picture: Picture, result: Pixels, share: float) -> None:
        """Take a share of what the network finds in the result at half its size out of the result, in place.

        A camera leaves noise in blotches, which a network that restores detail hardly dares to touch; at half the size
        they are as fine as the noise that it knows (several scales, as Lebrun et al. 2015, "The Noise Clinic").
        """
        if min(picture.height, picture.width) < _SMALLEST_HALVED:
            return
        before = halved(result)
        after = self._restored(picture.with_pixels(before), _silent)
        scale = share * picture.peak / np.iinfo(before.dtype).max
        colors = slice(picture.num_colors)
        add_enlarged(result[..., colors], before[..., colors], after[..., colors], scale)

    def _restored(self, picture: Picture, progress: Progress) -> Pixels:
        """All of the network's correction, rounded to the picture's depth."""
        result = picture.pixels.copy()
        # Bands run across the shorter side, so that they stay small for panoramas and strips too.
        turned = picture.width > picture.height
        source, target = (image.transpose(1, 0, 2) if turned else image for image in (picture.pixels, result))
        height, width, _ = source.shape
        side = self.network.image_size
        passes = grids(height, width, side, int(side * _OVERLAP), self.passes)
        num_tiles = sum(map(len, passes))
        grey = _is_grey(picture)
        groups = [(0,)] if grey else picture.color_groups
        for number, channels in enumerate(groups):
            color_noise = _ColorNoise(picture.pixels[..., channels]) if len(channels) == 1 else None

            def predict(
                corners: list[Corner], channels: tuple[int, ...] = channels, noise: _ColorNoise | None = color_noise
            ) -> Float32[np.ndarray, "b c s s"]:
                tiles = [turn(_cut(source, corner, side, channels), corner.way) for corner in corners]
                restored = self._predict(np.stack(tiles), corners, turned, noise)
                return np.stack([turn_back(x, c.way) for x, c in zip(restored, corners, strict=True)])

            for band in blended(height, width, side, passes, predict, self.network.batch_size):
                rows = slice(band.top, band.top + band.pixels.shape[1])
                restored = (band.pixels.transpose(1, 2, 0) + 1) * (picture.peak / 2)
                target[rows][..., channels] = np.rint(restored).clip(0, picture.peak).astype(result.dtype)
                progress(number * num_tiles + band.tiles, len(groups) * num_tiles)
        if grey:
            result[..., 1 : picture.num_colors] = result[..., :1]
        return result

    def _predict(
        self, tiles: Pixels, corners: list[Corner], turned: bool, color_noise: _ColorNoise | None
    ) -> Float32[np.ndarray, "b c s s"]:
        """What the network makes of tiles [b, s, s, c] at these corners."""
        peak = float(np.iinfo(tiles.dtype).max)
        # The network sees every tile the way up that the picture has.
        x = tiles.transpose((0, 3, 2, 1) if turned else (0, 3, 1, 2)).astype(np.float32) / np.float32(peak / 2) - 1
        if color_noise is not None:
            x = color_noise.added_to(x, corners)
        restored = self.network.predict(np.ascontiguousarray(x))
        if not np.isfinite(restored).all():  # it would be a black picture, and called done
            raise CheckpointError(
                f"{self.network.origin} gives values that are not finite; its file is damaged, or it needs --precision"
                " fp32"
            )
        if color_noise is not None:
            restored = restored.mean(axis=1, keepdims=True)
        return restored.transpose(0, 1, 3, 2) if turned else restored


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

    def __init__(self, grey: Pixels) -> None:
        self.std = np.float32(3**0.5 * noise_level(grey) / 127.5)

    def added_to(self, grey: Float32[np.ndarray, "b 1 s s"], corners: list[Corner]) -> Float32[np.ndarray, "b 3 s s"]:
        """Three channels whose mean is the grey one, but for clipping to [-1, 1].

        Drawn anew for each tile, from its place: the same whatever computes and however many tiles go at once.
        """
        side = grey.shape[-1]
        draws = [np.random.default_rng((c.y + side, c.x + side, c.way)) for c in corners]
        noise = np.stack([draw.standard_normal((3, side, side), np.float32) for draw in draws])
        return np.clip(grey + self.std * (noise - noise.mean(axis=1, keepdims=True)), -1, 1)


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
