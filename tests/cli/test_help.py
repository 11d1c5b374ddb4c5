"""--help of every command: that it is there, what it says of each flag, and that it loads nothing heavy."""

from __future__ import annotations

import inspect
import itertools
import json
import re
import subprocess
import sys

import pytest
from helpers import ESCAPE, Run

from dsdmae_cli.cli import COMMANDS as COMMANDS_LISTED
from dsdmae_cli.cli import Entry
from dsdmae_cli.cli import load as load_command
from dsdmae_cli.config.describe import allowed, key_of, plain
from dsdmae_cli.config.flags import flags_of
from dsdmae_cli.config.schema import PRETRAIN, section_class

COMMANDS = [
    (), ("pretrain",), ("tokenizer",), ("ablate",),
    ("probe",), ("finetune",), ("compare",), ("embed",), ("export",), ("denoise",),
    ("predict",), ("restore",),
    ("config",), ("config", "show"), ("config", "check"), ("config", "presets"), ("config", "describe"), ("plugins",),
    ("plugins", "new"), ("data",), ("data", "pack"), ("data", "verify"),
    ("doctor",), ("cache",), ("cache", "clear"), ("runs",), ("runs", "show"), ("runs", "open"),
    ("runs", "best"), ("runs", "rm"),
]  # fmt: skip
FLAGS = PRETRAIN.flags


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal on which each flag's help is one line."""
    monkeypatch.setenv("COLUMNS", "1000")


def rows(help_text: str) -> dict[str, str]:
    """The lines of flags in a wide help, by flag."""
    found = {}
    for line in ESCAPE.sub("", help_text).splitlines():
        words = line.strip("│ ").removeprefix("*").split()
        if words and words[0].startswith("--"):
            found[words[0]] = " ".join(words)
    return found


def test_no_help_loads_anything_heavy() -> None:
    assert_none_loads([*([*command, "--help"] for command in COMMANDS)], "nor settings and plugins")
    # So that a wrong setting is reported at once, none of these does either.
    assert_none_loads([["config", "show"], ["config", "presets"], ["config", "describe"], ["plugins"]])


def assert_none_loads(lines: list[list[str]], *more: str) -> None:
    script = """
import contextlib, io, json, sys
from dsdmae_cli.__main__ import _run
heavy, found = ("torch", "torchvision", "timm", "sklearn", "matplotlib", "numpy"), {}
if sys.argv[2:]:
    heavy += ("pydantic", "importlib.metadata")
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()):
        code = _run(words)
    found[" ".join(words)] = [code, [name for name in heavy if name in sys.modules]]
print(json.dumps(found))
"""
    words = [sys.executable, "-c", script, json.dumps(lines), *more]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {" ".join(line): [0, []] for line in lines}


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_has_help(command: tuple[str, ...], flag: str, run: Run) -> None:
    done = run(*command, flag)
    assert (done.code, done.err) == (0, "")
    assert "Usage: " in done.out
    assert "--help" in rows(done.out)
    assert not re.search(r"<\w+(\[\w+\])?>", done.out)  # Python's names of types say nothing to a person


@pytest.mark.parametrize("entry", COMMANDS_LISTED, ids=lambda entry: entry.name)
def test_a_command_is_listed_with_its_own_first_line(entry: Entry) -> None:
    assert inspect.cleandoc(load_command(entry.name).help).splitlines()[0] == entry.summary


@pytest.mark.usefixtures("wide")
def test_root_help_names_the_commands(run: Run) -> None:
    text = run("--help").out
    for word in ("pretrain", "config", "plugins", "--version", "dsdmae pretrain"):
        assert word in text


@pytest.mark.parametrize("command", [(), ("config",)], ids=["dsdmae", "dsdmae config"])
def test_a_group_alone_shows_its_help(command: tuple[str, ...], run: Run) -> None:
    done = run(*command)
    assert "Usage: " in done.out + done.err
    assert "dsdmae: error:" not in done.err
    assert done.code in (0, 2)


