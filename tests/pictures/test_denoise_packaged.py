"""The denoiser that ships with the program: it is there, it is good, it leaves no traces, and it needs nothing else."""

from __future__ import annotations

import io
import os
import shutil
import site
import subprocess
import sys
import venv
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dsdmae_cli.artifacts.denoiser import Denoiser, load_denoiser
from dsdmae_cli.artifacts.packaged import ALL, PHOTOGRAPHS, WHITE_NOISE
from dsdmae_cli.data.decode import decode
from dsdmae_cli.pictures.engines import open_restorer
from dsdmae_cli.pictures.picture import Picture
from dsdmae_cli.pictures.quality import compare
from dsdmae_cli.pictures.restore import Restorer
from dsdmae_cli.pictures.torch_network import TorchNetwork
from dsdmae_cli.pictures.traces import COMPRESSED, STRONG, WHITE

ROOT = Path(__file__).parents[2]
Rgb = Any


@pytest.fixture(scope="module", params=ALL, ids=lambda packaged: packaged.word)
def denoiser(request: pytest.FixtureRequest) -> Denoiser:
    """Each of them."""
    return load_denoiser(packaged=request.param)


def restored(denoiser: Denoiser, pixels: Rgb, passes: int = 1, precision: str = "fp32") -> Rgb:
    network = TorchNetwork(denoiser, torch.device("cpu"), precision)
    return Restorer(network, passes)(Picture.of(pixels), 1.0).picture.pixels


def noisy(clean: Rgb, sigma: float) -> Rgb:
    noise = np.random.default_rng(0).normal(0, sigma, clean.shape)
    return np.clip(np.rint(clean + noise), 0, 255).astype(np.uint8)


def test_they_are_small_and_have_their_card() -> None:
    assert sum(len(packaged.read()) for packaged in ALL) <= 20e6
    card = (files("dsdmae_cli") / "weights" / "README.md").read_text(encoding="utf-8")
    for word in ("dsdmae pretrain", "seed", "licence", *(packaged.sha256 for packaged in ALL)):
        assert word in card.replace("license", "licence").replace("Licence", "licence").replace("Seed", "seed")


@pytest.mark.parametrize(("sigma", "least_db"), [(15, 31.5), (25, 28.5), (50, 24.5)])
def test_it_restores_photographs(sigma: float, least_db: float, denoiser: Denoiser, photos_folder: Path) -> None:
    scores = []
    for path in sorted((photos_folder / "val").iterdir())[:4]:
        clean = decode(path, path.name)
        scores.append(compare(restored(denoiser, noisy(clean, sigma)), clean).psnr)
    assert np.mean(scores) > least_db


def test_grey_photographs_too(denoiser: Denoiser, photos_folder: Path) -> None:
    for path in sorted((photos_folder / "val").iterdir())[:2]:
        clean = np.rint(decode(path, path.name).mean(axis=2, keepdims=True)).astype(np.uint8)
        given = noisy(clean, 25)
        assert compare(restored(denoiser, given), clean).psnr > compare(given, clean).psnr + 4


def _grid_strength(image: Rgb, period: int) -> float:
    """How much stronger steps between columns (or rows) are at any one phase of a period than on average, in levels."""
    worst = 0.0
    for axis in (0, 1):
        steps = np.abs(np.diff(image.astype(float), axis=axis)).mean(axis=(1 - axis, 2))
        whole = steps[: len(steps) // period * period].reshape(-1, period).mean(axis=0)
        worst = max(worst, float((whole - np.median(whole)).max()))
    return worst


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["flat", "gradient"])
def test_no_grid_is_seen(kind: str, precision: str, denoiser: Denoiser) -> None:
    """Flat and gradient pictures come back within three levels, and no step is larger where tiles or patches meet.

    So the network alone; the command would leave them as they are, for want of noise.
    """
    y, x = np.mgrid[:200, :260]
    grey = np.full((200, 260), 120.0) if kind == "flat" else 40 + 0.4 * x + 0.3 * y
    clean = np.repeat(np.rint(grey)[..., None], 3, axis=2).astype(np.uint8)
    clean[..., 2] += 9  # a colour, so that it is not taken for black and white
    result = restored(denoiser, clean, precision=precision)
    error = np.abs(result.astype(int) - clean)
    assert error.max() <= 3
    assert error.mean() < 0.5
    # Tiles begin every 49 rows and columns here; patches every so many pixels.
    stride = int(denoiser.image_size * 0.75)
    for period in {denoiser.patch[0], 8, stride, stride + 1}:
        given = _grid_strength(clean, period)
        assert _grid_strength(result, period) < given + 0.35


