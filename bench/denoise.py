"""Denoisers on photographs with known noise: PSNR, SSIM and seconds of a core per megapixel.

Gaussian noise of σ 15, 25 and 50 (of 255) is added, rounded and clipped to 8 bits, as a file has it; the draw depends
on σ and the picture's place in the sorted list alone. PSNR is over RGB with a range of 255, SSIM scikit-image's, both
averaged over pictures. BM3D (PyPI `bm3d`) is told σ; OpenCV's non-local means gets the strength that is best for
the level on these very pictures; the network is told nothing. Results are kept picture by picture in --results, so
that methods can be run one after the other, and a rerun computes only what is missing.

    python bench/denoise.py FOLDER noisy nlm shipped:1 shipped:8 --results FILE
    python bench/denoise.py FOLDER bm3d --every 10 --results FILE
    python bench/denoise.py FOLDER run:DIR:1 weights:FILE:1

`--every N` takes each N-th picture only; the table has a line for each method over the pictures that all of them have.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

if TYPE_CHECKING:
    from dsdmae_cli.artifacts.denoiser import Denoiser

SIGMAS = (15, 25, 50)
# Strengths of non-local means as shares of σ.
NLM_STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

Rgb = np.ndarray
Denoise = Callable[[Rgb, int], Rgb]


def noisy(clean: Rgb, sigma: int, index: int) -> Rgb:
    noise = np.random.default_rng([sigma, index]).standard_normal(clean.shape)
    return to_8_bits(clean + sigma * noise)


def to_8_bits(pixels: np.ndarray) -> Rgb:
    return np.rint(pixels).clip(0, 255).astype(np.uint8)


def nlm(strength: float) -> Denoise:
    import cv2

    cv2.setNumThreads(1)

    def denoise(picture: Rgb, sigma: int) -> Rgb:
        h = strength * sigma
        bgr = cv2.fastNlMeansDenoisingColored(np.ascontiguousarray(picture[..., ::-1]), None, h, h)
        return bgr[..., ::-1]

    return denoise


def bm3d(picture: Rgb, sigma: int) -> Rgb:
    from bm3d import bm3d_rgb

    return to_8_bits(bm3d_rgb(picture / 255, sigma / 255) * 255)


@cache
def network(kind: str, where: str) -> Denoiser:
    from dsdmae_cli.artifacts.denoiser import load_denoiser

    if kind == "shipped":
        return load_denoiser()
    return load_denoiser(run=Path(where)) if kind == "run" else load_denoiser(weights=Path(where))


def ours(kind: str, where: str, passes: int, precision: str) -> Denoise:
    import torch

    from dsdmae_cli.pictures.picture import Picture
    from dsdmae_cli.pictures.restore import Restorer
    from dsdmae_cli.runtime import choose_precision, keep_freed_memory

    keep_freed_memory()
    device = torch.device("cpu")
    restorer = Restorer(network(kind, where), device, choose_precision(precision, device), passes)
    return lambda picture, sigma: restorer(Picture.of(picture), 1.0).picture.pixels


def candidates(method: str, precision: str) -> dict[str, Denoise]:
    """What is computed for a method: several strengths for non-local means, else one."""
    if method == "noisy":
        return {method: lambda picture, sigma: picture}
    if method.startswith("nlm"):
        shares = [float(share) for share in method.split(":")[1:]] or NLM_STRENGTHS
        return {f"nlm h={share:g}σ": nlm(share) for share in shares}
    if method == "bm3d":
        return {method: bm3d}
    kind, *where, passes = method.split(":")
    return {method: ours(kind, ":".join(where), int(passes), precision)}


def measure(denoise: Denoise, clean: Rgb, sigma: int, index: int) -> dict[str, float]:
    given = noisy(clean, sigma, index)
    # Of all threads, and not of the clock on the wall: other work on the machine must not make a method slow.
    began = time.process_time()
    result = denoise(given, sigma)
    seconds = time.process_time() - began
    return {
        "psnr": float(peak_signal_noise_ratio(clean, result, data_range=255)),
        "ssim": float(
            structural_similarity(
                clean, result, channel_axis=-1, data_range=255, gaussian_weights=True, sigma=1.5,
                use_sample_covariance=False,
            )
        ),
        "seconds": seconds,
        "pixels": clean.shape[0] * clean.shape[1],
    }  # fmt: skip


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown; non-local means with its best strength for each level."""
    shared = set.intersection(*(set(by_picture) for by_picture in results.values()))
    pictures = len({key.split("|")[1] for key in shared})
    lines = [
        f"{pictures} pictures that all methods have\n",
        "| | " + " | ".join(f"σ {s} PSNR | SSIM" for s in SIGMAS) + " | core-s / Mpx |",
        "|---" * (2 * len(SIGMAS) + 2) + "|",
    ]
    for title, names in _rows(results).items():
        cells, seconds, pixels = [], 0.0, 0.0
        for sigma in SIGMAS:
            keys = [key for key in shared if key.startswith(f"{sigma}|")]

            def mean(name: str, what: str, keys: list[str] = keys) -> float:
                return float(np.mean([results[name][key][what] for key in keys]))

            best = max(names, key=lambda name: mean(name, "psnr"))
            cells.append(f"{mean(best, 'psnr'):.2f} | {mean(best, 'ssim'):.3f}")
            seconds += sum(results[best][key]["seconds"] for key in keys)
            pixels += sum(results[best][key]["pixels"] for key in keys)
        lines.append(f"| {title} | {' | '.join(cells)} | {seconds / pixels * 1e6:.2f} |")
    return "\n".join(lines)


def _rows(results: Mapping[str, object]) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    for name in results:
        rows.setdefault("nlm, best strength" if name.startswith("nlm ") else name, []).append(name)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="photographs that no method has seen")
    parser.add_argument(
        "methods", nargs="*", help="noisy, nlm[:SHARE...], bm3d, shipped:PASSES, run:DIR:PASSES or weights:FILE:PASSES"
    )
    parser.add_argument("--every", type=int, default=1, help="each N-th picture only")
    parser.add_argument("--precision", default="auto", help="of the network: auto, bf16 or fp32")
    parser.add_argument("--results", type=Path, help="where results are kept; read first if it exists")
    arguments = parser.parse_args()

    files = sorted(arguments.folder.glob("*.jpg"))
    kept = arguments.results
    results = json.loads(kept.read_text()) if kept and kept.exists() else {}
    for method in arguments.methods:
        for name, denoise in candidates(method, arguments.precision).items():
            found = results.setdefault(name, {})
            for index in range(0, len(files), arguments.every):
                clean = np.asarray(Image.open(files[index]).convert("RGB"))
                for sigma in SIGMAS:
                    key = f"{sigma}|{files[index].name}"
                    if key not in found:
                        found[key] = measure(denoise, clean, sigma, index)
                if kept:
                    kept.with_suffix(".part").write_text(json.dumps(results))
                    kept.with_suffix(".part").replace(kept)
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"{os.uname().machine}, {threads} thread(s)\n\n{table(results)}")


if __name__ == "__main__":
    main()
