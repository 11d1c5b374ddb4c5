"""Wherever a run or a file is named, a near miss is answered with what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import cli
from PIL import Image

from dsdmae_cli.runs.rundir import SETTINGS, default_folder


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run among those that have no --out, and files in the current folder."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    run = default_folder() / "first-photos"
    assert tmp_path in run.parents
    run.mkdir(parents=True)
    (run / SETTINGS).write_text("")
    (tmp_path / "here").mkdir()
    Image.new("RGB", (24, 24)).save(tmp_path / "here" / "picture.png")
    for name in ("weights.safetensors", "own.toml", "labels.csv", "result.json"):
        (tmp_path / "here" / name).touch()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        ("compare first-photo", "first-photos"),
        ("compare resul.json", "result.json"),
        ("runs show first-photo", "first-photos"),
        ("runs rm first-photo", "first-photos"),
        ("probe first-photo", "first-photos"),
        ("worth first-photo", "first-photos"),
        ("export first-photo --to timm --out out", "first-photos"),
        ("predict first-photo picture.png", "first-photos"),
        ("restore first-photo picture.png", "first-photos"),
        ("restore first-photos pictur.png", "picture.png"),
        ("denoise --run first-photo picture.png", "first-photos"),
        ("denoise --weights weight.safetensors picture.png", "weights.safetensors"),
        ("denoise --reference pictur.png picture.png", "picture.png"),
        ("denoise pictur.png", "picture.png"),
        ("pretrain --resume --out ../her", "../here"),
        ("pretrain --config own.tml", "own.toml"),
        ("pretrain --from first-photo", "first-photos"),
        ("pretrain ../her", "here"),
        ("pretrain . --labels label.csv", "labels.csv"),
        ("pretrain --method beit --set method.tokenizer=first-photo", "first-photos"),
    ],
)
def test_a_near_miss(command: str, meant: str, there: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = cli(capfd, *command.split())
    assert code == 2
    assert f"(did you mean {meant}?)" in err.splitlines()[-1]
