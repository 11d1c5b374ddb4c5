"""Is what a denoiser took out noise? Judged from the picture and from what was taken. No torch here.

A network that knows camera noise takes the finest texture of a clean picture for some of it, and no filter tells the
two apart by strength alone: the noise of a good camera at ISO 1600 is as strong as film grain. They differ in kind.

- White noise is independent in every colour, texture is much the same in all: the finest detail of the difference
  between two colours, where it is calm, is noise (docs/denoise.md has what it is on pictures of all kinds).
- JPEG has a grid of 8 pixels, so what a network takes out of it changes more at every eighth row and column.
- A camera smooths its noise, so that neighbours of what is taken out are alike. Of texture the network takes the
  finest only, where neighbours differ.
- Noise that was strong before JPEG took its colour is more than any texture even in the calmest blocks.
- Of fine noise half is left where 2x2 pixels become one, of texture more. Where colours show none, it is brightness's.

Each is a witness that says a strength; the boldest is believed. docs/log.md has the figures behind the bounds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, reduce

import numpy as np
from jaxtyping import Float32, UInt8, UInt16

from dsdmae_cli.pictures.brightness import brightness
from dsdmae_cli.pictures.halving import halved
from dsdmae_cli.pictures.noise import color_noise_level, noise_level, rows_of

Pixels = UInt8[np.ndarray, "h w c"] | UInt16[np.ndarray, "h w c"]

WHITE, COMPRESSED, STRONG, BRIGHT = "white noise", "camera noise or JPEG", "strong noise", "noise in brightness"
# σ of white noise at which the network's own error is as large: half of its correction is taken (of 255).
_WHITE_HALF = 3.0
# The same for grey pictures, which have no colours to compare.
_GREY_HALF = 4.0
# Where a witness begins to speak and where it is sure: below the first nothing is taken, above the second all.
_GRID, _ALIKE, _CALM = (1.4, 1.9), (0.25, 0.4), (4.5, 7.0)
# Halved, a picture has half of its white noise left; from this σ on (of 255), and up to this share, noise is white.
_WHITE_LEAST, _WHITE_HALVED = 2.0, 0.65
_GREY_LEAST, _GREY_HALVED = 4.0, 0.6
# The same for brightness: where it begins to speak and is sure, and how much of it colours may show.
_BRIGHT_LEVEL, _BRIGHT_LEFT, _BRIGHT_COLOR = (2.5, 4.0), (0.9, 0.75), 0.35
_BLOCK, _PERIOD = 16, 8
_CALM_SHARE = 0.15


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Attributes:
        strength: share of the correction to take, 0..1.
        kind: WHITE, COMPRESSED or STRONG, whichever witness is the boldest; empty where none speaks.
        removed: root mean square of the whole correction, in units of 1/255 of the full range.
    """

    strength: float
    kind: str
    removed: float


class Seen:
    """What a picture shows of its noise by itself, before any network has looked; each found once, when asked for.

    Args:
        given: colours alone, three or one.
    """

    def __init__(self, given: Pixels) -> None:
        self.given = given

    @cached_property
    def is_grey(self) -> bool:
        """One colour, or three that are one and the same: black and white, stored as colour."""
        return self.given.shape[2] < 3 or is_grey(self.given)

    @cached_property
    def level(self) -> float:
        """σ of white noise, of 255."""
        return self._level(self.given)

    def _level(self, of: Pixels) -> float:
        return noise_level(of[..., :1]) if self.is_grey else color_noise_level(of)

    @cached_property
    def is_white(self) -> bool:
        """Whether its noise is white: half of it is left where 2x2 pixels become one.

        Of noise that a camera, JPEG or an enlargement has made alike in neighbours more is left, as of texture.
        """
        least, most = (_GREY_LEAST, _GREY_HALVED) if self.is_grey else (_WHITE_LEAST, _WHITE_HALVED)
        return self.level >= least and self._level(halved(self.given)) <= most * self.level

    @cached_property
    def bright(self) -> float:
        """How sure it is that it has fine noise in its brightness that its colours do not have, 0..1; 0 if grey."""
        if self.is_grey:
            return 0.0
        level = noise_level(bright := brightness(self.given))
        if level < _BRIGHT_LEVEL[0] or self.level > _BRIGHT_COLOR * level:
            return 0.0
        return _ramp(level, _BRIGHT_LEVEL) * _ramp(noise_level(halved(bright)) / level, _BRIGHT_LEFT)


def is_white_noise(given: Pixels) -> bool:
    """See Seen.is_white."""
    return Seen(given).is_white


def bright_noise(given: Pixels) -> float:
    """See Seen.bright."""
    return Seen(given).bright


