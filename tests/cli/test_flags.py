"""Flags as declared once: every command takes its own and hands them over by setting; shells complete their values."""

from __future__ import annotations

import inspect
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import cli, one_line, preset_names, start

from dsdmae_cli.__main__ import main
from dsdmae_cli.cli import COMMANDS, load
from dsdmae_cli.cli.options import takes
from dsdmae_cli.config import help as help_module
from dsdmae_cli.config.describe import key_of
from dsdmae_cli.config.flags import FLAGS, Flag, flags_of
from dsdmae_cli.config.given import Given
from dsdmae_cli.config.help import all_made
from dsdmae_cli.config.schema import NAMED, SCHEMAS, section_class
from dsdmae_cli.plugins import Plugin, discover

KEPT = Path(help_module.__file__).with_name("help.json")


def options_of(command: str) -> dict[str, Any]:
    """The parameters of a command as Typer made them, by their first flag."""
    return {parameter.opts[0]: parameter for parameter in load(command).params}


def test_the_help_of_flags_is_what_the_settings_say() -> None:
    assert json.loads(KEPT.read_text(encoding="utf-8")) == all_made(), help_module.__doc__


@pytest.mark.parametrize("command", sorted({name for flag in FLAGS for name in flag.commands}))
def test_a_command_takes_the_flags_that_are_declared_for_it(command: str) -> None:
    assert command in {entry.name for entry in COMMANDS}
    found = options_of(command)
    names = [flag.name.partition("/")[0] for flag in flags_of(command)]
    assert len(set(names)) == len(names)
    assert set(names) <= set(found)
    for flag in flags_of(command):
        option = found[flag.name.partition("/")[0]]
        assert (option.metavar, option.rich_help_panel) == (flag.metavar, flag.panel)
        assert option.is_flag == (flag.metavar is None)


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: f"{flag.name} of {flag.commands[0]}")
def test_a_flag_stands_for_a_setting(flag: Flag) -> None:
    section, _, key = flag.setting.partition(".")
    for command in flag.commands:
        schema = SCHEMAS.get(command, SCHEMAS["pretrain"])
        fields = dict(section_class(section, {}, schema=schema).model_fields)
        if section in NAMED:  # some are of one plugin alone, as those of one's own images
            for plugin in discover(NAMED[section][1]):
                fields |= plugin.spec.settings.model_fields if isinstance(plugin, Plugin) else {}
        assert key in {key_of(name, field) for name, field in fields.items()}


def test_a_new_flag_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    flag = Flag("--weight-decay", "optim.weight_decay", "X", "Training", ("pretrain",))
    monkeypatch.setattr("dsdmae_cli.config.flags.FLAGS", (*FLAGS, flag))
    got: list[Given] = []
    command = takes("pretrain")(keep(got))
    command(**{name: parameter.default for name, parameter in inspect.signature(command).parameters.items()}
            | {"optim_weight_decay": "0.1", "preset": ["mae", "stl10"]})  # fmt: skip
    [given] = got
    assert given.flags == {"optim.weight_decay": "0.1"}
    assert given.preset == ("mae", "stl10")
    assert given.any_setting


def keep(got: list[Given]) -> Callable[..., None]:
    def command(given: Given) -> None:
        got.append(given)

    return command


