"""What cannot work at all is said first: a word more or another --out would not have mended it."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import cli


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("export packaged --to timm", "timm has no architecture like backbone unet"),
        ("export packaged --to hf", "timm has no architecture like backbone unet"),
        ("export packaged --to denoiser", "needs a run's directory"),
        ("export nowhere --to timm", "there is no nowhere"),
        ("embed nowhere", "there is no nowhere"),
        ("predict packaged", "knows no classes"),
    ],
)
def test_before_where_to_write(
    command: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").touch()
    for out in ([], ["--out", "taken"]):
        code, _, err = cli(capfd, *command.split(), *out, *(["x.png"] if command.startswith("predict") else []))
        assert code == 2
        assert says in err.splitlines()[-1]


@pytest.mark.parametrize(("form", "what"), [("onnx", "a file that ends in .onnx"), ("timm", "the folder")])
def test_then_where(encoder_run: Path, form: str, what: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = cli(capfd, "export", encoder_run, "--to", form)
    assert (code, err) == (2, f"dsdmae: error: say what to write: --out PATH, {what} for --to {form}\n")
