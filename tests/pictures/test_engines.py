"""torch and onnxruntime: the same pixels, one file made once, and a line for whatever does not go together."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from helpers import cli, identity_onnx, one_line, start
from PIL import Image

from dsdmae_cli.artifacts import onnx_denoiser
from dsdmae_cli.artifacts.denoiser import Denoiser, load_denoiser, save_denoiser
from dsdmae_cli.artifacts.onnx_denoiser import IMAGES, KEY, RESTORED, write_onnx_denoiser
from dsdmae_cli.artifacts.packaged import ALL, PHOTOGRAPHS
from dsdmae_cli.config.compose import load
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.config.use import hardware
from dsdmae_cli.pictures import engines
from dsdmae_cli.pictures.onnx_network import open_onnx
from dsdmae_cli.pictures.picture import Picture
from dsdmae_cli.pictures.restore import Restorer
from dsdmae_cli.pictures.torch_network import TorchNetwork
from dsdmae_cli.recipes import export
from dsdmae_cli.runs.build import build_method

CPU = torch.device("cpu")
_TINY = (
    "data.dataset=folder:somewhere/pictures", "data.image_size=16", "backbone.name=unet", "backbone.widths=[8,16]",
    "backbone.depths=[1,1]", "method.heads=conv", "method.decoder_depth=1", "method.lambda=1", "method.residual=true",
)  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A U-Net whose last layer, which starts at zero, has weights too."""
    settings = resolve(load(assignments=list(_TINY), environ={}).settings)
    method = build_method(settings)
    torch.nn.init.normal_(method.decoder.project.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_denoiser(method, settings, path)
    return path


@pytest.fixture(scope="module")
def unchecked() -> Iterator[None]:
    """As `unchecked_shapes`, for a fixture that is made once."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="module")
def exported(weights: Path, tmp_path_factory: pytest.TempPathFactory, unchecked: None) -> Path:
    """What `dsdmae export TINY --to denoiser-onnx` writes."""
    path = tmp_path_factory.mktemp("exported") / "tiny.onnx"
    said = write_onnx_denoiser(load_denoiser(weights=weights), path, "")
    assert said["max_difference"] < 1e-4
    return path


@pytest.fixture
def made(exported: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files made for the cache, by a copy of the one above in place of torch's exporter."""
    paths: list[Path] = []

    def write(denoiser: object, out: Path, advice: str) -> None:
        out.write_bytes(exported.read_bytes())
        paths.append(out)

    monkeypatch.setattr(onnx_denoiser, "write_onnx_denoiser", write)
    return paths


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return lambda *words: cli(capfd, "denoise", tmp_path / "a.png", "--force", "--json", *words)


def pictures() -> dict[str, Picture]:
    draw = np.random.default_rng(0)
    return {
        "colour": Picture(draw.integers(0, 256, (300, 270, 3), np.uint8), "RGB"),
        "lying, alpha, 16 bits": Picture(draw.integers(0, 65536, (40, 61, 4), np.uint16), "RGBA"),
        "grey": Picture(draw.integers(0, 256, (64, 33, 1), np.uint8), "L"),
        "a pixel": Picture(draw.integers(0, 256, (1, 1, 3), np.uint8), "RGB"),
    }


@pytest.mark.parametrize("passes", [1, 3])
def test_both_engines_give_the_same_pixels(passes: int, weights: Path, exported: Path) -> None:
    by_torch = Restorer(TorchNetwork(load_denoiser(weights=weights), CPU, "fp32"), passes)
    by_onnx = Restorer(open_onnx(exported, "it"), passes)
    for name, picture in pictures().items():
        one, other = (restorer(picture, 1.0) for restorer in (by_torch, by_onnx))
        difference = np.abs(one.picture.pixels.astype(int) - other.picture.pixels)
        assert difference.max() <= picture.peak / 255, name
        assert one.noise_level == pytest.approx(other.noise_level, rel=1e-3)
        assert np.abs(one.picture.pixels.astype(int) - picture.pixels).max() > 0


@pytest.mark.parametrize("size", [(16, 16), (4, 4), (20, 36)])
@pytest.mark.parametrize("batch", [1, 3])
def test_height_width_and_batch_are_free(batch: int, size: tuple[int, int], weights: Path, exported: Path) -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (batch, 3, *size)).astype(np.float32)
    with torch.no_grad():
        expected = load_denoiser(weights=weights)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(open_onnx(exported, "it").predict(images), expected, atol=1e-5)


