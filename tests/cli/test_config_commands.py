"""`dsdmae config`: show, check, presets and describe."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Done, Run, preset_names, process

from dsdmae_cli import plugins
from dsdmae_cli.config.compose import load
from dsdmae_cli.config.describe import key_of
from dsdmae_cli.config.schema import FINETUNE, SECTIONS, section_class

REFERENCE = Path(__file__).parents[2] / "docs" / "settings.md"
REGENERATE = "(head -n 2 docs/settings.md; echo; dsdmae config describe) > new.md && mv new.md docs/settings.md"


# dsdmae config show


@pytest.mark.parametrize("preset", [*preset_names(), "cae,imagenet,vit-base"])
@pytest.mark.parametrize("words", [[], ["--sources"]], ids=["plain", "sources"])
def test_shown_settings_are_a_valid_configuration(preset: str, words: list[str], run: Run, tmp_path: Path) -> None:
    shown = run("config", "show", "--preset", preset, *words)
    assert (shown.code, shown.err) == (0, "")
    assert set(tomllib.loads(shown.out)) == set(SECTIONS)
    file = tmp_path / "shown.toml"
    file.write_text(shown.out, encoding="utf-8")
    assert run("config", "check", file) == Done(0, f"{file} is valid\n", "")
    again = run("config", "show", "--config", file)
    assert tomllib.loads(again.out) == tomllib.loads(shown.out)


def test_shown_settings_are_resolved(run: Run) -> None:
    values = tomllib.loads(run("config", "show", "--preset", "cifar10", "--preset", "dsdmae,vit-tiny").out)
    assert values["optim"]["lr"] == pytest.approx(1.2e-3)
    assert values["optim"]["warmup_epochs"] == pytest.approx(20)
    assert values["data"]["crop_scale"] == [0.2, 1.0]


def test_sources_are_shown_beside_each_value(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text("[train]\nknn_images = 100\n")
    monkeypatch.setenv("DSDMAE_TRAIN_SEED", "7")
    shown = run("config", "show", "--config", config, "--set", "optim.weight_decay=0.1", "--sources")
    lines = {line.split(" = ")[0]: line.partition("  # ")[2] or line.rpartition("# ")[2] for line in
             shown.out.splitlines() if " = " in line}  # fmt: skip
    assert len(lines) == sum(len(table) for table in tomllib.loads(shown.out).values()) - 1  # both plugins' "name"
    assert lines["knn_images"].strip() == str(config)
    assert lines["seed"].strip() == "environment variable DSDMAE_TRAIN_SEED"
    assert lines["weight_decay"].strip() == "--set optim.weight_decay=0.1"
    assert lines["dataset"].strip() == "preset quick"
    assert lines["keep_checkpoints"].strip() == "default"
    assert lines["warmup_epochs"].strip() == "default (auto)"


def test_what_a_method_decides_names_it(run: Run) -> None:
    chosen = ("--set", "data.dataset=cifar10", "--set", "method.name=mocov3")
    shown = json.loads(run("config", "show", *chosen, "--sources", "--json").out)
    assert shown["settings"]["data"]["crop_scale"] == [0.08, 1.0]
    assert shown["sources"]["data.crop_scale"] == "default (auto, by mocov3)"
    assert shown["sources"]["data.flip"] == "default (auto)"


def test_settings_as_json(run: Run) -> None:
    shown = json.loads(run("config", "show", "--json").out)
    assert shown == {"settings": tomllib.loads(run("config", "show").out)}
    assert shown["settings"]["train"]["epochs"] == load(environ={}).settings.train.epochs
    sources = json.loads(run("config", "show", "--json", "--sources").out)["sources"]
    assert sources["train.epochs"] == "preset quick"


@pytest.mark.parametrize("options", ["{drop_rate=0.1}", "{a={b={c=1}},l=[1,[2,{d=3}]],s='a  # b','an odd key'=true}"])
def test_a_backbones_options_are_shown_as_given(options: str, run: Run, tmp_path: Path) -> None:
    words = ["--set", "backbone.name=timm:convnext_atto", "--set", f"backbone.options={options}"]
    expected = tomllib.loads(f"options = {options}")["options"]
    for more in ([], ["--sources"]):
        shown = run("config", "show", *words, *more)
        assert tomllib.loads(shown.out)["backbone"]["options"] == expected
        file = tmp_path / "shown.toml"
        file.write_text(shown.out)
        assert run("config", "check", file).code == 0
    assert json.loads(run("config", "show", *words, "--json").out)["settings"]["backbone"]["options"] == expected


def test_options_that_json_cannot_hold_are_no_traceback(run: Run) -> None:
    words = ["--set", "backbone.name=timm:convnext_atto", "--set", "backbone.options={a=2020-01-01}"]
    done = run("config", "show", *words, "--json")
    assert done.code == 2 or json.loads(done.out)["settings"]["backbone"]["options"] == {"a": "2020-01-01"}


# dsdmae config check


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[train]\nepochs = 1\nepochs = 2\n", "is not valid TOML"),
        (b"epochs: 5", "is not valid TOML"),
        (bytes(range(256)), "is not valid TOML"),
        (b"[train]\nepoch = 5\n", "did you mean epochs?"),
        (b"[trian]\nepochs = 5\n", "did you mean train?"),
        (b'preset = "quik"\n', "did you mean quick?"),
        (b'[data]\ndataset = "nope"\n', "there is cifar10"),
        (b"[train]\nepochs = 3\n[optim]\nwarmup_epochs = 3\n", "must be below train.epochs"),
    ],
    ids=["duplicate", "no toml", "binary", "key", "section", "preset", "plugin", "rule"],
)
def test_a_bad_file_is_refused(content: bytes, says: str, refused: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(content)
    assert says in refused("config", "check", file)


def test_a_file_that_is_not_there_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    assert str(tmp_path / "missing.toml") in refused("config", "check", tmp_path / "missing.toml")
    assert "irectory" in refused("config", "check", tmp_path)


def test_a_file_that_may_not_be_read_is_refused(refused: Callable[..., str], run: Run, nobody: Path) -> None:
    file = nobody / "mine.toml"
    file.write_text("[train]\nepochs = 5\n")
    assert run("config", "check", file).code == 0
    file.chmod(0)
    assert "Permission denied" in refused("config", "check", file)
    assert "Permission denied" in refused("config", "show", "--config", file)


def test_a_file_in_a_locked_folder_is_refused(refused: Callable[..., str], run: Run, nobody: Path) -> None:
    locked = nobody / "locked"
    locked.mkdir()
    (locked / "mine.toml").write_text("[train]\nepochs = 5\n")
    assert run("config", "check", locked / "mine.toml").code == 0
    locked.chmod(0)
    try:
        assert "Permission denied" in refused("config", "show", "--config", locked / "mine.toml")
        assert "Permission denied" in refused("config", "check", locked / "mine.toml")
    finally:
        locked.chmod(0o755)


@pytest.mark.skipif(not Path("/dev/stdin").exists(), reason="no /dev/stdin here")
def test_settings_can_be_checked_from_a_pipe() -> None:
    words = process("config", "check", "/dev/stdin")
    good = subprocess.run(words, input="[train]\nepochs = 5\n", capture_output=True, text=True)
    assert (good.returncode, good.stderr) == (0, "")
    bad = subprocess.run(words, input="[train]\nepochs = 0\n", capture_output=True, text=True)
    assert bad.returncode == 2
    assert "train.epochs = 0" in bad.stderr


def test_a_check_is_of_the_file_alone(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[train]\nepochs = 5\n")
    monkeypatch.setenv("DSDMAE_TRAIN_EPOCHS", "zero")
    assert run("config", "check", file).code == 0


# dsdmae config presets, describe


def test_presets_are_listed_one_a_line(run: Run) -> None:
    done = run("config", "presets")
    assert [line.split()[0] for line in done.out.splitlines()] == [*preset_names(), *preset_names(FINETUNE)]
    kinds = {line.split()[0]: line.split()[1] for line in done.out.splitlines()[: len(preset_names())]}
    assert {kinds[name] for name in ("quick", "cifar10", "vit-tiny", "mae")} == {"recipe", "dataset", "size", "method"}
    [sdae] = [line for line in done.out.splitlines() if line.startswith("sdae ")]
    assert "optim.base_lr=0.0002666" in sdae
    assert "; with imagenet: backbone.class_token=true method.decoder_depth=8 " in sdae


def test_presets_may_be_repeated(run: Run, refused: Callable[..., str]) -> None:
    shown = run("config", "show", "--preset", "vit-small", "--preset", "sdae", "--preset", "stl10")
    assert shown == run("config", "show", "--preset", "sdae,stl10,vit-small")
    assert "presets mae and sdae (from --preset) are both a method" in refused(
        "pretrain", "--dry-run", "--preset", "mae", "--preset", "sdae"
    )


def test_every_setting_is_described(run: Run) -> None:
    text = run("config", "describe").out
    parts = {part.splitlines()[0]: part for part in text.split("### ")[1:]}
    for section in SECTIONS:
        for name, field in section_class(section, {}).model_fields.items():
            described = "".join(part for title, part in parts.items() if title.startswith(f"[{section}]"))
            assert f"| `{key_of(name, field)}` |" in described
    for kind, section in (("dataset", "data"), ("backbone", "backbone"), ("method", "method")):
        for plugin in plugins.discover(kind):  # type: ignore[arg-type]
            assert isinstance(plugin, plugins.Plugin)
            shared = parts[f"[{section}]"]
            own = parts.get(f"[{section}] of {plugin.name}", "")
            for name, field in plugin.spec.settings.model_fields.items():
                assert f"| `{key_of(name, field)}` |" in shared + own, (plugin.name, name)
                assert field.description


def test_tables_of_the_reference_are_whole_and_their_numbers_short(run: Run) -> None:
    for line in run("config", "describe").out.splitlines():
        assert not re.search(r"\d\.\d{8}", line), line
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 5


@pytest.mark.parametrize("section", SECTIONS)
def test_one_section_can_be_described(section: str, run: Run) -> None:
    titles = re.findall(r"^### \[(\w+)\]", run("config", "describe", section).out, re.MULTILINE)
    assert set(titles) == {section}


def test_the_reference_page_is_what_the_program_says(run: Run) -> None:
    lines = REFERENCE.read_text(encoding="utf-8").split("\n")
    assert lines[0] == "# Settings"
    assert "`dsdmae config describe`" in lines[1]
    written, now = "\n".join(lines[2:]).strip(), run("config", "describe").out.strip()
    assert written == now, f"docs/settings.md is out of date; regenerate it: {REGENERATE}"
