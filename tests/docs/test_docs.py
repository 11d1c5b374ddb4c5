"""Every command in README.md and docs/ runs: what trains as --dry-run, the rest as it stands. Links lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import digit_folder, identity_onnx
from PIL import Image
from safetensors.torch import load_file

from dsdmae_cli.__main__ import _run
from dsdmae_cli.artifacts import onnx
from dsdmae_cli.artifacts.packaged import PHOTOGRAPHS
from dsdmae_cli.runs import plan

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
# Installs, downloads or starts other programs; .ci/run and the tests of those parts run them.
_ELSEWHERE = ("pip ", "pipx ", "uv ", "torchrun ", "python ", "pytest", "cd ", "export ", "tar ", "git ")


def commands() -> list[str]:
    found: list[str] = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [line.strip() for line in lines if line.strip() and not line.startswith(("#", *_ELSEWHERE))]
    return sorted(set(found))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for index in range(600):
        pixels = noise.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png", compress_level=0)
    return folder


def _unexported(
    module: Any, compared: Any, out: Path, advice: str, *, metadata: dict[str, str], **rest: Any
) -> tuple[float, dict[str, list[int]]]:
    """In place of torch's exporter, which tests/pictures/test_engines.py has at work."""
    identity_onnx(out, metadata)
    return 0.0, {"restored": [3, 16, 16]}


def _marked(command: str) -> Any:
    """What measures takes half a minute, and runs with the slow tests."""
    return pytest.param(command, marks=pytest.mark.slow) if command.startswith("dsdmae bench ") else command


@pytest.mark.parametrize("command", [_marked(command) for command in commands()])
def test_documented_command(
    command: str,
    images: Path,
    encoder_run: Path,
    tuned_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = shlex.split(re.sub(r"^([A-Z_]+=\S+ |taskset -c \d+ )+", "", command), comments=True)
    assert words[0] == "dsdmae", f"a documented command that no test runs: {command}"
    arguments = [re.sub(r"^folder:\S+$", f"folder:{images}", word) for word in words[1:]]
    arguments = [str(images) if word == "PATH" else word for word in arguments]
    for word in arguments:
        if word.endswith(".pth"):
            torch.save({"model": load_file(encoder_run / "encoder.safetensors")}, tmp_path / word)
    monkeypatch.chdir(tmp_path)
    if arguments[0] in ("pretrain", "tokenizer", "ablate"):
        if "--resume" in arguments:
            return  # test_resume.py resumes a real run
        arguments = [a for a in arguments if a != "--dry-run"] + ["--dry-run"]
        monkeypatch.setattr(plan, "_TIMED_GFLOP", 0)  # how long it would take is asked in tests/runs
    if arguments[0] in ("denoise", "predict", "restore"):
        for name in ("photo.png", "noisy.png", "clean.png"):
            (tmp_path / name).write_bytes((images / "0.png").read_bytes())
    if "onnx" in command:
        monkeypatch.setattr(onnx, "write_checked", _unexported)
        (tmp_path / "mine.safetensors").write_bytes(PHOTOGRAPHS.read())
    of_runs = ("compare", "embed", "export", "predict", "probe", "finetune", "restore", "worth")
    if arguments[0] in of_runs or "--from" in arguments:
        (tmp_path / "RUN").symlink_to(encoder_run)
        (tmp_path / "OTHER_RUN").symlink_to(encoder_run)
        (tmp_path / "FINETUNE_RUN").symlink_to(tuned_run)
    if arguments[0] in ("probe", "finetune"):
        arguments += ["--dry-run", "--batch-size", "8"]
    if arguments[0] == "worth":
        labelled = digit_folder(tmp_path / "labelled", train=40, test=10)
        arguments = [re.sub(r"^folder:\S+$", f"folder:{labelled}", word) for word in arguments] + ["--dry-run"]
    if arguments[0] == "ablate":  # trials are judged by labels
        for index in range(40):
            (tmp_path / "labelled" / f"class-{index % 2}").mkdir(parents=True, exist_ok=True)
            shutil.copy(images / f"{index}.png", tmp_path / "labelled" / f"class-{index % 2}")
        arguments = [word.replace(f"folder:{images}", f"folder:{tmp_path / 'labelled'}") for word in arguments]
    if arguments[:2] == ["config", "check"]:
        assert _run(["config", "show"]) == 0
        Path(arguments[2]).write_text(capsys.readouterr().out)
    assert _run(arguments) == 0, capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing
