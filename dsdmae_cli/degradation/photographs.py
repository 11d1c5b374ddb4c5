"""Clean windows of photographs to windows as people have them: a mixture of white noise, camera noise and JPEG.

Each image gets one of three: clipped white noise (the denoising literature's), the noise of a camera, or JPEG alone.
Camera noise comes at up to twice the resolution and is shrunk with the picture, is smoothed as cameras smooth it
(colour more than brightness), and both go through JPEG often, at any place of its grid. What is clean stays the
caller's picture: enlarging and shrinking it would change it, so that only what was added makes that way.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F

from dsdmae_cli.degradation.camera import draw_camera, sensor_noise
from dsdmae_cli.degradation.jpeg import UNIT, compressed

# How often: a camera's picture is shrunk, is smoothed, was a JPEG before that, ends as one; a white one ends as one.
_SHRUNK, _SMOOTHED, _JPEG_BEFORE, _JPEG_AFTER, _WHITE_JPEG = 0.5, 0.7, 0.2, 0.7, 0.25
_LARGEST = 2.0
# Standard deviations of the smoothing in pixels, at most: brightness, colour.
_LUMA_BLUR, _CHROMA_BLUR = 1.2, 4.0
_TAPS = 8
# BT.601's brightness.
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Photographs:
    """How photographs come out.

    Attributes:
        shares: of images with white noise, with a camera's, and with JPEG alone; they sum to one.
        white: smallest and largest σ of white noise, uniform, for pixels in [-1, 1].
        shot: smallest and largest variance of a sensel at full light, uniform in its logarithm.
        quality: lowest and highest quality of JPEG after noise, uniform.
        quality_alone: the same where JPEG is all that happens.
    """

    shares: tuple[float, float, float]
    white: tuple[float, float]
    shot: tuple[float, float]
    quality: tuple[float, float]
    quality_alone: tuple[float, float]


def degrade(images: Float[Tensor, "b 3 h w"], how: Photographs, generator: Generator) -> Float[Tensor, "b 3 h w"]:
    """Images as files would hold them: degraded, clipped, and rounded to 8 bits; all in [-1, 1].

    Which image gets what is drawn on the host from the generator's seed, stratified, so that a batch has its shares;
    a draw on the device would have to be waited for.
    """
    host = random.Random(f"{generator.initial_seed()} photographs")
    kinds = _strata(len(images), how.shares, host)
    clean = (images + 1) * 127.5
    degraded = clean.clone()
    for kind, act in enumerate((_white, _camera, _jpeg)):
        chosen = [place for place, which in enumerate(kinds) if which == kind]
        if chosen:
            rows = torch.tensor(chosen).to(images.device, non_blocking=True)
            degraded[rows] = act(clean[rows], how, generator, host)
    return degraded.round().clamp(0, 255) / 127.5 - 1


def _strata(count: int, shares: tuple[float, ...], host: random.Random) -> list[int]:
    """A kind for each image: numbers of a kind differ from its share of the batch by less than one."""
    first = host.random()
    kinds = []
    for place in range(count):
        point, kind = (place + first) / count, 0
        while kind < len(shares) - 1 and point >= sum(shares[: kind + 1]):
            kind += 1
        kinds.append(kind)
    return kinds


def _white(clean: Tensor, how: Photographs, generator: Generator, host: random.Random) -> Tensor:
    low, high = how.white
    size = (len(clean), 1, 1, 1)
    std = 127.5 * (low + (high - low) * torch.rand(size, generator=generator, device=clean.device))
    noise = torch.randn(clean.shape, generator=generator, device=clean.device)
    return _some_compressed(clean + std * noise, _WHITE_JPEG, how.quality, generator, host)


def _jpeg(clean: Tensor, how: Photographs, generator: Generator, host: random.Random) -> Tensor:
    return _some_compressed(clean, 1.0, how.quality_alone, generator, host)


def _camera(clean: Tensor, how: Photographs, generator: Generator, host: random.Random) -> Tensor:
    size = _sizes(clean, generator)
    canvas = _resized(clean, size, tuple(int(_LARGEST * side) for side in clean.shape[-2:])).clamp_(0, 255)
    taken = canvas + 255 * sensor_noise(canvas / 255, draw_camera(len(clean), how.shot, generator), generator)
    taken = _some_compressed(taken, _JPEG_BEFORE, how.quality, generator, host)
    added = _shrunk(taken - canvas, size, clean.shape[-2:])
    return _some_compressed(clean + _smoothed(added, generator), _JPEG_AFTER, how.quality, generator, host)


def _some_compressed(
    pixels: Tensor, share: float, qualities: tuple[float, float], generator: Generator, host: random.Random
) -> Tensor:
    """JPEG for this share of the images, in expectation."""
    low, high = qualities
    quality = low + (high - low) * torch.rand(len(pixels), generator=generator, device=pixels.device)
    chosen = torch.rand(len(pixels), generator=generator, device=pixels.device) < share
    corner = (host.randrange(UNIT), host.randrange(UNIT))
    return torch.where(chosen[:, None, None, None], compressed(pixels, quality, corner), pixels)


def _sizes(clean: Tensor, generator: Generator) -> Float[Tensor, "b 2"]:
    """Height and width that each picture was taken at, whole pixels."""
    chosen, zoom = torch.rand((2, len(clean), 1), generator=generator, device=clean.device)
    zoom = torch.where(chosen < _SHRUNK, 1 + (_LARGEST - 1) * zoom, 1.0)
    return (zoom * torch.tensor(clean.shape[-2:], device=clean.device)).round()


def _resized(
    pixels: Float[Tensor, "b c h w"], size: Float[Tensor, "b 2"], canvas: tuple[int, ...]
) -> Float[Tensor, "b c H W"]:
    """Each image enlarged to its own size in a corner of the canvas; beyond, its last row and column go on."""
    h, w = pixels.shape[-2:]
    return _apply(pixels, _enlarging(h, size[:, 0], canvas[0]), _enlarging(w, size[:, 1], canvas[1]))


def _shrunk(
    canvas: Float[Tensor, "b c H W"], size: Float[Tensor, "b 2"], shape: torch.Size
) -> Float[Tensor, "b c h w"]:
    """The corner of this size of each image, brought to `shape` by averaging over area."""
    h, w = canvas.shape[-2:]
    return _apply(canvas, _averaging(size[:, 0], h, shape[0]), _averaging(size[:, 1], w, shape[1]))


def _apply(x: Tensor, rows: Float[Tensor, "b H h"], columns: Float[Tensor, "b W w"]) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return rows[:, None] @ x @ columns[:, None].mT


def _enlarging(source: int, size: Float[Tensor, " b"], canvas: int) -> Float[Tensor, "b {canvas} {source}"]:
    """Bilinear, with half-pixel centres, as everybody's."""
    places = torch.arange(canvas, device=size.device).clamp(max=size[:, None] - 1)
    centers = ((places + 0.5) * source / size[:, None] - 0.5).clamp(0, source - 1)
    return (1 - (centers[:, :, None] - torch.arange(source, device=size.device)).abs()).clamp(min=0)


