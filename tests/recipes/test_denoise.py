"""`dsdmae denoise` from the command line: what it reads, writes, keeps, says and refuses."""

from __future__ import annotations

import io
import json
import math
import resource
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import cli, digit_folder, listing, one_line, start, train, undigested, wait_until
from PIL import Image, ImageCms
from safetensors.torch import load_file

from dsdmae_cli.artifacts.denoiser import load_denoiser, save_denoiser
from dsdmae_cli.config.compose import load
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.errors import CheckpointError, SettingsError
from dsdmae_cli.pictures import picture as pictures
from dsdmae_cli.pictures.corrupting import Corruption, corrupted
from dsdmae_cli.pictures.outcome import Done
from dsdmae_cli.pictures.picture import Picture
from dsdmae_cli.pictures.quality import compare
from dsdmae_cli.pictures.restore import Restorer
from dsdmae_cli.pictures.torch_network import TorchNetwork
from dsdmae_cli.report import counted
from dsdmae_cli.runs.build import build_method

CPU = torch.device("cpu")
_TINY = (
    "data.dataset=folder:somewhere/pictures",
    "data.image_size=16",
    "backbone.patch_size=4",
    "backbone.embed_dim=32",
    "backbone.depth=1",
    "backbone.num_heads=2",
    "method.decoder_depth=1",
    "method.regressor_depth=1",
    "method.residual=true",
)


