"""One picture through a denoiser: tiles in, bands out, at its own depth. recipes/denoise.py says which pictures.

No torch here: what computes is behind pictures/network.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt16

from dsdmae_cli.data.base import Refused
from dsdmae_cli.errors import CheckpointError
from dsdmae_cli.pictures.brightness import add_brightness, brightness
from dsdmae_cli.pictures.coarser import add_coarser, sizes
from dsdmae_cli.pictures.network import Network
from dsdmae_cli.pictures.noise import noise_level
from dsdmae_cli.pictures.picture import Picture, Pixels
from dsdmae_cli.pictures.tiling import Corner, Tile, blended, grids, reflected, side_of_tiles, slack_of, turn, turn_back
from dsdmae_cli.pictures.traces import WHITE, Seen, is_grey, judge

# Tiles overlap by a quarter of the network's size: less shows seams, more costs time that shifted passes spend better.
_OVERLAP = 0.25
# Times the network's size: larger tiles see fewer pixels twice, and take more memory.
_LARGEST = 4
_ROWS = 512
_COLOURED = frozenset({"RGB", "RGBA"})
Progress = Callable[[int, int], None]


class Restored(NamedTuple):
    """What came of a picture.

    Attributes:
        picture: without its noise.
        noise_level: what the network would take out, root mean square, in units of 1/255 of the full range: σ of the
            noise where it is noise that was taken.
        found: what kind of noise it is (pictures/traces.py); empty for none.
        strength: share of the network's correction that was taken, 0..1.
        network: which restored it.
    """

    picture: Picture
    noise_level: float
    found: str
    strength: float
    network: Network


@dataclass(frozen=True)
class Restorer:
    """A denoiser at work.

    Args:
        network: see pictures/network.py.
        passes: shifted and turned passes to average.
        open_white: opens another for pictures whose noise is white (pictures/traces.py), when the first of them comes.
    """

    network: Network
    passes: int = 1
    open_white: Callable[[], Network] | None = None

    def __call__(
        self,
        picture: Picture,
        strength: float | None = None,
        progress: Progress | None = None,
        *,
        white: bool | None = None,
    ) -> Restored:
        """The picture without its noise; alpha is as it was.

        Args:
            strength: 0 gives the picture back, 1 what the network says, between is a mixture; None = by the traces of
                noise in what the network would take out (pictures/traces.py).
            progress: told how much of all work is done, in thousandths.
            white: whether its noise is white, where that is known; None = as its traces say.

        Raises:
            CheckpointError: the network gives no numbers.
            Refused: other numbers than 8 and 16 bits, which pictures/depths.py makes of any.
        """
        if picture.pixels.dtype not in (np.uint8, np.uint16):
            raise Refused(f"{picture.pixels.dtype} values have no range of their own; give one, as --range LOW,HIGH")
        given = picture.pixels[..., : 3 if picture.num_colors >= 3 else 1]
        seen = Seen(given)
        white = seen.is_white if white is None else white
        network = self._white if white and self.open_white else self.network
        # Brightness is looked at alone where colours have it too, and noise is not white: known before, or found.
        alone = picture.num_colors == 3 and not white and not seen.is_grey
        first = alone and seen.bright > 0.5
        smaller = 0.0 if white else _work_of_smaller(network, picture)
        work = _Progress(progress, 1 + alone + smaller)
        # Several corrections follow each other: between them nothing is rounded to 8 bits.
        began = picture
        if first:
            began = picture.with_pixels(widened(picture.pixels))
            self._restore_brightness(network, began.pixels, work.part(1))
        result = corrected(network, began, self.passes, work.part(1), deep=alone)
        verdict = judge(given, _as_deep_as(picture.pixels, result)[..., : given.shape[2]], seen)
        strength = verdict.strength if strength is None else strength
        if strength > 0 and verdict.kind not in ("", WHITE):
            if alone and not first:
                self._restore_brightness(network, result, work.part(1))
            if smaller:
                self._look_coarser(network, picture, result, work)
        mixed = picture.with_pixels(_mixed(picture.pixels, result, strength))
        return Restored(mixed, verdict.removed, verdict.kind, strength, network)

    def _restore_brightness(self, network: Network, pixels: UInt16[np.ndarray, "h w c"], progress: Progress) -> None:
        """Take noise out of the brightness of a picture of 16 bits, in place."""
        before = brightness(pixels[..., :3])
        after = corrected(network, Picture(before, "L"), self.passes, progress)
        add_brightness(pixels[..., :3], before, after)

    def _look_coarser(self, network: Network, picture: Picture, result: Pixels, work: _Progress) -> None:
        """Mix into a result, in place, what the network says of the picture at smaller sizes."""

        def restore(small: Pixels) -> Pixels:
            part = work.part(small.shape[0] * small.shape[1] / (picture.height * picture.width))
            return corrected(network, picture.with_pixels(small), self.passes, part)

        add_coarser(picture.pixels, result, picture.num_colors, restore, _least(network))

    @cached_property
    def _white(self) -> Network:
        assert self.open_white is not None
        return self.open_white()


def corrected(
    network: Network, picture: Picture, passes: int = 1, progress: Progress | None = None, *, deep: bool = False
) -> Pixels:
    """The picture after all of the network's correction; channels of no colour as they were.

    Args:
        deep: in 16 bits, whatever it has; else rounded to its own.
    """
    progress = progress or _silent
    result = widened(picture.pixels) if deep else picture.pixels.copy()
    peak = int(np.iinfo(result.dtype).max)
    # Bands run across the shorter side, so that they stay small for panoramas and strips too.
    turned = picture.width > picture.height
    source, target = (image.transpose(1, 0, 2) if turned else image for image in (picture.pixels, result))
    height, width, _ = source.shape
    overlap = int(network.image_size * _OVERLAP)
    tile = _tile(network, height, width, overlap, passes)
    batch_size = max(1, network.batch_size * network.image_size**2 // (tile.height * tile.width))
    tiled = grids(height, width, tile, overlap, passes)
    num_tiles = sum(map(len, tiled))
    grey = picture.mode in _COLOURED and is_grey(picture.pixels)  # black and white, stored as colour
    groups = [(0,)] if grey else picture.color_groups
    for number, channels in enumerate(groups):
        color_noise = _ColorNoise(picture.pixels[..., channels]) if len(channels) == 1 else None
        work = _Work(network, source, tile, channels, turned, color_noise)
        for band in blended(height, width, tile, tiled, work.begin, batch_size):
            rows = slice(band.top, band.top + band.pixels.shape[1])
            restored = (band.pixels.transpose(1, 2, 0) + 1) * (peak / 2)
            target[rows][..., channels] = np.rint(restored).clip(0, peak).astype(result.dtype)
            progress(number * num_tiles + band.tiles, len(groups) * num_tiles)
    if grey:
        result[..., 1 : picture.num_colors] = result[..., :1]
    return result


def _tile(network: Network, height: int, width: int, overlap: int, passes: int) -> Tile:
    """Squares of the network's size, or, where it takes any, what covers the picture with the least work."""
    side, multiple = network.image_size, network.size_multiple
    if multiple is None:
        return Tile(side, side)
    slack = slack_of(overlap, passes)
    return Tile(*(side_of_tiles(n + slack, side, overlap, multiple, _LARGEST * side) for n in (height, width)))


