"""`dsdmae doctor`, `dsdmae cache` and what `dsdmae config` says of one key and of flags."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from helpers import cli, one_line
from platformdirs import user_cache_path

from dsdmae_cli import doctor, kept, plugins
from dsdmae_cli.data import shard_index
from dsdmae_cli.doctor import machine, program
from dsdmae_cli.evaluation.features import cache_folder
from dsdmae_cli.pictures.engines import onnx_folder
from dsdmae_cli.plugins import BrokenPlugin

Do = Callable[..., tuple[int, str, str]]


@pytest.fixture
def do(capfd: pytest.CaptureFixture[str]) -> Do:
    return lambda *given: cli(capfd, *given)


def found(name: str) -> doctor.Check:
    [check] = [check for check in doctor.checks() if check.name == name]
    return check


# doctor


def test_doctor_says_what_there_is(do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSDMAE_TEST_DATA", raising=False)
    code, out, err = do("doctor", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    checks = {check["name"]: check for check in told["checks"]}
    assert told["ok"] is True
    assert checks.keys() >= {"dsdmae", "python", "libraries", "torch", "cpu", "precision", "threads", "memory", "runs",
                             "cache", "plugins", "extra heif", "extra onnx", "extra tiff"}  # fmt: skip
    assert torch.__version__ in checks["torch"]["found"]
    assert not {"extra dev", "extra test"} & checks.keys()
    for check in checks.values():
        assert check["state"] in ("ok", "note", "warning")
        assert bool(check["todo"]) == (check["state"] != "ok")


def test_doctor_in_words(do: Do) -> None:
    code, out, err = do("doctor")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split()[:2] == ["ok", "dsdmae"]
    found = [line for line in lines if line.split()[0] in ("ok", "note", "warning", "wrong")]
    assert len(found) > 10
    assert all(line[27:29] == "  " and line[29].strip() for line in found), "one column"
    assert "\x1b" not in out


def test_what_must_be_mended_is_wrong_and_has_exit_code_1(do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = BrokenPlugin(
        kind="method", name="wavelets", distribution="dsdmae-wavelets", version="0.3", reason="no module named pywt"
    )
    real = plugins.discover
    monkeypatch.setattr(plugins, "discover", lambda kind: [*real(kind), *([broken] if kind == "method" else [])])
    code, out, _ = do("doctor", "--json")
    assert code == 1
    told = json.loads(out)
    assert told["ok"] is False
    [check] = [check for check in told["checks"] if check["state"] == "wrong"]
    assert check["name"] == "plugin wavelets"
    assert "no module named pywt" in check["found"]
    assert "dsdmae-wavelets" in check["todo"]
    code, out, _ = do("doctor")
    assert (code, out.splitlines()[-1].startswith("1 wrong")) == (1, True)


def test_libraries_that_are_missing_or_old(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "scipy":
            raise metadata.PackageNotFoundError(name)
        return "0.1" if name == "timm" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    check = found("libraries")
    assert check.state == "wrong"
    assert "scipy is missing" in check.found
    assert "timm is 0.1, and >=" in check.found


def test_a_torch_that_cannot_be_imported_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    checks = {check.name: check for check in doctor.checks()}
    assert checks["torch"].state == "wrong"
    assert "cannot be imported" in checks["torch"].found
    assert checks["devices"].state == "wrong"
    assert checks["runs"].state == "ok"


def test_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    from dsdmae_cli import runtime

    for able, times, state, says in (
        (True, 8.0, "ok", "this CPU multiplies bf16, a matrix product in bf16 is 8 times as fast"),
        (True, 0.5, "warning", "takes 2 times as long"),
        (False, 0.25, "note", "neither AMX nor AVX512_BF16"),
    ):
        monkeypatch.setattr(runtime, "cpu_multiplies_bf16", lambda able=able: able)
        monkeypatch.setattr(machine, "faster_in_bf16", lambda times=times: times)
        check = found("precision")
        assert (check.state, says in check.found) == (state, True), check
        assert check.found.startswith("bf16" if able else "fp32")


@pytest.mark.parametrize(("threads", "state", "todo"), [(8, "warning", "=4"), (1, "note", "=4"), (4, "ok", "")])
def test_threads(threads: int, state: str, todo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    check = found("threads")
    assert (check.state, todo in check.todo) == (state, True)


def test_a_small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**26))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**29, total=2**30))
    checks = {check.name: check for check in doctor.checks()}
    assert checks["memory"].state == checks["runs"].state == checks["cache"].state == "warning"
    assert "0.5 of 1.0 GiB free" in checks["memory"].found
    assert "dsdmae cache clear" in checks["cache"].todo
    if Path("/dev/shm").is_dir():
        assert checks["/dev/shm"].state == "warning"
        assert "--shm-size" in checks["/dev/shm"].todo


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert found("runs").state == "wrong"
    assert "Read-only file system" in found("runs").found


def test_forgotten_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSDMAE_TRAIN_EPOCHS", "5")
    assert (found("environment").state, "DSDMAE_TRAIN_EPOCHS" in found("environment").found) == ("note", True)
    monkeypatch.setenv("DSDMAE_TRIAN_EPOCHS", "5")
    assert found("environment").state == "wrong"
    assert "DSDMAE_TRIAN_EPOCHS" in found("environment").found


@pytest.mark.parametrize(
    ("prefix", "command"),
    [("/home/a/.local/share/pipx/venvs/dsdmae", "pipx install --force 'dsdmae[tiff]'"),
     ("/home/a/.local/share/uv/tools/dsdmae", "uv tool install --force 'dsdmae[tiff]'"),
     ("/home/a/venv", "pip install 'dsdmae[tiff]'")],
)  # fmt: skip
def test_the_command_fits_how_it_was_installed(prefix: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", prefix)
    monkeypatch.setattr(program, "_clone", lambda: None)
    assert program.install("tiff") == command


@pytest.mark.parametrize(
    ("prefix", "pip", "command"),
    [
        ("/home/me/.local/pipx/venvs/dsdmae", True, "pipx runpip dsdmae install -e 'mine[test]'"),
        ("/home/me/.local/share/uv/tools/dsdmae", False,
         "uv pip install --python '/home/me/.local/share/uv/tools/dsdmae' -e 'mine[test]'"),
        ("/home/me/venv", True, "pip install -e 'mine[test]'"),
    ],
)  # fmt: skip
def test_a_plugin_goes_where_the_program_is(
    prefix: str, pip: bool, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", prefix)
    monkeypatch.setattr(program, "find_spec", lambda name: object() if pip else None)
    assert program.install_beside(Path("mine")) == command


# cache


def fill(name: str, days_ago: float = 0.0) -> Path:
    path = user_cache_path("dsdmae") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(1000))
    at = time.time() - 86400 * days_ago
    os.utime(path, (at, at))
    return path


def test_the_folders_are_those_that_the_program_fills() -> None:
    folders = {cache_folder(), onnx_folder(), shard_index.cache_folder()}
    assert folders == {thing.path for thing in kept.listed() if not thing.when_named}
    assert user_cache_path("dsdmae") / "datasets" in {thing.path for thing in kept.listed()}


def test_the_list_of_what_is_kept(do: Do, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    (tmp_path / "fontlist.json").write_bytes(bytes(10))
    fill("features/a.safetensors")
    fill("features/b.safetensors", 3)
    fill("newer/thing")
    told = {thing["name"]: thing for thing in json.loads(do("cache", "--json")[1])["kept"]}
    assert (told["features"]["files"], told["features"]["bytes"]) == (2, 2000)
    assert (told["onnx"]["files"], told["onnx"]["used"]) == (0, None)
    assert told["newer"]["own"] is True
    assert (told["fonts"]["own"], told["fonts"]["bytes"]) == (False, 10)
    out = do("cache")[1]
    assert "features    2.0 kB  2 files, the newest " in out
    assert "shared, never cleared from here" in out


def test_clearing_asks_and_is_exact(do: Do, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    old, new, other = fill("features/old", 40), fill("features/new"), fill("onnx/x.onnx", 40)
    code, _, err = do("cache", "clear")
    assert (code, "say --yes" in one_line(err)) == (2, True)
    assert do("cache", "clear", "features", "--older-than", "30", "--yes")[0] == 0
    assert [path.exists() for path in (old, new, other)] == [False, True, True]
    code, _, err = do("cache", "clear", "fonts", "--yes")
    assert (code, "is not the program's alone" in one_line(err)) == (2, True)
    code, _, err = do("cache", "clear", "feature", "--yes")
    assert (code, "(did you mean features?)" in one_line(err)) == (2, True)
    linked = tmp_path / "mine"
    linked.write_text("precious")
    (user_cache_path("dsdmae") / "features" / "link").symlink_to(linked)
    code, _, err = do("cache", "clear", "--yes")
    assert (code, "features: deleted 1 file, 1.0 kB" in err) == (0, True)
    assert not new.exists()
    assert not other.exists()
    assert linked.read_text() == "precious"
    # What a person has put there, and what another version knows, is deleted only by name.
    archive, unknown = fill("datasets/imagenet/ILSVRC2012_img_train.tar"), fill("newer/thing")
    assert do("cache", "clear", "--yes") == (0, "", "nothing to clear\n")
    assert archive.exists()
    assert unknown.exists()
    assert "cleared only by name" in do("cache")[1]
    assert do("cache", "clear", "datasets", "--yes")[0] == 0
    assert not archive.exists()


# config


def test_one_key(do: Do) -> None:
    out = do("config", "describe", "train.log_every")[1]
    assert "train.log_every" in out
    assert "  takes     a whole number from 1 up" in out
    assert "DSDMAE_TRAIN_LOG_EVERY" in out
    out = do("config", "describe", "train.epochs")[1]
    assert "train.epochs of dsdmae pretrain" in out
    assert "train.epochs of dsdmae probe" in out
    assert out.count("--epochs (") == 1
    # One that plugins differ in is told for each of them.
    assert do("config", "describe", "method.mask_ratio")[1].count("default") > 2
    code, _, err = do("config", "describe", "train.epoch")
    assert (code, "no setting train.epoch (did you mean epochs?)" in one_line(err)) == (2, True)
    code, _, err = do("config", "describe", "trian.epochs")
    assert (code, "no section 'trian' (did you mean train?)" in one_line(err)) == (2, True)
    code, _, err = do("config", "describe", "train.")
    assert (code, "there is no setting train." in one_line(err)) == (2, True)


def test_show_takes_the_flags_of_pretrain(do: Do) -> None:
    code, out, err = do("config", "show", "--method", "mae", "--epochs", "7", "--sources")
    assert code == 0, err
    shown = tomllib.loads(out)
    assert (shown["method"]["name"], shown["train"]["epochs"]) == ("mae", 7)
    [line] = [line for line in out.splitlines() if line.startswith("epochs = 7")]
    assert line.endswith("# --epochs")
    code, _, err = do("config", "show", "--for", "finetune", "--method", "mae")
    assert (code, "--method sets method.name, which `dsdmae finetune` does not have" in one_line(err)) == (2, True)
    code, out, _ = do("config", "show", "--for", "probe", "--epochs", "7")
    assert (code, tomllib.loads(out)["train"]["epochs"]) == (0, 7)
    code, _, err = do("config", "show", "--epochs", "0")
    assert (code, "--epochs" in one_line(err)) == (2, True)


def test_show_of_weights_to_begin_with(do: Do, encoder_run: Path) -> None:
    code, out, err = do("config", "show", "--from", encoder_run, "--sources")
    assert code == 0, err
    settings = tomllib.loads((encoder_run / "settings.toml").read_text())
    assert tomllib.loads(out)["backbone"]["embed_dim"] == settings["backbone"]["embed_dim"]