def test_the_size_of_training_changes_nothing_where_sizes_are_free(weights: Path) -> None:
    """What the network makes of a larger image, against one that was built for it."""
    denoiser = load_denoiser(weights=weights)
    settings = resolve(load(assignments=[*_TINY, "data.image_size=32"], environ={}).settings)
    larger = build_method(settings).eval()
    larger.load_state_dict(denoiser.network.state_dict())
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(denoiser(images), larger.denoise(images))


def test_both_say_the_same_of_themselves(weights: Path, exported: Path) -> None:
    one, other = TorchNetwork(load_denoiser(weights=weights), CPU, "fp32"), open_onnx(exported, "it")
    assert one.sha256 == other.sha256
    assert (one.image_size, one.patch) == (other.image_size, other.patch)
    assert (other.about.size_multiple, one.engine, other.engine) == (4, "torch", "onnx")
    assert b"somewhere" not in exported.read_bytes()  # no folder of the machine it was trained on


def test_export_takes_a_denoisers_file_and_the_packaged_one(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Denoiser] = []

    def write(denoiser: Denoiser, out: Path, advice: str) -> dict[str, object]:
        given.append(denoiser)
        return {"files": [out.name]}

    monkeypatch.setattr(export, "write_onnx_denoiser", write)
    for subject in (str(weights), *(packaged.word for packaged in ALL)):
        said = export.export(export.Request(subject, "denoiser-onnx", tmp_path / "d.onnx"))
        assert said["weights_sha256"] == given[-1].sha256
    assert [denoiser.origin for denoiser in given] == [str(weights), *(packaged.origin for packaged in ALL)]


def test_an_onnx_file_is_enough(run: Run, exported: Path) -> None:
    code, out, _ = run("--weights", exported)
    assert code == 0
    assert json.loads(out)["engine"] == "onnx"


_PROGRAM = """
import sys
from dsdmae_cli.__main__ import main
try:
    main(sys.argv[1:])
except SystemExit as leaving:
    assert leaving.code == 0, leaving.code
print(*sorted(sys.modules))
"""
# What only torch, or a command that trains, has use for.
_NOT_FOR_ONNX = {
    "torch", "onnx", "onnxscript", "timm", "torchvision", "sklearn", "scipy", "matplotlib", "optuna",
    "dsdmae_cli.settings.models", "dsdmae_cli.plugins",
}  # fmt: skip


def test_onnx_never_loads_torch(run: Run, exported: Path, tmp_path: Path) -> None:
    """A whole process, with a sheet and scores."""
    picture = str(tmp_path / "a.png")
    words = [
        "--weights",
        str(exported),
        "--sheet",
        str(tmp_path / "sheet.png"),
        "--reference",
        picture,
        "--passes",
        "2",
    ]
    process = start("-c", _PROGRAM, "denoise", picture, *words, environ={"XDG_CACHE_HOME": str(tmp_path)})
    out, err = process.communicate()
    assert process.returncode == 0, err
    loaded = set(out.splitlines()[-1].split())
    assert "onnxruntime" in loaded
    assert not loaded & _NOT_FOR_ONNX
    assert (tmp_path / "a.denoised.png").is_file()


def test_what_stands_for_no_flag_is_the_settings_default() -> None:
    where = hardware({})
    assert (where.device, where.precision) == ("auto", "auto")


def test_a_file_is_made_once_and_then_auto_takes_it(run: Run, weights: Path, made: list[Path]) -> None:
    def engine(*words: str) -> str:
        code, out, _ = run("--weights", weights, *words)
        assert code == 0
        return str(json.loads(out)["engine"])

    assert engine("--device", "cpu") == "torch"
    assert (engine("--engine", "onnx"), len(made)) == ("onnx", 1)
    assert (engine("--device", "cpu"), engine("--engine", "onnx"), len(made)) == ("onnx", "onnx", 1)
    assert engine("--device", "cpu", "--precision", "bf16") == "torch"
    assert engine("--engine", "torch") == "torch"