def look(source: Path | bytes) -> Image.Image:
    """An image whose file is closed again."""
    image = Image.open(io.BytesIO(source if isinstance(source, bytes) else source.read_bytes()))
    image.load()
    return image


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser of 16x16 pixels that has learned nothing: what it does to pixels is small and random."""
    settings = resolve(load(assignments=list(_TINY), environ={}).settings)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_denoiser(build_method(settings), settings, path)
    return path


@pytest.fixture
def run(weights: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    return lambda *words: cli(capfd, "denoise", "--weights", weights, "--device", "cpu", *words)


@pytest.fixture
def photo() -> Image.Image:
    pixels = np.random.default_rng(0).normal(0, 20, (37, 50, 3)) + np.linspace(60, 200, 50)[:, None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


Run = Callable[..., tuple[int, str, str]]


# -- where results go


def test_a_file_gets_one_beside_it(run: Run, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "a.jpg")
    code, out, err = run(tmp_path / "a.jpg")
    assert (code, err) == (0, "")
    assert listing(tmp_path) == {"a.jpg", "a.denoised.png"}
    assert out.startswith(f"{tmp_path / 'a.denoised.png'}  50x37 RGB, ")
    assert " of 255" in out
    assert look(tmp_path / "a.denoised.png").size == (50, 37)


def test_folders_globs_and_names_that_meet(run: Run, photo: Image.Image, tmp_path: Path) -> None:
    for name in ("in/a.png", "in/a.jpg", "in/deep/b.png", "in/.hidden.png", "in/old.denoised.png", "c1.png", "c2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photo.save(tmp_path / name)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    assert run(tmp_path / "in", tmp_path / "c*.png", tmp_path / "c1.png", "--out", f"{tmp_path}/out/")[0] == 0
    pictures = {"a.jpg.png", "a.png.png", "deep", "deep/b.png", "c1.png", "c2.png"}
    assert listing(tmp_path / "out") == pictures | {"report.html"}


def test_what_results_are_called(run: Run, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "a.png")
    assert run(tmp_path, "--out", tmp_path)[0] == 0  # its own folder
    assert run(tmp_path, "--suffix", "-clean")[0] == 0
    assert run(tmp_path, "--suffix", "-clean", "--out", tmp_path / "out")[0] == 0
    assert run(tmp_path, "--suffix", "-clean", "--out", tmp_path / "out", "--force")[0] == 0  # results are no pictures
    assert run(tmp_path, "--corrupt", "1", "--out", tmp_path / "out")[0] == 0
    assert run(tmp_path / "a.png", "--suffix", "", "--out", tmp_path / "plain")[0] == 0
    assert listing(tmp_path) == {
        "a.png", "a.denoised.png", "a-clean.png", "out", "out/a-clean.png", "out/a.triptych.png",
        "out/a-clean.triptych.png", "out/report.html", "plain", "plain/a.png",
    }  # fmt: skip


def test_a_folder_of_results_has_a_page(run: Run, photo: Image.Image, tmp_path: Path) -> None:
    given, out = tmp_path / "my pictures", tmp_path / "out"
    given.mkdir()
    photo.save(given / "a<b>.png")
    photo.save(given / "漢字.png")
    (given / "broken.png").write_text("no picture")
    assert run(given, "--out", out)[0] == 1
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "2 pictures were denoised in " in page
    assert "1 failed." in page
    assert page.count("<img ") == 4
    assert 'alt="a&lt;b&gt;.png: given"' in page
    assert "漢字.png" in page
    assert "…/my pictures/broken.png" in page
    for absent in ("a<b>", str(tmp_path), "http:"):
        assert absent not in page
    # A page of ours is replaced, a stranger's file is not.
    assert run(given / "a<b>.png", given / "漢字.png", "--out", out, "--force")[0] == 0
    assert "1 failed." not in (out / "report.html").read_text(encoding="utf-8")
    (out / "report.html").write_text("mine")
    assert run(given / "a<b>.png", given / "漢字.png", "--out", out, "--force")[0] == 0
    assert (out / "report.html").read_text() == "mine"


def test_a_picture_is_not_replaced_by_its_result(run: Run, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    code, _, err = run(tmp_path / "a.png", "--suffix", "")
    assert code == 2
    assert "exists; --force replaces it" in one_line(err)
    assert (tmp_path / "a.png").read_bytes() == before


def test_two_results_of_one_name(run: Run, photo: Image.Image, tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        photo.save(tmp_path / name / "a.png")
    code, _, err = run(tmp_path / "x", tmp_path / "y", "--out", tmp_path / "out", "--force")
    assert code == 2
    assert "would both become" in one_line(err)
    assert not (tmp_path / "out").exists()


def test_out_names_a_file_and_its_format(run: Run, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "a.png")
    for name in ("b.tif", "b.webp", "b.jpg"):
        assert run(tmp_path / "a.png", "--out", tmp_path / name)[0] == 0
        assert look(tmp_path / name).size == (50, 37)


def test_the_line_says_what_was_found_and_what_was_done(run: Run, photo: Image.Image, tmp_path: Path) -> None:
    """This network takes out whatever it is given; that is much in any picture."""
    photo.save(tmp_path / "a.png")
    _, out, _ = run(tmp_path / "a.png")
    assert ", strong noise, about " in out
    assert " of 255: removed, " in out
    _, out, _ = run(tmp_path / "a.png", "--force", "--strength", "0.25")
    assert ": 25% of it removed, " in out
    _, out, _ = run(tmp_path / "a.png", "--force", "--strength", "0")
    assert "unchanged as asked for: strong noise" in out
    [record] = json.loads(run(tmp_path / "a.png", "--json", "--force", "--strength", "0.25")[1])["pictures"]
    assert (record["strength"], record["found"], record["changed"]) == (0.25, "strong noise", True)


def test_the_time_left_is_that_of_all_pictures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 100.0
    monkeypatch.setattr(counted, "time", SimpleNamespace(monotonic=lambda: seconds))
    with counted.Counted("denoising", 4, quiet=False) as told:
        told.begin("a.png")
        seconds = 120
        told.advance(1, 2)  # an eighth of the whole
        seconds = 125
        told.advance(2, 2)
        told.begin("b.png")
        seconds = 140
        told.advance(0, 1)  # a quarter
        told.begin("c.png")
        told.begin("d.png")
        seconds = 200
        told.advance(1, 1)
    assert capsys.readouterr().err.splitlines() == [
        "denoising 1 of 4, a.png: 50%, 2 min 20 s left",
        "denoising 2 of 4, b.png: 0%, 2 min 00 s left",
    ]


def test_nothing_is_called_denoised_that_came_back_as_it_was() -> None:
    done = Done("a.png", None, 8, 8, "RGB", 8, 1, 1, None, 2.9, "", 0.0, False, None)
    assert "unchanged: no noise found; --strength 1 would take out 2.9 of 255" in str(done)
    assert "unchanged: there is nothing to take out" in str(replace(done, noise_level=0.01))
    # A little was taken, and rounding gave every value back.
    assert "no noise found" in str(replace(done, strength=0.03, found="white noise"))


def test_standard_input_and_output(weights: Path, photo: Image.Image, tmp_path: Path) -> None:
    content = io.BytesIO()
    photo.save(content, "PNG")
    command = [sys.executable, "-m", "dsdmae_cli", "denoise", "-", "--weights", str(weights), "--device", "cpu"]
    done = subprocess.run(command, input=content.getvalue(), capture_output=True, check=True)
    result = look(done.stdout)
    assert (result.format, result.size) == ("PNG", (50, 37))
    assert b"standard output  50x37 RGB" in done.stderr


# -- what is kept


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2), (15, 17), (16, 16), (200, 5)])
@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_any_size(mode: str, size: tuple[int, int], run: Run, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], len(mode)), np.uint8)
    Image.fromarray(pixels.squeeze(2) if mode == "L" else pixels).save(tmp_path / "a.png")
    assert run(tmp_path / "a.png", "--passes", "2", "--strength", "1")[0] == 0
    result = look(tmp_path / "a.denoised.png")
    assert (result.mode, result.size) == (mode, size)
    if mode == "RGBA":
        np.testing.assert_array_equal(np.asarray(result)[..., 3], pixels[..., 3])


def test_profile_exif_and_the_way_up(run: Run, photo: Image.Image, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    photo.save(tmp_path / "a.jpg", exif=exif, icc_profile=profile, quality=98)
    assert run(tmp_path / "a.jpg", "--strength", "0")[0] == 0
    result = look(tmp_path / "a.denoised.png")
    assert result.info["icc_profile"] == profile
    assert result.getexif()[0x010F] == "Maker"
    assert result.getexif().get(0x0112, 1) == 1
    np.testing.assert_array_equal(np.asarray(result), np.rot90(np.asarray(look(tmp_path / "a.jpg")), -1))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_16_bits_stay(mode: str, run: Run, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(20_000, 40_000, (20, 33, len(mode)), np.uint16)
    with (tmp_path / "a.png").open("wb") as file:
        pictures.write([Picture(pixels, mode)], file, ".png")
    assert run(tmp_path / "a.png", "--strength", "0.5")[0] == 0
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


def test_triptych(run: Run, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "a.png")
    words = (tmp_path / "a.png", "--corrupt", "0.9", "--noise-std", "0.3", "--seed", "7")
    code, out, _ = run(*words, "--json")
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


def test_reference(run: Run, photo: Image.Image, tmp_path: Path) -> None:
    for folder in ("noisy", "clean"):
        (tmp_path / folder).mkdir()
    noisy = Image.fromarray(np.asarray(photo) ^ 16)
    noisy.save(tmp_path / "noisy" / "a.png")
    photo.save(tmp_path / "clean" / "a.bmp")
    photo.resize((9, 9)).save(tmp_path / "small.png")
    options = ("--out", tmp_path / "out", "--sheet", tmp_path / "sheet.png", "--json", "--strength", "0")
    code, out, _ = run(tmp_path / "noisy", "--reference", tmp_path / "clean", *options)
    [record] = json.loads(out)["pictures"]
    assert code == 0
    assert record["noisy_psnr"] == record["restored_psnr"] == pytest.approx(20 * math.log10(255 / 16))
    assert look(tmp_path / "sheet.png").width > 150
    code, _, err = run(tmp_path / "noisy" / "a.png", "--reference", tmp_path / "small.png", "--out", tmp_path / "x.png")
    assert code == 2
    assert "is 9x9, 8-bit RGB, not 50x37, 8-bit RGB" in one_line(err)


def test_an_equal_reference_is_json(run: Run, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "a.png")
    out = run(tmp_path / "a.png", "--reference", tmp_path / "a.png", "--strength", "0", "--json")[1]
    assert json.loads(out)["pictures"][0]["restored_psnr"] is None


# -- what goes wrong


def _bomb() -> bytes:
    import struct

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">LLBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000)))


def test_a_failure_leaves_the_others_done(run: Run, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "good.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "good.png").read_bytes()[:2000])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "bomb.png").write_bytes(_bomb())
    (tmp_path / "empty").mkdir()
    before = listing(tmp_path)
    names = [tmp_path / name for name in ("torn.png", "text.jpg", "bomb.png", "empty", "gone.png", "good.png")]
    code, out, err = run(*names, "--json")
    assert code == 1
    assert listing(tmp_path) - before == {"good.denoised.png"}
    line = one_line(err)
    assert line.startswith("dsdmae: error: 5 of 6 failed: ")
    for word in ("truncated file", "not a JPEG", "--max-megapixels", "without images", "no such file"):
        assert word in line
    result = json.loads(out)
    assert [p["source"] for p in result["pictures"]] == [str(tmp_path / "good.png")]
    assert {Path(f["source"]).name for f in result["failed"]} == {p.name for p in names[:-1]}


@pytest.mark.parametrize("others", [(), ("text.jpg",), ("gone.png", "text.jpg")])
def test_nothing_but_bad_input(others: tuple[str, ...], run: Run, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    (tmp_path / "whole.png").unlink()
    (tmp_path / "text.jpg").write_text("no picture")
    before = listing(tmp_path)
    code, _, err = run(tmp_path / "torn.png", *(tmp_path / name for name in others))
    assert code == 2
    assert one_line(err).startswith("dsdmae: error: nothing was denoised: ")
    assert others or err.count("\n") == 1
    assert listing(tmp_path) == before


def test_nothing_is_overwritten_without_force(run: Run, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "a.png")
    (tmp_path / "a.denoised.png").write_text("mine")
    code, _, err = run(tmp_path / "a.png")
    assert code == 2
    assert "exists; --force replaces it" in one_line(err)
    assert (tmp_path / "a.denoised.png").read_text() == "mine"
    assert run(tmp_path / "a.png", "--force")[0] == 0
    assert look(tmp_path / "a.denoised.png").size == (50, 37)


def test_no_permission(
    run: Run, weights: Path, photo: Image.Image, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    photo.save(tmp_path / "a.png")
    assert run(tmp_path / "a.png")[0] == 0  # which imports what a process without root's rights may not
    packed = weights.read_bytes()
    nobody: Path = request.getfixturevalue("nobody")
    (nobody / "tiny.safetensors").write_bytes(packed)
    photo.save(nobody / "a.png")
    (nobody / "a.png").chmod(0)
    code, _, err = cli(capfd, "denoise", "--weights", nobody / "tiny.safetensors", "--device", "cpu", nobody / "a.png")
    assert code == 2
    assert "permission denied" in one_line(err)


def test_a_folder_that_cannot_be_made(run: Run, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "a.png")
    (tmp_path / "file").write_text("")
    code, _, err = run(tmp_path / "a.png", "--out", tmp_path / "file" / "b.png")
    assert code == 1
    assert "cannot make" in one_line(err)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "nothing to denoise: name pictures"),
        (("-", "a.png"), "stands alone"),
        (("a.png", "--noise-std", "1"), "give --corrupt"),
        (("a.png", "--corrupt", "1.5"), "--corrupt 1.5 is not allowed"),
        (("a.png", "--strength", "2"), "less than or equal to 1"),
        (("a.png", "--passes", "0"), "greater than or equal to 1"),
        (("a.png", "--out", "b.gif"), "--out b.gif: it must end in"),
        (("a.png", "--suffix", "x/y"), "folders go to --out"),
        (("a.png", "b.png", "--out", "c.png"), "is one file and there are 2 pictures"),
        (("a.png", "--out", "-", "--json"), "both want standard output"),
        (("a.png", "--reference", "gone.png"), "there is no --reference gone.png"),
        (("a.png", "--run", "."), "--run and --weights"),
        (("a.png", "--device", "gpu"), "'gpu' is not a device"),
    ],
)
def test_wrong_command_lines(
    words: tuple[str, ...], said: str, run: Run, photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        photo.save(name)
    code, _, err = run(*words)
    assert code == 2
    assert said in one_line(err)
    assert listing(tmp_path) == {"a.png", "b.png"}


def test_a_full_disk_leaves_nothing(
    weights: Path, photo: Image.Image, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    photo.save(tmp_path / "a.png")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        code, _, err = cli(capfd, "denoise", tmp_path / "a.png", "--weights", weights, "--device", "cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert code == 1
    assert "cannot write" in one_line(err)
    assert listing(tmp_path) == {"a.png"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_whole_files_alone(number: signal.Signals, weights: Path, tmp_path: Path) -> None:
    large = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
    for name in ("a", "b", "c"):
        Image.fromarray(large[:20, :20] if name == "a" else large).save(tmp_path / f"{name}.png", compress_level=0)
    process = start(
        *("-m", "dsdmae_cli", "denoise", tmp_path, "--weights", weights, "--device", "cpu", "--passes", "16")
    )
    wait_until(lambda: (tmp_path / "a.denoised.png").exists(), process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"stopped by signal {number.value}: 1 of 3 pictures are done" in err
    assert listing(tmp_path) == {"a.png", "b.png", "c.png", "a.denoised.png"}


# -- denoisers


def test_a_file_holds_what_denoising_needs(weights: Path, tmp_path: Path) -> None:
    state = load_file(weights)
    assert {name.split(".")[0] for name in state} == {"student", "decoder"}
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    denoiser = load_denoiser(weights=weights)
    assert denoiser.settings.data.dataset == "folder:pictures"  # no folder of the machine it was trained on
    assert denoiser.image_size == 16
    save_denoiser(denoiser.network, denoiser.settings, tmp_path / "again.safetensors")
    assert load_denoiser(weights=tmp_path / "again.safetensors").sha256 == denoiser.sha256
    assert (tmp_path / "again.safetensors").read_bytes() == weights.read_bytes()


def test_a_run_is_a_denoiser(run: Run, weights: Path, photo: Image.Image, tmp_path: Path) -> None:
    digits = digit_folder(tmp_path / "digits")
    train(digits, tmp_path / "run", "method.residual=true", "train.epochs=1")
    denoiser = load_denoiser(run=tmp_path / "run")
    save_denoiser(denoiser.network, denoiser.settings, tmp_path / "w.safetensors", dtype=torch.float32)
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(load_denoiser(weights=tmp_path / "w.safetensors")(images), denoiser(images))
    with pytest.raises(CheckpointError, match="holds an encoder alone"):
        load_denoiser(weights=tmp_path / "run" / "encoder.safetensors")


def test_weights_that_are_none(weights: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    metadata, state = undigested(weights), load_file(weights)
    state["student.vit.norm.bias"] = torch.zeros(7)
    save_file(state, tmp_path / "shape.safetensors", metadata)
    with pytest.raises(CheckpointError, match=r"do not fit: student.vit.norm.bias is \(7,\), not \(32,\)"):
        load_denoiser(weights=tmp_path / "shape.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors at all")
    for name in ("text.safetensors", "gone.safetensors"):
        with pytest.raises(CheckpointError, match=name):
            load_denoiser(weights=tmp_path / name)
    save_file({"x": torch.zeros(1)}, tmp_path / "bare.safetensors")
    with pytest.raises(CheckpointError, match="no denoiser of dsdmae"):
        load_denoiser(weights=tmp_path / "bare.safetensors")


def test_a_method_without_pixels_cannot_denoise(tmp_path: Path) -> None:
    settings = resolve(load(assignments=[*_TINY, "method.lambda=0"], environ={}).settings)
    with pytest.raises(SettingsError, match="cannot denoise"):
        save_denoiser(build_method(settings), settings, tmp_path / "w.safetensors")


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
