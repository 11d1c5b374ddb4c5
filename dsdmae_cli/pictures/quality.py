"""How near an image is to its original: PSNR and SSIM. No torch here."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8, UInt16

# Wang et al. 2004: a Gaussian window of 11 pixels, σ 1.5, and the constants K1, K2.
SSIM_WINDOW = 11
_SSIM_STD = 1.5
_K1, _K2 = 0.01, 0.03
_STRIP = 256


def psnr(
    images: Float[np.ndarray, "b c h w"], reference: Float[np.ndarray, "b c h w"], data_range: float = 2.0
) -> Float[np.ndarray, " b"]:
    """Peak signal-to-noise ratio of each image, in dB; data_range is 2 for pixels in [-1, 1]."""
    mse = np.square(images - reference).mean(axis=(1, 2, 3))
    return 10 * np.log10(data_range**2 / mse)


def ssim(
    images: Float[np.ndarray, "b c h w"], reference: Float[np.ndarray, "b c h w"], data_range: float
) -> Float[np.ndarray, " b"]:
    """Structural similarity of each image, its mean over pixels and channels (Wang et al. 2004, Eq. 13).

    The window is the paper's Gaussian, and places where it would reach over the edge are left out: what scikit-image's
    `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)` computes.

    Args:
        data_range: of pixels from 0 to it. SSIM compares means too: pixels in [-1, 1] must be shifted first.

    Raises:
        ValueError: a side is shorter than the window's 11 pixels.
    """
    if min(images.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs {SSIM_WINDOW} pixels a side, got {tuple(images.shape[-2:])}")
    mean_x, mean_y = _smooth(images), _smooth(reference)
    var_x = _smooth(images * images) - mean_x * mean_x
    var_y = _smooth(reference * reference) - mean_y * mean_y
    covariance = _smooth(images * reference) - mean_x * mean_y
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    likeness = likeness / ((mean_x * mean_x + mean_y * mean_y + c1) * (var_x + var_y + c2))
    return likeness.mean(axis=(1, 2, 3))


def _smooth(x: Float[np.ndarray, "b c h w"]) -> Float[np.ndarray, "b c h-10 w-10"]:
    offsets = np.arange(SSIM_WINDOW, dtype=x.dtype) - SSIM_WINDOW // 2
    kernel = np.exp(-0.5 * np.square(offsets / _SSIM_STD))
    kernel /= kernel.sum()
    for axis in (2, 3):
        num = x.shape[axis] - SSIM_WINDOW + 1
        windows = (x[(slice(None),) * axis + (slice(at, at + num),)] for at in range(SSIM_WINDOW))
        x = sum(weight * window for weight, window in zip(kernel, windows, strict=True))
    return x


class Likeness(NamedTuple):
    """How near one picture is to another.

    Attributes:
        psnr: dB; infinite where they are equal.
        ssim: mean over pixels and channels; None where a side has less than 11 pixels.
    """

    psnr: float
    ssim: float | None

    def __str__(self) -> str:
        psnr = f"{self.psnr:.2f} dB" if math.isfinite(self.psnr) else "equal"
        return psnr if self.ssim is None else f"{psnr}, SSIM {self.ssim:.3f}"


def compare(
    pixels: UInt8[np.ndarray, "h w c"] | UInt16[np.ndarray, "h w c"],
    reference: UInt8[np.ndarray, "h w c"] | UInt16[np.ndarray, "h w c"],
) -> Likeness:
    """PSNR and SSIM of pixels as they are stored, in float64, and in strips, so that large pictures cost no memory."""
    peak = float(np.iinfo(pixels.dtype).max)
    height, width, channels = pixels.shape
    with_ssim = min(height, width) >= SSIM_WINDOW
    squares, likeness = 0.0, 0.0
    for top in range(0, height, _STRIP):
        # Windows of SSIM begin in the strip and may end below it.
        x, y = (_planes(image[top : top + _STRIP + SSIM_WINDOW - 1]) for image in (pixels, reference))
        squares += float(np.square(x[..., :_STRIP, :] - y[..., :_STRIP, :]).sum())
        if with_ssim and (rows := x.shape[-2] - SSIM_WINDOW + 1) > 0:
            likeness += float(ssim(x, y, peak)[0]) * rows
    mse = squares / (height * width * channels)
    return Likeness(
        psnr=10 * math.log10(peak**2 / mse) if mse else math.inf,
        ssim=likeness / (height - SSIM_WINDOW + 1) if with_ssim else None,
    )


def psnr_where(
    pixels: UInt8[np.ndarray, "h w c"] | UInt16[np.ndarray, "h w c"],
    reference: UInt8[np.ndarray, "h w c"] | UInt16[np.ndarray, "h w c"],
    where: Bool[np.ndarray, "h w"],
) -> float:
    """PSNR in dB of some of the pixels, as stored; infinite where they are equal."""
    squares, count = 0.0, 0
    for top in range(0, len(pixels), _STRIP):
        rows = slice(top, top + _STRIP)
        taken = where[rows]
        difference = pixels[rows][taken].astype(np.float64) - reference[rows][taken]
        squares, count = squares + float(np.square(difference).sum()), count + difference.size
    peak = float(np.iinfo(pixels.dtype).max)
    return 10 * math.log10(peak**2 * count / squares) if squares else math.inf


def _planes(image: UInt8[np.ndarray, "h w c"] | UInt16[np.ndarray, "h w c"]) -> Float64[np.ndarray, "1 c h w"]:
    return image.astype(np.float64).transpose(2, 0, 1)[None]