PROMISED = [
    "--preset", "--config", "--set", "--dataset", "--data-dir", "--method", "--backbone", "--epochs", "--batch-size",
    "--lr", "--mask-ratio", "--noise-std", "--lambda", "--seed", "--device", "--precision", "--compile", "--out",
    "--resume", "--dry-run", "--json", "--debug",
]  # fmt: skip


@pytest.mark.usefixtures("wide")
def test_the_promised_flags_exist(run: Run) -> None:
    found = rows(run("pretrain", "--help").out)
    assert set(PROMISED) <= set(found)
    assert "--no-compile" in found["--compile"]


@pytest.mark.usefixtures("wide")
def test_flags_stand_in_titled_groups(run: Run) -> None:
    text = run("pretrain", "--help").out
    for title in ("Where settings come from", "Data", "Method", "Training", "Run"):
        assert f"─ {title} ─" in text


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in {(), ("config",)}], ids=" ".join)
def test_every_command_can_show_a_traceback(command: tuple[str, ...], run: Run) -> None:
    assert "--debug" in rows(run(*command, "--help").out)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("flag", FLAGS)
def test_a_settings_flag_shows_its_meaning_range_and_default(flag: str, run: Run) -> None:
    section, _, key = FLAGS[flag].partition(".")
    line = rows(run("pretrain", "--help").out)[flag.partition("/")[0]]
    model = section_class(section, {})
    if all(key_of(name, field) != key for name, field in model.model_fields.items()):  # of one plugin's settings
        assert key in section_class(section, {"dataset": "folder:pictures"}).model_fields
        assert FLAGS[flag] in line
        return
    [field] = [field for name, field in model.model_fields.items() if key_of(name, field) == key]
    assert field.description
    [declared] = [one for one in flags_of("pretrain") if one.name == flag]
    if declared.help:  # what a newcomer reads, in place of the setting's own words
        assert declared.help in line
        assert FLAGS[flag] in declared.help
        return
    assert field.description[1:] in line
    if (
        field.description[0].isascii()
        and field.description.split()[0].isalpha()
        and not field.description.startswith("auto ")
    ):
        assert field.description[0].upper() + field.description[1:] in line  # a sentence like those beside it
    assert (f"Takes {allowed(field)}" in line) == (allowed(field) not in ("text", "true or false"))
    default = plain(field.get_default())
    assert f"efault {str(default).lower() if isinstance(default, bool) else default}" in line
    assert FLAGS[flag] in line


@pytest.mark.usefixtures("wide")
def test_help_swallows_no_brackets(run: Run) -> None:
    found = rows(run("pretrain", "--help").out)
    assert "[-1, 1]" in found["--noise-std"]
    assert "Takes a number above 0 to 1 or a pair of such" in found["--mask-ratio"]
    assert "R[,R]" in found["--mask-ratio"]
    assert "\\" not in "".join(found.values())


@pytest.mark.parametrize("command", ["tokenizer", "probe", "bench gpu", "restore", "finetune"])
def test_help_runs_to_the_width_of_the_terminal(run: Run, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    before_boxes = run(*command.split(), "--help").out.partition("╭")[0]
    paragraphs = [part.split("\n") for part in re.split(r"\n(?: *\n)+", before_boxes) if "Usage:" not in part]
    assert len(paragraphs) > 1
    for lines in paragraphs:
        for line, after in itertools.pairwise(line.strip() for line in lines if line.strip()):
            if not (line.startswith("dsdmae ") or after.startswith("dsdmae ")):
                assert len(f"{line} {after.split()[0]}") > 76, (line, after)


def test_ranges_and_repeated_arguments_are_said_in_words(run: Run) -> None:
    assert "K [from 1 up]" in run("predict", "--help").out
    found = run("denoise", "--help").out
    assert "N [1 to 256]" in found
    assert "N [above 0]" in found
    for command in (("predict",), ("compare",), ("runs", "rm"), ("cache", "clear")):
        assert "......" not in (usage := run(*command, "--help").out.partition("╭")[0])
        assert "...}" not in usage
        assert "[[" not in usage