def judge(given: Pixels, restored: Pixels, seen: Seen | None = None) -> Verdict:
    """How much of a correction to take.

    Args:
        given, restored: colours alone; of the restored one all of the correction. Three colours or one.
        seen: of `given`, where somebody has looked before.
    """
    seen = seen or Seen(given)
    taken = Taken()
    rows = rows_of(given.shape[1])
    for top in range(0, len(given), rows):
        # A row more, so that no pair of neighbours is lost between bands.
        taken.add(given[top : top + rows + 1], restored[top : top + rows + 1], last=top + rows >= len(given))
    white = _share(min(seen.level, taken.calm), _GREY_HALF) if seen.is_grey else _share(seen.level, _WHITE_HALF)
    strengths = {
        WHITE: white,
        COMPRESSED: max(_ramp(taken.grid, _GRID), _ramp(taken.alike, _ALIKE)),
        STRONG: _ramp(taken.calm, _CALM),
        BRIGHT: seen.bright,
    }
    kind = max(strengths, key=lambda name: strengths[name])
    strength = strengths[kind]
    if kind == STRONG and seen.is_white:  # strong enough to be sure of, and its own traces say of which kind
        kind = WHITE
    return Verdict(strength, kind if strength > 0 else "", taken.removed)


@dataclass
class Taken:
    """Sums over what was taken, band by band, in units of 1/255 of the full range."""

    values: int = 0
    squares: float = 0.0
    pixels: int = 0
    luma: float = 0.0
    luma_squares: float = 0.0
    products: float = 0.0
    pairs: int = 0
    steps: np.ndarray = field(default_factory=lambda: np.zeros((2, _PERIOD)))
    counts: np.ndarray = field(default_factory=lambda: np.zeros((2, _PERIOD)))
    variances: list[np.ndarray] = field(default_factory=list)
    energies: list[np.ndarray] = field(default_factory=list)
    _rows: int = 0

    def add(self, given: Pixels, restored: Pixels, last: bool) -> None:
        """The next band: some rows, and the first of the next band where there is one."""
        scale = 255 / np.iinfo(given.dtype).max
        x = given.astype(np.float32) * scale
        taken = x - restored.astype(np.float32) * scale
        own = slice(None) if last else slice(-1)
        self.values += taken[own].size
        self.squares += float(np.square(taken[own]).sum(dtype=np.float64))
        mean = reduce(np.add, np.moveaxis(taken, 2, 0)) / np.float32(taken.shape[2])
        self._neighbours(mean, own)
        self._blocks(x[own], taken[own])
        self._rows += len(mean[own])

    def _neighbours(self, mean: Float32[np.ndarray, "h w"], own: slice) -> None:
        self.pixels += mean[own].size
        self.luma += float(mean[own].sum(dtype=np.float64))
        self.luma_squares += float(np.square(mean[own]).sum(dtype=np.float64))
        down, across = np.abs(np.diff(mean, axis=0)).mean(axis=1), np.abs(np.diff(mean[own], axis=1)).sum(axis=0)
        for place, (lines, first, count) in enumerate(((down, self._rows, 1), (across, 0, len(mean[own])))):
            phases = (first + np.arange(len(lines))) % _PERIOD
            self.steps[place] += np.bincount(phases, weights=lines, minlength=_PERIOD)
            self.counts[place] += count * np.bincount(phases, minlength=_PERIOD)
        for one, other in ((mean[:-1], mean[1:]), (mean[own, :-1], mean[own, 1:])):
            self.products += float((one * other).sum(dtype=np.float64))
            self.pairs += one.size

    def _blocks(self, x: Float32[np.ndarray, "h w c"], taken: Float32[np.ndarray, "h w c"]) -> None:
        height, width = (length // _BLOCK * _BLOCK for length in x.shape[:2])
        if not height or not width:
            return

        def blocks(of: np.ndarray) -> np.ndarray:
            return of[:height, :width].reshape(height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK, -1)

        self.variances.append(blocks(x).var(axis=(1, 3)).mean(axis=-1).ravel())
        self.energies.append(np.square(blocks(taken)).mean(axis=(1, 3, 4)).ravel())

    @property
    def removed(self) -> float:
        """Root mean square of all that was taken."""
        return float(np.sqrt(self.squares / max(1, self.values)))

    @property
    def calm(self) -> float:
        """The same in the calmest blocks of the picture; zero where it has none."""
        if not self.variances:
            return 0.0
        variances, energies = np.concatenate(self.variances), np.concatenate(self.energies)
        return float(np.sqrt(energies[variances <= np.quantile(variances, _CALM_SHARE)].mean()))

    @property
    def grid(self) -> float:
        """How much more it changes at every eighth line than elsewhere, as a ratio: 1 where there is no grid."""
        ratios = []
        for steps, counts in zip(self.steps, self.counts, strict=True):
            if counts.min() == 0:
                return 1.0
            mean = steps / counts
            median = float(np.median(mean))
            ratios.append(float(mean.max()) / median if median > 0 else 1.0)
        return float(np.mean(ratios))

    @property
    def alike(self) -> float:
        """Correlation of neighbours, down and across."""
        mean = self.luma / max(1, self.pixels)
        variance = self.luma_squares / max(1, self.pixels) - mean**2
        if variance <= 1e-9 or not self.pairs:
            return 0.0
        return (self.products / self.pairs - mean**2) / variance


def _share(level: float, half: float) -> float:
    """σ²/(σ² + t²): of two estimates with independent errors σ and t the best mixture takes this much of the second."""
    return level**2 / (level**2 + half**2)


def _ramp(value: float, bounds: tuple[float, float]) -> float:
    low, high = bounds
    return float(np.clip((value - low) / (high - low), 0, 1))


def is_grey(pixels: Pixels) -> bool:
    """Whether the first three channels are one and the same."""
    return bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all())
