"""Pictures of 1, 4 and 13 bands through every command: the number that a network learned with is kept by them all."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnx as onnx_file
import pytest
import tifffile
import timm
import torch
from helpers import assignments, cli, one_line
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

SIDE = 16
# Of the 4th band a network that dropped it would know nothing: it alone tells the classes apart.
BANDS = {"grey": 1, "four": 4, "thirteen": 13}
SAID = {"grey": "grey in [0, 1]", "four": "4 channels in [0, 1]", "thirteen": "13 channels, values of band by band"}


def pictures(root: Path, bands: int, count: int = 24, deep: bool = False) -> Path:
    """TIFFs (of one band: PNGs) of digits in two classes; bands of 16 bits differ by orders of magnitude."""
    digits = load_digits()
    rng = np.random.default_rng(0)
    for number in range(count):
        grey = np.asarray(Image.fromarray((digits.images[number] * 15.9).astype(np.uint8)).resize((SIDE, SIDE)))
        kind = ("even", "odd")[int(digits.target[number]) % 2]
        file = root / kind / f"{number:03d}.{'png' if bands == 1 else 'tif'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        if bands == 1:
            Image.fromarray(grey).save(file)
            continue
        planes = [grey * (1.0 if band % 2 else 0.5) for band in range(bands)]
        planes[3] = planes[3] / 2 + (100 if kind == "odd" else 0)
        if deep:
            planes = [
                plane * 10.0 ** (band % 3 - 1) + rng.normal(20, 1, grey.shape) for band, plane in enumerate(planes)
            ]
        pixels = np.stack(planes, axis=-1).clip(0, None).astype(np.uint16 if deep else np.uint8)
        tifffile.imwrite(file, pixels, photometric="minisblack", planarconfig="contig")
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bands")
    return {name: pictures(root / name, bands, deep=bands == 13) for name, bands in BANDS.items()}


def options(folder: Path, *more: str, method: str = "mae") -> list[str]:
    small = (
        "train.epochs=1",
        "optim.warmup_epochs=0",
        "train.batch_size=8",
        f"data.image_size={SIDE}",
        "data.holdout=0.3",
    )
    return [word for a in assignments(folder, *small, *more, method=method) for word in ("--set", a)]


def run_of(folder: Path, out: Path, *more: str, method: str = "mae") -> Path:
    from dsdmae_cli.__main__ import _run

    assert _run(["pretrain", *options(folder, *more, method=method), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def runs(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    more = {"grey": ["data.channels=1"], "four": ["optim.lr=1e-3"], "thirteen": []}
    return {name: run_of(folder, root / name, *more[name]) for name, folder in folders.items()}


def said_json(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    code, out, err = cli(capfd, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize("name", list(BANDS))
def test_every_command_keeps_the_number(
    runs: dict[str, Path], name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, bands = runs[name], BANDS[name]
    kept = tomllib.loads((run / "settings.toml").read_text())
    assert kept["data"]["channels"] == bands
    if name == "thirteen":
        assert len(kept["data"]["range"]) == 13
    load_with = json.loads((run / "result.json").read_text())["load_with"]
    model = eval(load_with, {"timm": timm}).eval()
    assert model.patch_embed.proj.weight.shape[1] == bands

    probed = said_json(capfd, "probe", run, "--kind", "knn", "--out", tmp_path / "probe")
    assert 0 <= probed["top1"] <= 1
    code, _, err = cli(capfd, "embed", run, "--out", tmp_path / "f.npz", "--no-cache")
    assert code == 0, err
    features = np.load(tmp_path / "f.npz")["features"]
    assert features.shape == (17, 32)
    assert features.std(axis=0).max() > 0

    exported = said_json(capfd, "export", run, "--to", "hf", "--out", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [bands, SIDE, SIDE]
    assert len(exported["mean"]) == bands
    card = (tmp_path / "hf" / "README.md").read_text()
    assert f"torch.rand(1, {bands}, {SIDE}, {SIDE})" in card
    assert f"It sees {SAID[name].removesuffix(' in [0, 1]').partition(',')[0]}." in card
    ours = timm.create_model(f"local-dir:{tmp_path / 'hf'}", pretrained=True).eval()
    images = torch.rand(2, bands, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), model(images))
    onnx = said_json(capfd, "export", run, "--to", "onnx", "--out", tmp_path / "x.onnx")
    assert f"[batch, {bands}, {SIDE}, {SIDE}]" in onnx["input"]
    props = {one.key: one.value for one in onnx_file.load(str(tmp_path / "x.onnx")).metadata_props}
    props = {key: json.loads(props[key]) for key in ("channels", "bands", "range") if key in props}
    assert props["channels"] == exported["seen"]["channels"] == bands
    code, out, err = cli(capfd, "export", run, "--to", "timm", "--out", tmp_path / "words")
    assert (code, f"px, {SAID[name]}" in out) == (0, True), out + err
    if name == "thirteen":
        limits = [list(pair) for pair in kept["data"]["range"]]
        assert props["range"] == exported["seen"]["range"] == limits
        assert f"values from black to white become [0, 1]: {json.dumps(limits)}." in card
    else:
        assert "range" not in props
    assert (run / "figures" / "restored.png").is_file()


def test_the_fourth_band_is_seen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It alone tells the classes apart by its brightness; of the others a linear probe has to tell digits."""
    results, folder = {}, pictures(tmp_path / "many", 4, 80)
    for bands in ("auto", "[1,2,3]"):
        given = ["--dataset", folder, "--set", f"data.bands={bands}", "--set", f"data.image_size={SIDE}"]
        given += ["--set", "data.holdout=0.3", "--kind", "logistic"]
        results[bands] = said_json(capfd, "probe", "pixels", *given, "--out", tmp_path / bands)["top1"]
    assert results["auto"] == 1
    assert results["[1,2,3]"] < 1


