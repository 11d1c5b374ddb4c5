"""The quantiser against loops, the tokenizer's parts, and where a run's tokenizer comes from."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import (
    SLOW_DRIVER,
    assignments,
    cli,
    digit_folder,
    listing,
    one_line,
    settings,
    start,
    steps_done,
    train,
    wait_until,
    words,
)
from reference import images, tiny
from safetensors.torch import save_file
from torch import Tensor

from dsdmae_builtin.methods.tokenizer import ScalarQuantizer
from dsdmae_cli import checkpoint
from dsdmae_cli.artifacts.open import open_encoder
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.methods.base import StepInfo
from dsdmae_cli.runs.build import build_method
from dsdmae_cli.runs.prerequisite import frozen_part, required_folder, requirement

LEVELS = (8, 5, 3, 2)


def quantised(z: float, levels: int) -> int:
    """Which of L levels a number falls to, 0 the lowest: Mentzer et al. 2023, for one number."""
    reach = (levels - 1) * 1.001 / 2
    offset = 0.5 if levels % 2 == 0 else 0.0
    bounded = math.tanh(z + math.atanh(offset / reach)) * reach - offset
    return round(bounded) + levels // 2


def test_levels_are_those_of_loops() -> None:
    z = torch.randn(3, 50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    quantizer = ScalarQuantizer(LEVELS)
    values = quantizer(z.float())
    for index in itertools.product(range(3), range(50), range(4)):
        level = quantised(z[index].item(), LEVELS[index[2]])
        half = LEVELS[index[2]] // 2
        assert values[index].item() == pytest.approx((level - half) / half), index
    codes = quantizer.codes(values)
    digits = [[[quantised(x, n) for x, n in zip(token, LEVELS, strict=True)] for token in row] for row in z.tolist()]
    expected = [[d[0] + 8 * (d[1] + 5 * (d[2] + 3 * d[3])) for d in row] for row in digits]
    assert codes.tolist() == expected


def test_every_word_has_its_values_and_back() -> None:
    quantizer = ScalarQuantizer(LEVELS)
    every = torch.arange(math.prod(LEVELS)).unsqueeze(0)
    values = quantizer.values(every)
    assert torch.equal(quantizer.codes(values), every)
    assert len(torch.unique(values[0], dim=0)) == math.prod(LEVELS)
    assert values.min() >= -1
    assert values.max() <= 1


def test_the_gradient_passes_the_rounding() -> None:
    z = torch.tensor([[[0.3, -0.2, 0.1, 0.05]]], requires_grad=True)
    ScalarQuantizer(LEVELS)(z).sum().backward()
    reach = torch.tensor([(n - 1) * 1.001 / 2 for n in LEVELS])
    shift = torch.tensor(
        [math.atanh((0.5 if n % 2 == 0 else 0) / float(r)) for n, r in zip(LEVELS, reach, strict=True)]
    )
    half = torch.tensor([n // 2 for n in LEVELS])
    torch.testing.assert_close(z.grad, (1 - torch.tanh(z.detach() + shift).square()) * reach / half)


@torch.no_grad()
def test_words_give_back_what_the_network_restores() -> None:
    method = tiny("method.levels=[4,3]", name="tokenizer")
    clean = images(3)
    codes = method.tokenize(clean)
    assert codes.shape == (3, 16)
    assert codes.min() >= 0
    assert codes.max() < 12
    restored = method.restore(clean, method.corrupt(clean, torch.Generator())).restored
    torch.testing.assert_close(method.decode(codes), restored)
    measured = method.measure(clean)
    mse = (restored.clamp(-1, 1) - clean).square().mean(dim=(1, 2, 3))
    assert measured["psnr"] == pytest.approx(float((10 * torch.log10(4 / mse)).mean()))
    assert measured["words_used"] == len(codes.unique())
    assert 1 <= measured["perplexity"] <= measured["words_used"]


@torch.no_grad()
def test_its_words_depend_on_the_image_alone() -> None:
    method = tiny(name="tokenizer")
    method.train()(images(8, seed=1), method.corrupt(images(8), torch.Generator()))  # moves the batch norm's statistics
    method.eval()
    together = method.tokenize(images(4))
    assert torch.equal(together[:1], method.tokenize(images(4)[:1]))


@torch.no_grad()
def test_a_batch_that_is_not_finite_leaves_no_trace() -> None:
    method = tiny(name="tokenizer").train()
    clean = images(4)
    method(clean, method.corrupt(clean, torch.Generator()))
    method.after_step(StepInfo(1, 10, 5, torch.zeros(())))
    before = {name: getattr(method.norm, name).clone() for name in ("running_mean", "running_var")}
    method(clean * float("inf"), method.corrupt(clean, torch.Generator()))
    assert not method.norm.running_mean.isfinite().all()
    method.after_step(StepInfo(2, 10, 5, torch.ones(())))
    for name, tensor in before.items():
        assert torch.equal(getattr(method.norm, name), tensor), name


@pytest.mark.parametrize("levels", ["[2,5]", "[]", "[256,256,3]", "8.5"])
def test_levels_that_make_no_vocabulary_are_refused(levels: str) -> None:
    with pytest.raises(SettingsError, match=r"method\.levels"):
        settings("digits", f"method.levels={levels}", method="tokenizer")


# -- where a run's tokenizer comes from


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_folder(tmp_path_factory.mktemp("digits"), train=34, test=4)


@pytest.fixture(scope="module")
def named(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a tokenizer."""
    folder = tmp_path_factory.mktemp("named") / "words"
    result = train(digits, folder, "train.knn_every=1", method="tokenizer")
    assert set(result["measured"]) == {"psnr", "words_used", "perplexity"}
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    found, _ = checkpoint.load_newest(folder / "checkpoints")
    assert found is not None
    return found.model


