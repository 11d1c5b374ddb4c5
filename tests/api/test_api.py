"""dsdmae from Python: the page's examples, and what a call must leave alone."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import cli, digit_folder, listing, words
from PIL import Image
from small_runs import at_step

import dsdmae_cli as dsdmae
from dsdmae_cli import checkpoint

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
SMALL: dict[str, Any] = {
    "batch_size": 8, "lr": 1e-3, "device": "cpu", "precision": "fp32",
    "backbone": {"patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2},
    "train": {"epochs": 1, "knn_every": None, "log_every": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_folder(tmp_path_factory.mktemp("digits"), train=42, test=20)


def small(**more: Any) -> dict[str, Any]:
    return SMALL | more


def states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "run"
    dsdmae.pretrain(digits, out=out, **small())
    return out


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, dsdmae_cli as dsdmae\n"
        "dsdmae.pretrain, dsdmae.denoise, dsdmae.load_encoder, dsdmae.SettingsError, dir(dsdmae)\n"
        "heavy = {'torch', 'timm', 'torchvision', 'sklearn', 'matplotlib', 'optuna'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        dsdmae.pretrian  # noqa: B018


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("default:.*next to nothing is learned")
def test_the_pages_examples_run(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, one after the other, in a folder with photos/ and photo.jpg."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 6
    shutil.copytree(digits, tmp_path / "photos")
    from sklearn.datasets import load_sample_image

    photograph = Image.fromarray(load_sample_image("china.jpg")[:64, :80])
    photograph.save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    small = {"PATCH_SIZE": "4", "EMBED_DIM": "32", "DEPTH": "1", "NUM_HEADS": "2"}  # a network for a test, not a result
    for key, value in small.items():
        monkeypatch.setenv(f"DSDMAE_BACKBONE_{key}", value)
    names: dict[str, Any] = {"photograph": photograph}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["run"]["method"] == "mae"
    assert names["found"].features.shape == (397, names["encoder"].width)
    assert names["clean"].size == (80, 64)
    assert {"runs/photos/result.json", "runs/mae/result.json", "runs/tuned/result.json"} <= listing(tmp_path)


def test_results_are_the_command_lines(
    run: Path, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same settings by two ways give the same weights, and a run of the one is resumed by the other."""
    given = (
        "--dataset",
        f"folder:{digits}",
        "--batch-size",
        "8",
        "--lr",
        "1e-3",
        "--device",
        "cpu",
        "--precision",
        "fp32",
    )
    sets = [f"backbone.{key}={value}" for key, value in SMALL["backbone"].items()]
    sets += ["train.precision=fp32", "train.epochs=1", "train.knn_every=none", "train.log_every=1"]
    code, out, err = cli(capfd, "pretrain", *given, *words(sets), "--out", tmp_path / "typed", "--json")
    assert code == 0, err
    typed, called = (checkpoint.load_weights(folder / "encoder.safetensors") for folder in (tmp_path / "typed", run))
    assert checkpoint.weights_sha256(typed) == checkpoint.weights_sha256(called)
    (tmp_path / "typed" / "result.json").unlink()
    resumed = dsdmae.pretrain(out=tmp_path / "typed", resume=True)
    assert (resumed["steps"], resumed["final"]) == (json.loads(out)["steps"], json.loads(out)["final"])


@pytest.mark.filterwarnings("default:.*next to nothing is learned")
def test_a_call_leaves_random_states_and_signals_alone(run: Path, digits: Path, tmp_path: Path) -> None:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    before, handler = states(), signal.getsignal(signal.SIGINT)
    dsdmae.pretrain(digits, out=tmp_path / "run", **small())
    dsdmae.finetune(run, epochs=1, batch_size=8, out=tmp_path / "tuned", device="cpu")
    dsdmae.probe(run, kind="linear", epochs=2, probe={"learning_rates": [0.1]}, out=tmp_path / "probed", device="cpu")
    dsdmae.embed(run, device="cpu", cache=False)
    dsdmae.load_encoder("scratch", backbone={"name": "vit-tiny", "depth": 1}, image_size=32, seed=5)
    dsdmae.denoise(np.full((20, 30), 90, np.uint8))
    assert states() == before
    assert signal.getsignal(signal.SIGINT) is handler


def test_it_works_in_a_thread(run: Path, digits: Path, tmp_path: Path) -> None:
    done: dict[str, Any] = {}

    def work() -> None:
        done["trained"] = dsdmae.pretrain(digits, out=tmp_path / "run", **small())
        done["probed"] = dsdmae.probe(run, kind="knn", probe={"k": [1, 3]}, out=tmp_path / "probed", device="cpu")
        done["clean"] = dsdmae.denoise(np.full((20, 30, 3), 90, np.uint8))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=240)
    assert done["trained"]["steps"] == 5
    assert 0 <= done["probed"]["top1"] <= 1
    assert done["clean"].shape == (20, 30, 3)