@dataclass(frozen=True)
class _Work:
    """Some channels of a picture on their way through a network.

    Args:
        source: the picture, transposed where `turned`.
        color_noise: for a single channel.
    """

    network: Network
    source: Pixels
    tile: Tile
    channels: tuple[int, ...]
    turned: bool
    color_noise: _ColorNoise | None

    def begin(self, corners: list[Corner]) -> Callable[[], Float32[np.ndarray, "b c h w"]]:
        """Begin to restore the tiles at these corners; what is given back waits for them."""
        # Tiles that are no squares have another shape where they are laid on their side.
        upright, lying = ([n for n, c in enumerate(corners) if bool(c.way & 4) is on_side] for on_side in (False, True))
        coming = [(numbers, self._begin([corners[n] for n in numbers])) for numbers in (upright, lying) if numbers]

        def end() -> Float32[np.ndarray, "b c h w"]:
            restored = {n: image for numbers, part in coming for n, image in zip(numbers, part(), strict=True)}
            return np.stack([turn_back(restored[n], corner.way) for n, corner in enumerate(corners)])

        return end

    def _begin(self, corners: list[Corner]) -> Callable[[], Float32[np.ndarray, "b c h w"]]:
        """The same of tiles that lie one way, as the network sees them."""
        tiles = np.stack([turn(_cut(self.source, corner, self.tile, self.channels), corner.way) for corner in corners])
        peak = float(np.iinfo(tiles.dtype).max)
        # The network sees every tile the way up that the picture has.
        x = tiles.transpose((0, 3, 2, 1) if self.turned else (0, 3, 1, 2)).astype(np.float32) / np.float32(peak / 2) - 1
        if self.color_noise is not None:
            x = self.color_noise.added_to(x, corners)
        coming = self.network.begin(np.ascontiguousarray(x))

        def end() -> Float32[np.ndarray, "b c h w"]:
            restored = coming()
            if not np.isfinite(restored).all():  # it would be a black picture, and called done
                raise CheckpointError(
                    f"{self.network.origin} gives values that are not finite; its file is damaged, or it needs"
                    " --precision fp32"
                )
            if self.color_noise is not None:
                restored = restored.mean(axis=1, keepdims=True)
            return restored.transpose(0, 1, 3, 2) if self.turned else restored

        return end