def test_noise_on_a_flat_picture_leaves_no_grid(denoiser: Denoiser) -> None:
    clean = np.full((300, 300, 3), (120, 130, 110), np.uint8)
    result = restored(denoiser, noisy(clean, 25))
    assert compare(result, clean).psnr > 36
    assert _grid_strength(result, denoiser.patch[0]) < 0.35


@pytest.mark.parametrize("value", [0, 255])
def test_black_and_white_stay(value: int, denoiser: Denoiser) -> None:
    flat = np.full((90, 90, 3), value, np.uint8)
    assert np.abs(restored(denoiser, flat).astype(int) - value).max() <= 2


def test_pure_noise_does_no_harm(denoiser: Denoiser) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 70, 3), np.uint8)
    assert restored(denoiser, noise).std() < noise.std()


def test_passes_help(denoiser: Denoiser, photos_folder: Path) -> None:
    gains = []
    for path in sorted((photos_folder / "val").iterdir())[:3]:
        clean = decode(path, path.name)
        one, four = (compare(restored(denoiser, noisy(clean, 25), passes), clean).psnr for passes in (1, 4))
        gains.append(four - one)
    assert min(gains) > 0
    assert np.mean(gains) > 0.05


# -- how much of the correction is taken where nobody said it


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return open_restorer(engine="torch", device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def cleans(photos_folder: Path) -> list[Rgb]:
    return [decode(path, path.name) for path in sorted((photos_folder / "val").iterdir())[:4]]


def test_noisy_photographs_get_nearly_all_of_the_correction(restorer: Restorer, cleans: list[Rgb]) -> None:
    gains = []
    for clean in cleans:
        given = noisy(clean, 15)
        found = restorer(Picture.of(given))
        assert found.noise_level == pytest.approx(15, rel=0.25)
        assert found.found in (WHITE, STRONG)
        assert found.strength > 0.95
        assert found.network.sha256 == WHITE_NOISE.sha256
        gains.append(compare(found.picture.pixels, clean).psnr - compare(given, clean).psnr)
    assert 8.5 < np.mean(gains) < 11
    assert min(gains) > 4


def test_clean_photographs_are_left_nearly_as_they_are(restorer: Restorer, cleans: list[Rgb]) -> None:
    scores = []
    for clean in cleans:
        found = restorer(Picture.of(clean))
        assert found.strength < 0.3
        assert found.network.sha256 == PHOTOGRAPHS.sha256
        scores.append(min(99, compare(found.picture.pixels, clean).psnr))
    assert min(scores) > 45
    assert np.mean(scores) > 60


@pytest.mark.parametrize("quality", [10, 30])
def test_jpeg_is_something_to_be_removed(quality: int, restorer: Restorer, kodak_folder: Path) -> None:
    gains = []
    for path in sorted(kodak_folder.glob("*.png"))[4:8]:
        clean = np.asarray(Image.open(path).convert("RGB"))[100:300, 200:400]
        file = io.BytesIO()
        Image.fromarray(clean).save(file, "jpeg", quality=quality)
        given = np.asarray(Image.open(file).convert("RGB"))
        found = restorer(Picture.of(given))
        assert found.found == COMPRESSED
        assert found.network.sha256 == PHOTOGRAPHS.sha256
        gains.append(compare(found.picture.pixels, clean).psnr - compare(given, clean).psnr)
    assert np.mean(gains) > 0.4
    assert min(gains) > 0


def test_real_camera_noise_goes(restorer: Restorer, real_noise_folder: Path) -> None:
    """Parts of five of PolyU's pairs, at default settings."""
    gains = []
    for path in sorted((real_noise_folder / "noisy").iterdir())[1::4]:
        given, clean = (
            np.asarray(Image.open(real_noise_folder / which / path.name).convert("RGB"))[128:384, 128:384]
            for which in ("noisy", "clean")
        )
        found = restorer(Picture.of(given))
        assert found.network.sha256 == PHOTOGRAPHS.sha256
        gains.append(compare(found.picture.pixels, clean).psnr - compare(given, clean).psnr)
    assert np.mean(gains) > 1
    assert min(gains) > -0.05


def test_white_noise_is_restored_better_by_the_network_for_it(restorer: Restorer, cleans: list[Rgb]) -> None:
    gains = []
    for clean in cleans:
        given = Picture.of(noisy(clean, 25))
        by = [compare(restorer(given, 1.0, white=white).picture.pixels, clean).psnr for white in (True, False)]
        gains.append(by[0] - by[1])
    assert np.mean(gains) > 0.1
    assert min(gains) > -0.05


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_strength_does_not_depend_on_the_depth(dtype: Any, restorer: Restorer) -> None:
    peak = np.iinfo(dtype).max
    pixels = np.random.default_rng(0).normal(0.5 * peak, 3 / 255 * peak, (64, 64, 3)).astype(dtype)
    alpha = np.random.default_rng(0).integers(0, peak, (64, 64, 1), dtype)  # alpha is no noise
    found = restorer(Picture.of(np.concatenate([pixels, alpha], axis=2)))
    assert found.strength == pytest.approx(0.5, abs=0.06)  # as loud as the network's own error


def _offline() -> list[str]:
    """A prefix that takes the network away, where this machine lets one."""
    unshare = shutil.which("unshare")
    allowed = unshare and subprocess.run([unshare, "-rn", "true"], capture_output=True, check=False).returncode == 0
    return [str(unshare), "-rn"] if allowed else []


# Without namespaces, the next best: a Python in which nobody can reach out.
_NO_SOCKETS = """
import socket
def refuse(*args, **kwargs):
    raise OSError("the network is unplugged")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""


@pytest.mark.slow
def test_a_fresh_installation_denoises_offline(tmp_path: Path, photos_folder: Path) -> None:
    """The wheel in an empty environment: libraries are lent from this one, the program comes from the wheel alone."""
    wheels = tmp_path / "wheels"
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    [wheel] = wheels.glob("*.whl")
    assert wheel.stat().st_size < 20e6
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    purelib = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()
    )  # fmt: skip
    shutil.unpack_archive(wheel, purelib, "zip")
    _lend(purelib)
    (purelib / "sitecustomize.py").write_text("" if _offline() else _NO_SOCKETS)
    home = tmp_path / "home"
    home.mkdir()
    clean = decode(sorted((photos_folder / "val").iterdir())[0], "photo")
    Image.fromarray(noisy(clean, 25)).save(home / "photo.png")
    Image.fromarray(clean).save(home / "clean.png")
    environ = {"HOME": str(home), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    words = ["-m", "dsdmae_cli", "denoise", "photo.png", "--device", "cpu"]
    done = subprocess.run(
        [*_offline(), str(python), *words], cwd=home, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    result = decode(home / "photo.denoised.png", "result")
    assert compare(result, clean).psnr > compare(noisy(clean, 25), clean).psnr + 6
    where = subprocess.run(
        [str(python), "-c", "import dsdmae_cli; print(dsdmae_cli.__file__)"],
        cwd=home,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert where.stdout.startswith(str(purelib)), where.stdout + where.stderr


def _lend(purelib: Path) -> None:
    """Make this environment's libraries importable there, this project's own left out (an editable one is a .pth)."""
    for folder in site.getsitepackages():
        for item in Path(folder).iterdir():
            ours = item.name.startswith(("dsdmae", "_dsdmae", "__editable__", "sitecustomize")) or item.suffix == ".pth"
            if not ours and not (purelib / item.name).exists():
                (purelib / item.name).symlink_to(item)