def test_a_damaged_file_is_made_again(run: Run, weights: Path, made: list[Path]) -> None:
    assert run("--weights", weights, "--engine", "onnx")[0] == 0
    [kept] = engines.onnx_folder().iterdir()
    whole = kept.read_bytes()
    middle = len(whole) // 2
    kept.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])  # onnxruntime would not notice
    assert run("--weights", weights, "--device", "cpu")[0] == 0
    assert len(made) == 2
    assert kept.read_bytes() == whole


def test_other_weights_are_another_file(run: Run, weights: Path, made: list[Path], tmp_path: Path) -> None:
    assert run("--weights", weights, "--engine", "onnx")[0] == 0
    denoiser = load_denoiser(weights=weights)
    save_denoiser(denoiser.network, denoiser.settings, tmp_path / "other.safetensors", dtype=torch.float32)
    assert json.loads(run("--weights", tmp_path / "other.safetensors", "--device", "cpu")[1])["engine"] == "torch"
    assert PHOTOGRAPHS.read() != weights.read_bytes()


def test_files_that_are_none(run: Run, exported: Path, tmp_path: Path) -> None:
    good = open_onnx(exported, "it").about.written()[KEY]
    (tmp_path / "text.onnx").write_text("no graph at all")
    (tmp_path / "torn.onnx").write_bytes(exported.read_bytes()[:5000])
    (tmp_path / "empty.onnx").write_bytes(b"")
    identity_onnx(tmp_path / "foreign.onnx", {})
    identity_onnx(tmp_path / "damaged.onnx", {KEY: "{"})
    identity_onnx(tmp_path / "list.onnx", {KEY: "[]"})
    identity_onnx(tmp_path / "sizes.onnx", {KEY: good.replace('"image_size": 16', '"image_size": 0')})
    identity_onnx(tmp_path / "newer.onnx", {KEY: good.replace('"format": 1', '"format": 99')})
    identity_onnx(tmp_path / "ports.onnx", {KEY: good}, ("x", "y"))
    for name, said in {
        "gone": "No such file", "text": "no readable ONNX file", "torn": "no readable ONNX file",
        "empty": "no readable ONNX file", "foreign": "no denoiser of dsdmae; make one with", "damaged": "is damaged",
        "list": "is damaged", "sizes": "is damaged", "newer": "update dsdmae", "ports": f"not {IMAGES} and {RESTORED}",
    }.items():  # fmt: skip
        code, out, err = run("--weights", tmp_path / f"{name}.onnx")
        assert (code, out) == (2, ""), name
        assert said in one_line(err), name
        assert f"{name}.onnx" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--engine", "torch", "--weights", "tiny.onnx"), "--engine torch cannot read tiny.onnx"),
        (("--engine", "onnx", "--run", "some-run"), "--to denoiser-onnx --out FILE.onnx"),
        (("--engine", "onnx", "--device", "cuda"), "computes on the CPU, not on cuda"),
        (("--engine", "onnx", "--precision", "bf16"), "computes in fp32, not bf16"),
        (("--weights", "tiny.onnx", "--precision", "bf16"), "computes in fp32, not bf16"),
        (("--engine", "onnx", "--weights", "gone.safetensors"), "cannot read gone.safetensors: No such file"),
        (("--engine", "tensorrt"), "is not one of"),
    ],
)
def test_what_does_not_go_together(words: tuple[str, ...], said: str, run: Run) -> None:
    code, _, err = run(*words)
    assert code == 2
    assert said in one_line(err)


def test_without_its_extra(run: Run, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = run("--weights", exported)
    assert code == 2
    assert "pip install 'dsdmae[onnx]'" in one_line(err)


def test_a_cache_that_cannot_be_written_costs_a_note(
    run: Run, weights: Path, made: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    code, out, _ = run("--weights", weights, "--engine", "onnx")
    assert code == 0
    assert json.loads(out)["engine"] == "onnx"


def test_a_gpu_is_torchs(run: Run, weights: Path, made: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("--weights", weights, "--engine", "onnx")[0] == 0
    monkeypatch.setattr(engines, "_maybe_gpu", lambda: True)
    assert engines.choose_engine("auto", None, weights, "auto", "auto") == "torch"
    monkeypatch.setattr(engines, "_maybe_gpu", lambda: False)
    assert engines.choose_engine("auto", None, weights, "auto", "auto") == "onnx"
    assert engines.choose_engine("auto", Path("run"), None, "auto", "auto") == "torch"