def widened(pixels: Pixels) -> UInt16[np.ndarray, "h w c"]:
    """8 bits as 16, of which narrowing gives them back; a copy of what has 16."""
    return pixels.astype(np.uint16) * np.uint16(257 if pixels.dtype == np.uint8 else 1)


def _as_deep_as(given: Pixels, restored: Pixels) -> Pixels:
    """Rounded to the depth of the given one."""
    return restored if restored.dtype == given.dtype else _mixed(given, restored, 1.0)


def _mixed(given: Pixels, restored: Pixels, strength: float) -> Pixels:
    """A share of a correction, as deep as the given picture, some rows at a time; in place where that can be."""
    if strength == 1 and restored.dtype == given.dtype:
        return restored
    result = restored if restored.dtype == given.dtype else np.empty_like(given)
    scale = np.float32(np.iinfo(given.dtype).max / np.iinfo(restored.dtype).max)
    for top in range(0, len(given), _ROWS):
        rows = slice(top, top + _ROWS)
        before, after = given[rows].astype(np.float32), restored[rows].astype(np.float32) * scale
        result[rows] = np.rint(before + np.float32(strength) * (after - before)).astype(given.dtype)
    return result


def _silent(done: int, total: int) -> None:
    pass


def _work_of_smaller(network: Network, picture: Picture) -> float:
    """Pixels of all smaller pictures, as a share of this one's; none for a network that takes one size alone."""
    if network.size_multiple is None:
        return 0.0
    smaller = sizes(picture.height, picture.width, _least(network))
    return sum(height * width for height, width in smaller) / (picture.height * picture.width)


def _least(network: Network) -> int:
    """Side of the smallest pictures that are looked at: of still smaller ones a tile would see its own edges alone."""
    return network.image_size // 2


class _Progress:
    """Progress of several corrections after each other.

    Args:
        told: see Progress; None = nobody.
        whole: work of all of them, that of the first as 1.
    """

    def __init__(self, told: Progress | None, whole: float) -> None:
        self.told, self.whole, self.done = told, whole, 0.0

    def part(self, work: float) -> Progress:
        """For the next correction, of so much work."""
        before = self.done
        self.done += work
        if (told := self.told) is None:
            return _silent
        return lambda done, total: told(round(1000 * (before + work * done / total) / self.whole), 1000)


class _ColorNoise:
    """What makes grey noise look to a network for colour like the noise that it knows.

    Such a network has learned from noise that is independent in every channel, and takes the noise of three equal
    channels for something depicted (at σ = 25 it then restores half a decibel out of six). Noise of σ in brightness
    alone becomes noise of √3 σ independent in each channel by adding what is missing: √3 σ along the two directions of
    colour, whose mean over channels is zero, so that brightness stays as it is.
    """

    def __init__(self, grey: Pixels) -> None:
        self.std = np.float32(3**0.5 * noise_level(grey) / 127.5)

    def added_to(self, grey: Float32[np.ndarray, "b 1 h w"], corners: list[Corner]) -> Float32[np.ndarray, "b 3 h w"]:
        """Three channels whose mean is the grey one, but for clipping to [-1, 1].

        Drawn anew for each tile, from its place: the same whatever computes and however many tiles go at once.
        """
        height, width = grey.shape[-2:]
        side = max(height, width)  # corners may lie before the picture, by less than a tile
        draws = [np.random.default_rng((c.y + side, c.x + side, c.way)) for c in corners]
        noise = np.stack([draw.standard_normal((3, height, width), np.float32) for draw in draws])
        return np.clip(grey + self.std * (noise - noise.mean(axis=1, keepdims=True)), -1, 1)


def _cut(source: Pixels, corner: Corner, tile: Tile, channels: tuple[int, ...]) -> Pixels:
    """A tile [h, w, c], mirrored where it reaches over the picture's edge."""
    height, width, _ = source.shape
    if 0 <= corner.y <= height - tile.height and 0 <= corner.x <= width - tile.width:
        return source[corner.y : corner.y + tile.height, corner.x : corner.x + tile.width, channels]
    rows, columns = reflected(corner.y, tile.height, height), reflected(corner.x, tile.width, width)
    return source[rows[:, None], columns[None, :]][..., channels]