@pytest.mark.parametrize("words", [("--track", ""), ("--track", "a", "--track", " "), ("--track", "a,,b")])
def test_a_flag_that_names_nothing_is_refused(words: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = cli(capfd, "pretrain", *words, "--dry-run")
    assert (code, out) == (2, "")
    assert "names nothing; give NAME, or leave it out" in one_line(err)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("denoise x.png --out ''", "--out '' names nothing; give FILE|DIR|-, or leave it out"),
        ("data pack x --out=", "--out '' names nothing; give DIR"),
        ("pretrain --config ''", "--config '' names nothing; give FILE.toml, or leave it out"),
        ("runs --in ''", "--in '' names nothing; give DIR, or leave it out"),
        ("predict x ''", "'' names nothing; give PICTURE|FOLDER|GLOB|-"),
        ("predict ''", "'' names nothing; give RUN|CLASSIFIER"),
    ],
)
def test_an_empty_word_is_not_the_current_folder(words: str, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = cli(capfd, *shlex.split(words))
    assert code == 2
    assert one_line(err) == f"dsdmae: error: {said}"


def test_who_asks_for_help_gets_it_whatever_is_empty(capfd: pytest.CaptureFixture[str]) -> None:
    for words in (["runs", "show", "", "--help"], ["predict", "-h", ""]):
        code, out, err = cli(capfd, *words)
        assert (code, "Usage" in out, err) == (0, True, "")


def test_closed_streams_are_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with pytest.raises(SystemExit) as ended:
        main(["runs", "--in", str(tmp_path)])
    assert ended.value.code == 0
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()


def test_nothing_given_is_nothing() -> None:
    assert not Given().any_setting
    assert Given(flags={"data.strict": False}).any_setting
    assert not Given(out=Path("run"), resume=True, json=True).any_setting


# Completion


def complete(line: str, environ: dict[str, str] | None = None) -> list[str]:
    """What a shell offers for the last word of a line, which may be empty."""
    variables = {"_DSDMAE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    driver = (
        "import sys; sys.argv = ['dsdmae']\nfrom dsdmae_cli.cli import app\n"
        "try: app(prog_name='dsdmae')\n"
        "finally: sys.exit('torch' if 'torch' in sys.modules else 0)"
    )
    program = start("-c", driver, environ={**variables, **(environ or {})})
    out, err = program.communicate(timeout=60)
    assert (program.returncode, err) == (0, "")
    return list(out.split())


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("dsdmae fi", ["finetune"]),
        ("dsdmae config pre", ["presets"]),
        ("dsdmae pretrain --preset ci", ["cifar10", "cifar100"]),
        ("dsdmae pretrain --preset mae,", [f"mae,{name}" for name in preset_names() if "vit" in name]),
        ("dsdmae pretrain --preset quick,cifar10,vit-s", ["quick,cifar10,vit-small"]),
        ("dsdmae finetune scratch --preset str", ["strong"]),
        ("dsdmae pretrain --method ms", ["msa"]),
        (
            "dsdmae pretrain --method x --backbone vit-",
            ["vit-base", "vit-giant", "vit-huge", "vit-large", "vit-small", "vit-tiny"],
        ),
        ("dsdmae embed RUN --dataset fo", ["folder:"]),
        ("dsdmae pretrain --precision b", ["bf16"]),
        ("dsdmae denoise x.png --device cu", ["cuda"]),
        ("dsdmae probe RUN --pool me", ["mean", "mean+cls"]),
        ("dsdmae finetune RUN --pool ", ["mean", "cls"]),
        ("dsdmae config show --for f", ["finetune"]),
        ("dsdmae config describe op", ["optim"]),
        ("dsdmae pretrain --set fi", ["finetune."]),
        (
            "dsdmae pretrain --set train.c",
            ["train.compile=", "train.checkpoint_activations=", "train.checkpoint_every="],
        ),
        ("dsdmae plugins new ba", ["backbone"]),
        ("dsdmae ablate --equal c", ["compute"]),
    ],
)
def test_values_are_completed(line: str, offers: list[str]) -> None:
    found = complete(line)
    assert found == offers or (set(offers) <= set(found) and line.endswith(","))


def test_values_of_settings_are_completed() -> None:
    from dsdmae_cli.cli.completion import assignments

    assert assignments("train.precision=") == [f"train.precision={word}" for word in ("auto", "bf16", "fp16", "fp32")]
    assert assignments("data.flip=t") == ["data.flip=true"]
    assert assignments("method.name=mask") == ["method.name=maskfeat"]
    assert assignments("nonsense.x=") == assignments("nonsense.x") == []


def test_runs_are_completed_the_newest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from platformdirs import user_data_path

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    folder = user_data_path("dsdmae") / "runs"
    if tmp_path not in folder.parents:
        pytest.skip("this system keeps users' data elsewhere")
    there = {"XDG_DATA_HOME": str(tmp_path)}
    words = ["scratch", "pixels", "timm:", "hf:", "packaged", "packaged-white-noise"]
    assert complete("dsdmae probe ", there) == words
    assert complete("dsdmae compare ", there) == []
    for age, name in enumerate(("new", "old")):
        (folder / name).mkdir(parents=True)
        os.utime(folder / name, (1e9 - age, 1e9 - age))
    both = [str(folder / "new"), str(folder / "old")]
    assert complete("dsdmae pretrain --resume --out ", there) == both  # a name would be one beside where one stands
    for line in ("dsdmae probe scratch --like ", "dsdmae compare ", "dsdmae runs show "):
        assert complete(line, there) == ["new", "old"]
    assert complete("dsdmae probe ", there) == words  # neither has weights
    (folder / "old" / "encoder.safetensors").touch()
    os.utime(folder / "old", (1e9 - 1, 1e9 - 1))
    for line in ("dsdmae probe ", "dsdmae export "):
        assert complete(line, there) == ["old", *words]
    assert complete(f"dsdmae embed {folder}/o", there) == both[1:]
    assert complete("dsdmae embed my", there) == []