def _averaging(size: Float[Tensor, " b"], canvas: int, target: int) -> Float[Tensor, "b {target} {canvas}"]:
    """Each target pixel is the mean of what it covers, as pictures are shrunk where nothing may ring."""
    zoom = (size / target)[:, None, None]
    begin = zoom * torch.arange(target, device=size.device)[:, None]
    pixel = torch.arange(canvas, device=size.device)
    covered = (torch.minimum(begin + zoom, pixel + 1) - torch.maximum(begin, pixel)).clamp(min=0)
    return covered / zoom


def _smoothed(added: Float[Tensor, "b 3 h w"], generator: Generator) -> Float[Tensor, "b 3 h w"]:
    """Noise as a camera's own denoising leaves it: brightness slightly, colour much, each image in its own way."""
    chosen, luma, chroma = torch.rand((3, len(added)), generator=generator, device=added.device)
    off = torch.where(chosen < _SMOOTHED, 1.0, 0.0)
    weights = torch.tensor(_LUMA, device=added.device)[None, :, None, None]
    brightness = (weights * added).sum(dim=1, keepdim=True)
    color = added - brightness
    return _blurred(brightness, off * luma * _LUMA_BLUR) + _blurred(color, off * chroma * _CHROMA_BLUR)


def _blurred(x: Float[Tensor, "b c h w"], std: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
    """A Gaussian of each image's own width; none where it is zero."""
    b, c, h, w = x.shape
    taps = torch.arange(-_TAPS, _TAPS + 1, device=x.device)
    kernel = (-(taps**2) / (2 * std.clamp(min=1e-2)[:, None] ** 2)).exp()
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(c, dim=0)[:, None]
    padded = F.pad(x, (_TAPS,) * 4, mode="replicate").reshape(1, b * c, h + 2 * _TAPS, w + 2 * _TAPS)
    with torch.autocast(x.device.type, enabled=False):
        rows = F.conv2d(padded, kernel[..., None], groups=b * c)
        return F.conv2d(rows, kernel[:, :, None], groups=b * c).reshape(b, c, h, w)