def test_auto_trains_one_and_keeps_it(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    train(digits, tmp_path / "beit", method="beit")
    [kept] = (tmp_path / "share" / "dsdmae" / "tokenizers").glob("digits*px-*")
    assert (kept / "figures" / "restored.png").exists()
    written = (kept / "result.json").read_bytes()
    assert json.loads((tmp_path / "beit" / "run.json").read_text())["required"] == {"tokenizer": str(kept)}
    inside = weights(tmp_path / "beit")
    for name, tensor in weights(kept).items():
        assert torch.equal(inside[f"tokenizer.module.{name}"], tensor), name
    assert inside["tokenizer.trained"]

    train(digits, tmp_path / "cae", "train.seed=3", method="cae")  # another method and seed: the same words
    assert (kept / "result.json").read_bytes() == written
    assert json.loads((tmp_path / "cae" / "run.json").read_text())["required"] == {"tokenizer": str(kept)}
    for levels, same in (("[8,5,5,5]", True), ("[4,4]", False)):  # another vocabulary
        chosen = resolve(settings(digits, f"method.levels={levels}", method="beit").settings)
        needs = requirement(chosen)
        assert needs is not None
        assert (required_folder(chosen, needs)[0] == kept) == same


def test_a_plan_says_whether_one_is_there(digits: Path, named: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for more, said in (((), "trained first, for 1 epoch,"), ((f"method.tokenizer={named}",), str(named))):
        given = words(assignments(digits, *more, method="cae"))
        code, out, _ = cli(capfd, "pretrain", *given, "--dry-run")
        assert code == 0
        assert said in next(line for line in out.splitlines() if line.startswith("beforehand"))


def test_a_named_one_is_taken(digits: Path, named: Path, tmp_path: Path) -> None:
    train(digits, tmp_path / "run", f"method.tokenizer={named}", method="beit")
    inside = weights(tmp_path / "run")
    for name, tensor in weights(named).items():
        assert torch.equal(inside[f"tokenizer.module.{name}"], tensor), name


def test_a_run_resumes_without_its_tokenizers_folder(digits: Path, named: Path, tmp_path: Path) -> None:
    moved = tmp_path / "words"
    shutil.copytree(named, moved)
    train(digits, tmp_path / "run", f"method.tokenizer={moved}", method="beit")
    newest, _ = checkpoint.newest_first(tmp_path / "run" / "checkpoints")
    before = (newest / "model.safetensors").read_bytes()
    shutil.rmtree(newest)
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(moved)
    assert open_encoder(str(tmp_path / "run"), None, backbone=None, image_size=None, seed=0).flops
    train(digits, tmp_path / "run", f"method.tokenizer={moved}", method="beit", resume=True)
    assert (newest / "model.safetensors").read_bytes() == before


def test_wrong_tokenizers_are_one_line(
    digits: Path, named: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    encoder_run = tmp_path / "mae"
    train(digits, encoder_run, method="mae")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(named, unfinished)
    (unfinished / "result.json").unlink()
    cases = {
        str(tmp_path / "nothing"): "is no run directory",
        str(encoder_run): "is a run of a method that makes no visual words",
        str(unfinished): "has not ended; go on with: dsdmae tokenizer --resume --out",
    }
    for path, reason in cases.items():
        given = words(assignments(digits, f"method.tokenizer={path}", method="beit"))
        code, _, err = cli(capfd, "pretrain", *given, "--out", tmp_path / "run")
        assert code == 2
        assert reason in one_line(err)
        assert not (tmp_path / "run").exists()
    given = words(assignments(digits, f"method.tokenizer={named}", "backbone.patch_size=8", method="beit"))
    code, _, err = cli(capfd, "pretrain", *given, "--out", tmp_path / "run")
    assert code == 2
    assert "the tokenizer makes 4x4 tokens of 16x16 px, and the backbone 2x2 tokens of 16x16 px" in one_line(err)
    assert not (tmp_path / "run").exists()


def test_what_the_run_is_refused_by_is_said_before_one_is_trained(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An hour later it would be as wrong."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    other = tmp_path / "other.safetensors"
    save_file({"blocks.0.attn.qkv.weight": torch.zeros(6, 2)}, other)
    for wrong, said in (("train.trackers=nosuch", "tracker 'nosuch' is not installed"),
                        (f"train.start={other}", str(other))):  # fmt: skip
        given = words(assignments(digits, wrong, method="beit"))
        code, _, err = cli(capfd, "pretrain", *given, "--out", tmp_path / "run")
        assert (code, said in one_line(err)) == (2, True), err
        assert not list((tmp_path / "share").rglob("settings.toml"))


def test_an_untrained_one_says_so() -> None:
    assert not frozen_part(build_method(resolve(settings("digits", method="beit").settings))).trained


@pytest.mark.slow
def test_a_signal_while_it_is_trained_loses_nothing(digits: Path, tmp_path: Path) -> None:
    share = {"XDG_DATA_HOME": str(tmp_path / "share")}
    given = words(assignments(digits, "method.tokenizer_epochs=8", method="beit"))
    process = start("-c", SLOW_DRIVER, "pretrain", *given, "--out", tmp_path / "run", environ=share)
    kept = tmp_path / "share" / "dsdmae" / "tokenizers"
    wait_until(lambda: any(steps_done(folder) >= 3 for folder in kept.glob("digits*px-*")), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130
    assert "while the tokenizer was trained, which is saved; the same command goes on" in err
    assert not (tmp_path / "run").exists()
    again = start("-m", "dsdmae_cli", "pretrain", *given, "--out", tmp_path / "run", environ=share)
    _, err = again.communicate(timeout=240)
    assert again.returncode == 0, err
    assert "resumed at step" in err
    assert (tmp_path / "run" / "encoder.safetensors").exists()


@pytest.mark.slow
def test_two_runs_that_need_the_same_train_it_once(digits: Path, tmp_path: Path) -> None:
    share = {"XDG_DATA_HOME": str(tmp_path / "share")}
    runs: list[subprocess.Popen[str]] = []
    for name in ("beit", "cae"):
        given = words(assignments(digits, "method.tokenizer_epochs=2", method=name))
        runs.append(start("-c", SLOW_DRIVER, "pretrain", *given, "--out", tmp_path / name, environ=share))
    said = [run.communicate(timeout=240)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert sum("training the tokenizer first" in text for text in said) == 1
    kept = tmp_path / "share" / "dsdmae" / "tokenizers"
    assert len(list(kept.glob("digits*px-*"))) == 1


def test_the_command_trains_one(digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small = [a for a in assignments(digits, method="tokenizer") if not a.startswith("method.name")]
    code, out, err = cli(capfd, "tokenizer", *words(small), "--out", tmp_path / "words", "--json")
    assert code == 0, err
    assert json.loads(out)["method"] == "tokenizer"
    assert "restored.png" in {Path(name).name for name in listing(tmp_path / "words")}
    code, out, err = cli(capfd, "tokenizer", "--dry-run", "--json")
    assert code == 0, err
    assert json.loads(out)["dataset"] == "digits"
    code, _, err = cli(capfd, "tokenizer", "--set", "method.name=mae")
    assert code == 2
    assert "this command trains the method tokenizer" in one_line(err)