def test_features_are_those_of_all_bands(runs: dict[str, Path], folders: dict[str, Path], tmp_path: Path) -> None:
    """Against timm's model of the same weights, on the files read with tifffile."""
    from dsdmae_cli.recipes.embed import Request, embed

    embed(Request(str(runs["four"]), {}, precision="fp32", device="cpu", cache=False), tmp_path / "f.npz", as_json=True)
    found = np.load(tmp_path / "f.npz")
    model = eval(json.loads((runs["four"] / "result.json").read_text())["load_with"], {"timm": timm}).eval()
    pixels = np.stack([tifffile.imread(name) for name in found["names"]]).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels / 127.5 - 1).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(found["features"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "method", ["beit", "cae", "dsdmae", "lejepa", "maskfeat", "mocov3", "msa", "sdae", "tokenizer", "tscae"]
)
def test_methods_learn_from_four_bands(
    folders: dict[str, Path], method: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_of(folders["four"], tmp_path / "run", "train.knn_every=1", method=method)
    err = capfd.readouterr().err
    result = json.loads((run / "result.json").read_text())
    assert np.isfinite(result["final"]["loss"])
    assert result["skipped_steps"] == 0
    assert ("colour jitter and the like" in err) == (method in ("lejepa", "mocov3", "msa"))
    kept = tomllib.loads((run / "settings.toml").read_text())["method"]
    assert kept.get("jitter_probability", 0) == 0
    if method == "dsdmae":
        code, _, err = cli(capfd, "denoise", "--run", run, next(folders["grey"].rglob("*.png")))
        assert code == 2
        assert "only networks for RGB denoise pictures" in one_line(err)


@pytest.mark.parametrize(
    ("given", "method", "words"),
    [
        (["method.jitter_probability=0.5"], "mocov3", "method.jitter_probability = 0.5 needs RGB images"),
        (["method.noise=photograph"], "dsdmae", "method.noise = 'photograph' is a camera's"),
        (["data.bands=[1,2]", "data.channels=4"], "mae", "data.bands names 2 bands and data.channels = 4"),
        (["data.range=[[0,1],[0,2]]"], "mae", "data.range has 2 pairs and there are 4 channels"),
        (["data.channels=0"], "mae", "data.channels"),
        (["data.channels=many"], "mae", "data.channels"),
        (["backbone.in_chans=3"], "mae", "takes images of 3 channels, and data.channels = 4"),
        (["data.dataset=digits", "data.channels=4"], "mae", "digits has images of 3 channels, and 4 are asked for"),
    ],
)
def test_what_does_not_go_together_is_said(
    folders: dict[str, Path], given: list[str], method: str, words: str, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    code, _, err = cli(capfd, "pretrain", *options(folders["four"], *given, method=method), "--out", tmp_path / "run")
    assert code == 2
    assert words in one_line(err)
    assert not (tmp_path / "run").exists()


def test_a_network_meets_pictures_of_other_bands(
    runs: dict[str, Path], folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for subject, dataset, words in (
        (runs["four"], folders["thirteen"], "13 bands and not the 4 of data.channels"),
        (runs["four"], folders["grey"], "1 band and not the 4 of data.channels"),
        (runs["grey"], folders["four"], "4 bands, neither grey nor RGB"),
    ):
        code, _, err = cli(capfd, "embed", subject, "--dataset", dataset, "--out", tmp_path / "f.npz")
        assert code == 2, err
        assert words in err
    code, _, err = cli(capfd, "embed", runs["four"], "--dataset", "digits", "--out", tmp_path / "f.npz")
    assert code == 2
    assert "images of 3 channels, and 4 are asked for" in one_line(err)
    code, _, err = cli(capfd, "probe", runs["four"], "--set", "data.channels=13", "--dataset", folders["thirteen"])
    assert code == 2
    assert "takes images of 4 channels, and data.channels = 13" in one_line(err)


def test_chosen_bands_of_thirteen(
    runs: dict[str, Path], folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ["--set", "data.bands=[13,1,2,5]", "--set", "data.range=10"]
    code, _, err = cli(
        capfd, "embed", runs["four"], "--dataset", folders["thirteen"], *given, "--out", tmp_path / "f.npz"
    )
    assert code == 0, err


def test_weights_of_another_number_begin_a_run(
    runs: dict[str, Path], folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """RGB weights see four bands by timm's rule: filters repeated and scaled."""
    rgb = run_of(folders["four"], tmp_path / "rgb", "data.channels=3", "data.bands=[1,2,3]")
    capfd.readouterr()
    code, _, err = cli(
        capfd, "pretrain", "--from", rgb, folders["four"], "--set", "data.bands=auto", "--set", "optim.lr=1e-30",
        "--set", "train.epochs=1", "--set", "optim.warmup_epochs=0", "--set", "train.batch_size=8",
        "--out", tmp_path / "b",
    )  # fmt: skip
    assert code == 0, err
    assert "first layer is adapted from 3 to 4 channels" in err
    weights = {}
    for run in (rgb, tmp_path / "b"):
        model = eval(json.loads((run / "result.json").read_text())["load_with"], {"timm": timm}).eval()
        weights[run] = model.patch_embed.proj.weight.detach()
    expected = torch.cat([weights[rgb], weights[rgb][:, :1]], dim=1) * 0.75
    torch.testing.assert_close(weights[tmp_path / "b"], expected)


def test_finetuning_on_four_bands(runs: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = ["--epochs", "1", "--batch-size", "8", "--set", "optim.warmup_epochs=0"]
    found = said_json(capfd, "finetune", runs["four"], *given, "--out", tmp_path / "tuned")
    assert 0 <= found["top1"] <= 1
    config = said_json(capfd, "export", tmp_path / "tuned", "--to", "timm", "--out", tmp_path / "folder")
    assert len(config["mean"]) == 4
    given += ["--set", "finetune.rand_augment=rand-m9-mstd0.5-inc1"]
    code, _, err = cli(capfd, "finetune", runs["four"], *given, "--out", tmp_path / "other")
    assert code == 2
    assert "finetune.rand_augment varies the colours of RGB images" in one_line(err)


@pytest.fixture(scope="module")
def rgb(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(folders["four"], tmp_path_factory.mktemp("rgb") / "run", "data.channels=3", "data.bands=[1,2,3]")


STILL = ["--epochs", "1", "--batch-size", "8", "--lr", "1e-30", "--set", "optim.weight_decay=0",
         "--set", "optim.warmup_epochs=0"]  # fmt: skip


def test_finetuning_adapts_the_first_layer(
    rgb: Path, folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run on RGB, and the same weights as a stranger's file, meet four and one bands; at no rate nothing moves."""
    model = eval(json.loads((rgb / "result.json").read_text())["load_with"], {"timm": timm}).eval()
    torch.save(model.state_dict(), tmp_path / "theirs.pth")
    before = model.patch_embed.proj.weight.detach()
    expected = {
        "auto": torch.cat([before, before[:, :1]], dim=1) * 0.75,
        "1": before.sum(dim=1, keepdim=True),
    }
    for start, channels, folder in (
        (rgb, "auto", "four"),
        (tmp_path / "theirs.pth", "auto", "four"),
        (rgb, "1", "grey"),
    ):
        out = tmp_path / f"{Path(start).stem}-{channels}"
        more = ["--set", f"data.channels={channels}", "--set", "data.bands=auto", "--out", out]
        code, _, err = cli(capfd, "finetune", start, "--dataset", folders[folder], *STILL, *more)
        assert code == 0, err
        number = "4 channels" if channels == "auto" else "1 channel"
        assert f"the first layer is adapted from 3 to {number}: {start} learned from images of 3" in err
        tuned = load_file(out / "classifier.safetensors")
        torch.testing.assert_close(tuned["patch_embed.proj.weight"], expected[channels])
    code, _, err = cli(capfd, "finetune", "--resume", "--out", tmp_path / f"{rgb.stem}-auto")
    assert code == 0, err


def test_finetuning_on_its_own_images_keeps_their_number(
    rgb: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Somebody chose three of their bands: the same images are seen so again."""
    code, _, err = cli(capfd, "finetune", rgb, *STILL, "--out", tmp_path / "tuned")
    assert code == 0, err
    assert "adapted" not in err
    assert tomllib.loads((tmp_path / "tuned" / "settings.toml").read_text())["data"]["channels"] == 3


def test_a_u_net_is_adapted_where_its_patches_are_laid_flat(
    folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Filters go by channels, not by the order of a patch's values; six equal bands give what three gave."""
    unet = ["backbone.name=unet", "backbone.patch_size=2", "backbone.widths=[8, 12]", "backbone.depths=[1, 1]",
            f"data.image_size={SIDE}", "method.decoder_depth=1", "method.regressor_depth=1", "train.epochs=1",
            "train.batch_size=8", "optim.warmup_epochs=0", "train.knn_every=none", "data.holdout=0.3"]  # fmt: skip
    sets = [word for a in unet for word in ("--set", a)]
    chosen = ["--set", "data.channels=3", "--set", "data.bands=[1,2,3]", "--lr", "1e-2"]
    code, _, err = cli(capfd, "pretrain", folders["four"], *sets, *chosen, "--out", tmp_path / "rgb")
    assert code == 0, err
    still = ["--lr", "1e-30", "--set", "optim.weight_decay=0", "--set", "data.bands=auto", *sets]
    code, _, err = cli(capfd, "pretrain", folders["four"], "--from", tmp_path / "rgb", *still, "--out", tmp_path / "b")
    assert code == 0, err
    assert "first layer is adapted from 3 to 4 channels" in err
    import dsdmae_cli
    from dsdmae_builtin.backbones import UNetSettings
    from dsdmae_cli.runs.build import build_backbone

    one, four = (dsdmae_cli.load_encoder(tmp_path / name) for name in ("rgb", "b"))
    first, now = (net.state_dict()["embed.weight"].unflatten(1, (4, -1)) for net in (one, four))
    torch.testing.assert_close(now, first[:, :, [0, 1, 2, 0]] * 0.75)
    settings = UNetSettings(patch_size=2, widths=(8, 12), depths=(1, 1), in_chans=6)
    six = build_backbone(settings, SIDE, seed=0)
    six.load_state_dict(six.adapted(one.timm_state()))
    grey = torch.rand(2, 1, SIDE, SIDE) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(six(grey.expand(-1, 6, -1, -1)), one(grey.expand(-1, 3, -1, -1)))


def test_resuming_needs_no_pictures_to_know_the_number(
    folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What was found is kept: pictures that come later change neither channels nor range."""
    copy = pictures(tmp_path / "copy", 4, 16)
    run = run_of(copy, tmp_path / "run")
    for number in range(40):
        Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(copy / "odd" / f"later-{number}.tif")
    code, _, err = cli(
        capfd, "probe", run, "--kind", "knn", "--out", tmp_path / "probe", "--set", "data.max_unreadable=1"
    )
    assert code == 0, err
    assert "seen as 4 channels" in err