def test_ctrl_c_saves_and_raises(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        at_step(patched, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(dsdmae.RunInterrupted, match="saved at step 2 of 5"):
            dsdmae.pretrain(digits, out=tmp_path / "run", **small())
    assert dsdmae.pretrain(out=tmp_path / "run", resume=True)["steps"] == 5


def test_changes_are_accepted_where_that_is_said(run: Path, tmp_path: Path) -> None:
    """A person changed settings.toml by hand, and goes on by it."""
    out = shutil.copytree(run, tmp_path / "run")
    settings = out / "settings.toml"
    assert "log_every = 1\n" in settings.read_text()
    settings.write_text(settings.read_text().replace("weight_decay = 0.05", "weight_decay = 0.01"))
    (out / "result.json").unlink()
    with pytest.raises(dsdmae.CheckpointError, match=r"is not what the run was trained by: optim\.weight_decay"):
        dsdmae.pretrain(out=out, resume=True)
    with pytest.warns(dsdmae.DsdmaeWarning, match="it goes on by the file"):
        assert dsdmae.pretrain(out=out, resume=True, accept_changes=True)["steps"] == 5
    with pytest.raises(dsdmae.SettingsError, match="about a run that goes on"):
        dsdmae.pretrain("digits", accept_changes=True)


def test_what_fails_before_the_first_step_leaves_no_directory(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("a plugin's bug")

    with monkeypatch.context() as patched:
        patched.setattr("dsdmae_cli.recipes.pretrain.build_method", broken)
        with pytest.raises(KeyError):
            dsdmae.pretrain(digits, out=tmp_path / "run", **small())
    assert not (tmp_path / "run").exists()
    with monkeypatch.context() as patched:
        patched.setattr("dsdmae_cli.engine.Trainer._step", broken)
        with pytest.raises(KeyError):
            dsdmae.pretrain(digits, out=tmp_path / "run", **small())
    assert not (tmp_path / "run").exists()
    assert dsdmae.pretrain(digits, out=tmp_path / "run", **small())["steps"] == 5


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: dsdmae.pretrain("digits", mask_ratio=1.5),
            r"method.mask_ratio = 1.5 \(from argument mask_ratio\) is not allowed",
        ),
        (lambda: dsdmae.pretrain("digits", epoch=3), r"pretrain has no argument 'epoch' \(did you mean epochs\?\)"),
        (lambda: dsdmae.pretrain("digits", optim={"weight": 1}), r"unknown setting optim.weight"),
        (lambda: dsdmae.pretrain(Path("nowhere")), "nowhere does not exist"),
        (lambda: dsdmae.pretrain(resume=True), "--resume needs the run's directory"),
        (lambda: dsdmae.probe("nowhere"), "there is no nowhere"),
        (lambda: dsdmae.denoise("nowhere.png"), "nowhere.png"),
        (lambda: dsdmae.denoise(np.zeros((4, 4, 7), np.uint8)), "is no picture"),
        (lambda: dsdmae.denoise(np.zeros((4, 4), np.uint8), strength=2), "strength = 2 is not allowed"),
        (lambda: dsdmae.load_encoder("nowhere"), "there is no nowhere"),
        (lambda: dsdmae.load_encoder("packaged", image_size=-8), "image_size = -8 is not allowed; it takes a number"),
        (lambda: dsdmae.load_encoder("packaged", image_size="64"), "image_size = '64' is not allowed"),  # type: ignore[arg-type]
        (lambda: dsdmae.embed("packaged", "digits", image_size=(8, 8, 8)), r"\(8, 8, 8\) is not allowed"),  # type: ignore[arg-type]
        (lambda: dsdmae.embed("packaged", "digits", split="val"), "split = 'val' is not allowed; it takes train, test"),
        (lambda: dsdmae.embed("packaged", "digits", precision="fp8"), "train.precision = 'fp8' is not allowed"),
        (lambda: dsdmae.pretrain({"dataset": "digits", "flop": 1}), "unknown setting data.flop"),
        (lambda: dsdmae.pretrain("digits", from_="nowhere"), "there is no nowhere"),
    ],
)
def test_a_wrong_argument_is_one_sentence(call: Any, said: str) -> None:
    with pytest.raises(dsdmae.DsdmaeError, match=said) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_a_size_is_a_number_of_any_kind(digits: Path) -> None:
    for size in (np.int64(32), [32, 32], (32, 32)):
        assert dsdmae.load_encoder("packaged", image_size=size).image_size == 32  # type: ignore[arg-type]


def test_the_images_may_be_a_table(run: Path, digits: Path) -> None:
    """As every other section; --from has another name in Python, where `from` is a word of the language."""
    found = dsdmae.embed(run, {"dataset": digits, "interpolation": "bilinear"}, split="test", cache=False)
    assert len(found.names) == 20


def test_pictures_come_back_as_they_were_given(tmp_path: Path) -> None:
    from sklearn.datasets import load_sample_image

    clean = load_sample_image("flower.jpg")[100:164, 200:296]
    noisy = (clean + np.random.default_rng(0).normal(0, 25, clean.shape)).clip(0, 255).astype(np.uint8)
    restored = dsdmae.denoise(noisy)
    assert (restored.dtype, restored.shape) == (noisy.dtype, noisy.shape)
    error = [float(np.mean((a.astype(float) - clean) ** 2)) for a in (noisy, restored)]
    assert error[1] < 0.4 * error[0]
    image = Image.fromarray(noisy)
    assert np.array_equal(np.asarray(dsdmae.denoise(image)), restored)
    image.save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(dsdmae.denoise(tmp_path / "a.png")), restored)
    grey = noisy[..., 0]
    assert dsdmae.denoise(grey).shape == grey.shape
    deep = noisy.astype(np.uint16) * 257
    assert dsdmae.denoise(deep).dtype == np.uint16
    assert np.array_equal(dsdmae.denoise(noisy, strength=0), noisy)


def test_warnings_are_pythons(digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(digits, tmp_path / "images")
    next((folder / "train").rglob("*.png")).write_bytes(b"no picture")
    with pytest.warns(dsdmae.DsdmaeWarning, match="skipped an unreadable image"):
        dsdmae.pretrain(folder, out=tmp_path / "run", **small())
    assert capfd.readouterr() == ("", "")
    with pytest.warns(dsdmae.DsdmaeWarning):
        dsdmae.pretrain(folder, out=tmp_path / "told", progress=True, **small())
    assert f"run       {tmp_path / 'told'}" in capfd.readouterr().err
