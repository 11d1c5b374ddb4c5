"""What `dsdmae denoise` keeps of a picture, what it does to the rest, and how it is scored."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Run, look, one_line, start
from PIL import Image, ImageCms

from dsdmae_cli.artifacts.denoiser import load_denoiser
from dsdmae_cli.pictures import picture as pictures
from dsdmae_cli.pictures.corrupting import Corruption, corrupted
from dsdmae_cli.pictures.picture import Picture
from dsdmae_cli.pictures.quality import compare
from dsdmae_cli.pictures.restore import Restorer
from dsdmae_cli.pictures.torch_network import TorchNetwork

CPU = torch.device("cpu")


# -- what is kept


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2), (15, 17), (16, 16), (200, 5)])
@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_any_size(mode: str, size: tuple[int, int], denoise: Run, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], len(mode)), np.uint8)
    Image.fromarray(pixels.squeeze(2) if mode == "L" else pixels).save(tmp_path / "a.png")
    assert denoise(tmp_path / "a.png", "--passes", "2", "--strength", "1")[0] == 0
    result = look(tmp_path / "a.denoised.png")
    assert (result.mode, result.size) == (mode, size)
    if mode == "RGBA":
        np.testing.assert_array_equal(np.asarray(result)[..., 3], pixels[..., 3])


def test_profile_exif_and_the_way_up(denoise: Run, photo: Image.Image, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    photo.save(tmp_path / "a.jpg", exif=exif, icc_profile=profile, quality=98)
    assert denoise(tmp_path / "a.jpg", "--strength", "0")[0] == 0
    result = look(tmp_path / "a.denoised.png")
    assert result.info["icc_profile"] == profile
    assert result.getexif()[0x010F] == "Maker"
    assert result.getexif().get(0x0112, 1) == 1
    np.testing.assert_array_equal(np.asarray(result), np.rot90(np.asarray(look(tmp_path / "a.jpg")), -1))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_16_bits_stay(mode: str, denoise: Run, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(20_000, 40_000, (20, 33, len(mode)), np.uint16)
    with (tmp_path / "a.png").open("wb") as file:
        pictures.write([Picture(pixels, mode)], file, ".png")
    assert denoise(tmp_path / "a.png", "--strength", "0.5")[0] == 0
    result = pictures.read(tmp_path / "a.denoised.png", "it")
    assert (result.mode, result.depth) == (mode, 16)
    assert len(np.unique(result.pixels[..., 0] % 256)) > 100  # the lower byte is used
    assert np.abs(result.pixels.astype(int) - pixels).max() > 0


def test_strength_mixes(weights: Path) -> None:
    picture = Picture(np.random.default_rng(0).integers(0, 65536, (40, 30, 3), np.uint16), "RGB")
    restorer = Restorer(TorchNetwork(load_denoiser(weights=weights), CPU, "fp32"))
    none, half, full = (restorer(picture, strength).picture.pixels.astype(float) for strength in (0, 0.5, 1))
    np.testing.assert_array_equal(none, picture.pixels)
    inside = (full > 0) & (full < 65535)
    np.testing.assert_allclose(half[inside], ((none + full) / 2)[inside], atol=1)


def test_tiles_are_what_the_network_says(weights: Path) -> None:
    """A picture of one tile, upright and lying, against the network called by hand."""
    denoiser = load_denoiser(weights=weights)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    result = Restorer(TorchNetwork(denoiser, CPU, "fp32"))(Picture(pixels, "RGB"), 1.0).picture
    x = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    wanted = ((denoiser(x)[0].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255)
    np.testing.assert_array_equal(result.pixels, wanted.numpy())
    tall = np.concatenate([pixels, pixels[::-1]])
    lying = Restorer(TorchNetwork(denoiser, CPU, "fp32"))(Picture(tall.transpose(1, 0, 2), "RGB"), 1.0).picture
    assert np.abs(lying.pixels.astype(int) - tall.transpose(1, 0, 2)).max() > 0


def test_black_and_white_stored_as_colour_stays_so(weights: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (30, 40, 1), np.uint8)
    restorer = Restorer(TorchNetwork(load_denoiser(weights=weights), CPU, "fp32"))
    result = restorer(Picture(np.repeat(grey, 3, axis=2), "RGB"), 1.0).picture.pixels
    assert (result == result[..., :1]).all()
    np.testing.assert_array_equal(result[..., :1], restorer(Picture(grey, "L"), 1.0).picture.pixels)


# -- the paper's noise, scores, sheets


@pytest.mark.parametrize("ratio", [0.25, 0.9, 1.0])
def test_noise_on_a_share_of_the_patches(ratio: float) -> None:
    picture = Picture(np.full((403, 299, 2), 30_000, np.uint16), "LA")
    noisy = corrupted(picture, Corruption(ratio, 0.1, 3), (4, 4))
    np.testing.assert_array_equal(noisy.pixels[..., 1], picture.pixels[..., 1])
    touched = noisy.pixels[:400, :296, 0].reshape(100, 4, 74, 4).swapaxes(1, 2).std(axis=(2, 3)) > 0
    assert touched.mean() == pytest.approx(ratio, abs=0.02)
    changed = (noisy.pixels[..., 0].astype(float) - 30_000)[noisy.pixels[..., 0] != 30_000]
    assert changed.std() == pytest.approx(0.1 * 65535 / 2, rel=0.02)
    np.testing.assert_array_equal(noisy.pixels, corrupted(picture, Corruption(ratio, 0.1, 3), (4, 4)).pixels)


def test_triptych(denoise: Run, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "a.png")
    words = (tmp_path / "a.png", "--corrupt", "0.9", "--noise-std", "0.3", "--seed", "7")
    code, out, _ = denoise(*words, "--json")
    [record] = json.loads(out)["pictures"]
    assert code == 0
    assert record["output"] == str(tmp_path / "a.triptych.png")
    assert record["strength"] == 1  # the noise is there, whatever the estimate says
    clean = pictures.read(tmp_path / "a.png", "a")
    wanted = compare(corrupted(clean, Corruption(0.9, 0.3, 7), (4, 4)).pixels, clean.pixels)
    assert record["noisy_psnr"] == pytest.approx(wanted.psnr)
    assert record["noisy_ssim"] == pytest.approx(wanted.ssim)
    page = look(tmp_path / "a.triptych.png")
    assert page.width > 150
    assert page.height > 37


def test_reference(denoise: Run, photo: Image.Image, tmp_path: Path) -> None:
    for folder in ("noisy", "clean"):
        (tmp_path / folder).mkdir()
    noisy = Image.fromarray(np.asarray(photo) ^ 16)
    noisy.save(tmp_path / "noisy" / "a.png")
    photo.save(tmp_path / "clean" / "a.bmp")
    photo.resize((9, 9)).save(tmp_path / "small.png")
    options = ("--out", tmp_path / "out", "--sheet", tmp_path / "sheet.png", "--json", "--strength", "0")
    code, out, _ = denoise(tmp_path / "noisy", "--reference", tmp_path / "clean", *options)
    [record] = json.loads(out)["pictures"]
    assert code == 0
    assert record["noisy_psnr"] == record["restored_psnr"] == pytest.approx(20 * math.log10(255 / 16))
    assert look(tmp_path / "sheet.png").width > 150
    code, _, err = denoise(
        tmp_path / "noisy" / "a.png", "--reference", tmp_path / "small.png", "--out", tmp_path / "x.png"
    )
    assert code == 2
    assert "is 9x9, 8-bit RGB, not 50x37, 8-bit RGB" in one_line(err)


def test_an_equal_reference_is_json(denoise: Run, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "a.png")
    out = denoise(tmp_path / "a.png", "--reference", tmp_path / "a.png", "--strength", "0", "--json")[1]
    assert json.loads(out)["pictures"][0]["restored_psnr"] is None


# -- memory


@pytest.mark.slow
def test_memory_is_that_of_the_picture_and_little_more(weights: Path, tmp_path: Path) -> None:
    """Peak memory of whole processes: thirty times the pixels cost what the pixels take, held twice, and no more."""

    def peak_mib(side: int) -> float:
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(tmp_path / "big.png")
        program = (
            "import resource, sys; from dsdmae_cli.__main__ import main\n"
            "try: main(sys.argv[1:])\n"
            "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, file=sys.stderr)"
        )
        words = ("denoise", tmp_path / "big.png", "--weights", weights, "--device", "cpu", "--force")
        process = start("-c", program, *words, "--strength", "1")
        _, err = process.communicate()
        assert process.returncode == 0, err
        return float(err.split()[-1])

    small, large = peak_mib(500), peak_mib(2750)
    pixels = (2750**2 - 500**2) * 3 / 2**20
    assert large - small < 8 * pixels + 60
