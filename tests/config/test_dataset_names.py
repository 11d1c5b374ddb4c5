"""A dataset is named by its plugin, by folder:PATH or by the path alone, and a near miss says so."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from helpers import cli, one_line

from dsdmae_cli import plugins
from dsdmae_cli.config.compose import compose
from dsdmae_cli.config.schema import FINETUNE, PRETRAIN, PROBE, Schema
from dsdmae_cli.config.use import given
from dsdmae_cli.errors import PluginError
from dsdmae_cli.plugins import spelled_out


@pytest.mark.parametrize("schema", [PRETRAIN, PROBE, FINETUNE])
def test_a_path_alone_is_a_folder_wherever_settings_come_from(schema: Schema[Any], tmp_path: Path) -> None:
    path, whole = str(tmp_path), f"folder:{tmp_path}"
    (tmp_path / "own.toml").write_text(f'[data]\ndataset = "{path}"\n')
    for place in (
        {"flags": {"data.dataset": path}},
        {"flags": {"data.dataset": whole}},
        {"assignments": [f"data.dataset={path}"]},
        {"config": tmp_path / "own.toml"},
        {"environ": {"DSDMAE_DATA_DATASET": path}},
    ):
        assert compose(schema, **{"environ": {}, **place}).settings.data.dataset == whole
    data, _ = given({"data.dataset": path}, None)
    assert data is not None
    assert data.dataset == whole


def test_a_name_goes_before_a_folder_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert spelled_out("dataset", "digits") == "digits"
    assert spelled_out("dataset", "./digits") == "folder:./digits"
    assert spelled_out("dataset", ".") == "folder:."
    for odd in ("", " ", "no\0thing", "x" * 5000, "~nobody-of-this-name/x", "nothing"):
        assert spelled_out("dataset", odd) == odd


def test_a_near_miss_names_both_readings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name, parts in {
        "cifr10": ("did you mean cifar10?", "no folder or archive ./cifr10", "imagenet"),
        "./photo": ("no folder or archive ./photo", "did you mean photos?"),
        f"..{os.sep}nowhere{os.sep}x": ("no folder or archive ../nowhere/x",),
    }.items():
        with pytest.raises(PluginError) as caught:
            compose(PRETRAIN, flags={"data.dataset": name}, environ={})
        message = str(caught.value)
        assert all(part in message for part in (*parts, "--dataset")), message


def test_a_plugin_with_a_distribution_of_its_own_is_told_how_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_entries", lambda _kind: [])
    with pytest.raises(PluginError, match=r"docs/datasets\.md says how: pip install \./plugins/dsdmae-hf"):
        plugins.find("dataset", "hf:beans")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("train-0.parquet", "or --dataset parquet:{path}, whose images are in tables such as train-0.parquet"),
        ("000.tar.gz", "holds no images but 1 compressed archive (000.tar.gz), which cannot be read in place"),
        ("000.tgz", "decompress them to .tar (gunzip, unxz, unzstd), or name one of them alone"),
    ],
)
def test_a_folder_of_what_is_named_otherwise(
    name: str, says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(b"any")
    code, _, err = cli(capfd, "pretrain", tmp_path, "--dry-run")
    assert code == 2
    assert says.format(path=tmp_path) in one_line(err)


def test_the_argument_of_pretrain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.toml").write_text("")
    for command in ("pretrain", "tokenizer"):
        code, _, err = cli(capfd, command, "images", "--dry-run")
        assert (code, "images holds no images" in one_line(err)) == (2, True)
    code, _, err = cli(capfd, "pretrain", "images", "--dataset", "digits")
    assert (code, "two datasets are named, images and --dataset digits" in one_line(err)) == (2, True)
    code, _, err = cli(capfd, "pretrain", "run", "--dry-run")
    assert (code, "run is the directory of a run" in one_line(err)) == (2, True)
