"""The command line as a person meets it: help, flags, errors in one line, `dsdmae config`, --dry-run and --json.

Most tests run it in this process; a few need a process of their own. What settings mean is in test_settings.py, what
`dsdmae plugins` lists and writes in test_plugins.py.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import select
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from dsdmae_cli import __version__, plugins
from dsdmae_cli.__main__ import _run, main
from dsdmae_cli.cli import COMMANDS as COMMANDS_LISTED
from dsdmae_cli.cli import Entry
from dsdmae_cli.cli import load as load_command
from dsdmae_cli.config.compose import load
from dsdmae_cli.config.describe import allowed, key_of, plain, tables, to_toml
from dsdmae_cli.config.flags import flags_of
from dsdmae_cli.config.presets import preset_names
from dsdmae_cli.config.schema import FINETUNE, PRETRAIN, SECTIONS, section_class
from dsdmae_cli.errors import SettingsError

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
PAPER = ["dsdmae,cifar10,vit-tiny", "dsdmae,cifar100,vit-small", "dsdmae,stl10,vit-base"]
REFERENCE = Path(__file__).parents[2] / "docs" / "settings.md"
REGENERATE = "(head -n 2 docs/settings.md; echo; dsdmae config describe) > new.md && mv new.md docs/settings.md"
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-7]|38|4[0-7]|48|9[0-7]|10[0-7])[;m]")


@dataclass(frozen=True)
class Done:
    """What a command left."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`dsdmae WORDS` in this process."""

    def run(*words: object) -> Done:
        capsys.readouterr()
        code = _run([str(word) for word in words])
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """`dsdmae WORDS`, which must fail on one line of stderr and exit with 2; the line."""

    def refused(*words: object) -> str:
        done = run(*words)
        assert (done.code, done.out) == (2, "")
        [line] = done.err.splitlines()
        assert line.startswith("dsdmae: error: ")
        return line.removeprefix("dsdmae: error: ")

    return refused


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal on which each flag's help is one line."""
    monkeypatch.setenv("COLUMNS", "1000")


@pytest.fixture
def no_colour_wishes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Typer takes these for a wish for colour, terminal or not."""
    for variable in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "NO_COLOR"):
        monkeypatch.delenv(variable, raising=False)


def process(*words: str) -> list[str]:
    return [sys.executable, "-m", "dsdmae_cli", *words]


def rows(help_text: str) -> dict[str, str]:
    """The lines of flags in a wide help, by flag."""
    found = {}
    for line in ESCAPE.sub("", help_text).splitlines():
        words = line.strip("│ ").removeprefix("*").split()
        if words and words[0].startswith("--"):
            found[words[0]] = " ".join(words)
    return found


# Help


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
    assert field.description in line
    assert (f"Takes {allowed(field)}" in line) == (allowed(field) not in ("text", "true or false"))
    default = plain(field.get_default())
    assert f"efault {str(default).lower() if isinstance(default, bool) else default}" in line
    assert FLAGS[flag] in line


@pytest.mark.usefixtures("wide")
def test_help_swallows_no_brackets(run: Run) -> None:
    found = rows(run("pretrain", "--help").out)
    assert "[-1, 1]" in found["--noise-std"]
    assert "[a number above 0 to 1, a number above 0 to 1]" in found["--mask-ratio"]
    assert "R[,R]" in found["--mask-ratio"]
    assert "\\" not in "".join(found.values())


def test_version(run: Run) -> None:
    assert run("--version") == Done(0, f"dsdmae {__version__}\n", "")


def test_main_exits_with_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["config", "show", "--set", "train.epochs=x"])
    assert stopped.value.code == 2
    assert "train.epochs = 'x'" in capsys.readouterr().err


# Wrong input


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nope", "nope"),
        ("pretrian", "Did you mean 'pretrain'?"),
        ("--nope", "--nope"),
        ("config nope", "nope"),
        ("plugins nope", "nope"),
        ("pretrain extra", "extra"),
        ("pretrain --epoch 3", "--epochs"),
        ("pretrain --epochs", "--epochs"),
        ("pretrain --compile=yes", "--compile"),
        ("pretrain --dry-run=yes", "--dry-run"),
        ("config show extra", "extra"),
        ("config show --nope", "--nope"),
        ("config show --set", "--set"),
        ("config check", "file"),
        ("config check a b", "b"),
        ("config describe optim train", "train"),
        ("config describe nope", "data, backbone, method, optim, train"),
        ("config describe optm", "did you mean optim?"),
        ("plugins --nope", "--nope"),
        ("plugins new", "kind"),
        ("plugins new backbone", "name"),
        ("plugins new network x", "'backbone', 'dataset', 'method'"),
        ("plugins new backbone Bad_Name", "Bad_Name"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(line: str, says: str, refused: Callable[..., str]) -> None:
    message = refused(*line.split())
    assert says in message
    assert "Value error" not in message


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--epochs", "5.5"], "train.epochs = 5.5 (from --epochs)"),
        (["--epochs", ""], "train.epochs = '' (from --epochs)"),
        (["--epochs", "-1"], "train.epochs = -1 (from --epochs)"),
        (["--seed", "-1"], "train.seed = -1 (from --seed)"),
        (["--batch-size", "0"], "train.batch_size = 0 (from --batch-size)"),
        (["--batch-size", "1401"], "larger than the 1400 training images"),
        (["--lr", "nan"], "optim.lr = nan (from --lr)"),
        (["--lambda", "1.5"], "method.lambda = 1.5 (from --lambda)"),
        (["--noise-std", "-1"], "method.noise_std = -1 (from --noise-std)"),
        (["--mask-ratio", "0"], "method.mask_ratio = 0 (from --mask-ratio)"),
        (["--precision", "fp8"], "train.precision = 'fp8' (from --precision)"),
        (["--device", "tpu"], "train.device = 'tpu'"),
        (["--device", ""], "train.device = ''"),
        (["--device", "cuda:99"], "train.device = 'cuda:99'"),
        (["--dataset", ""], "data.dataset = '' (from --dataset)"),
        (["--dataset", "folder:"], "folder:PATH"),
        (["--dataset", "folder:/no/such"], "/no/such"),
        (["--data-dir", ""], "data.data_dir"),
        (["--method", "dsdmea"], "did you mean dsdmae?"),
        (["--method", "mae", "--lambda", "0.4"], "unknown setting method.lambda (from --lambda)"),
        (["--backbone", "timm:"], "timm:NAME"),
        (["--backbone", "timm:resnet8"], "did you mean resnet18?"),
        (["--preset", ""], "unknown preset ''"),
        (["--preset", "quik"], "did you mean quick?"),
        (["--config", ""], "cannot read"),
        (["--set", "data.image_size=10"], "does not divide data.image_size = 10"),
        (["--set", "backbone.embed_dim=130"], "multiple of 4"),
        (["--resume"], "--out DIR"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_value_is_refused_in_one_line(words: list[str], says: str, refused: Callable[..., str]) -> None:
    assert says in refused("pretrain", "--dry-run", *words)


def test_debug_shows_the_traceback(run: Run) -> None:
    with pytest.raises(SettingsError, match=r"train\.epochs"):
        run("config", "show", "--set", "train.epochs=x", "--debug")
    words = process("config", "show", "--set", "train.epochs=x")
    hidden = subprocess.run(words, capture_output=True, text=True)
    shown = subprocess.run([*words, "--debug"], capture_output=True, text=True)
    assert hidden.returncode == 2
    assert "Traceback" not in hidden.stderr
    assert shown.returncode != 0
    assert "Traceback" in shown.stderr
    assert "train.epochs = 'x'" in shown.stderr


def test_ctrl_c_is_no_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(schema: object) -> dict[str, list[str]]:
        raise KeyboardInterrupt

    monkeypatch.setattr("dsdmae_cli.config.presets.presets_by_kind", interrupt)
    done = run("config", "presets")
    assert (done.code, done.out) == (130, "")
    assert done.err == "dsdmae: interrupted\n"


# Output


@pytest.mark.parametrize("words", [("config", "describe"), ("--help",)], ids=" ".join)
def test_a_reader_that_leaves_is_no_error(words: tuple[str, ...]) -> None:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipe = subprocess.PIPE
    with subprocess.Popen(process(*words), stdout=pipe, stderr=pipe, env=buffered) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.close()
        assert program.stderr.read() == b""
    assert program.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(process("config", "show"), stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("dsdmae: error: ")
    assert "No space left" in line


@pytest.mark.parametrize("words", [("pretrain", "--help"), ("config", "describe")], ids=" ".join)
def test_output_that_knows_no_greek_gets_the_rest(words: tuple[str, ...]) -> None:
    # As when Windows writes to a file: cp1252 has no σ.
    environ = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(process(*words), capture_output=True, env=environ)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"of the Gaussian noise" in done.stdout


@pytest.mark.usefixtures("no_colour_wishes")
@pytest.mark.parametrize("words", [("--help",), ("config", "show"), ("config", "show", "--set", "x"), ("plugins",)])
def test_no_escape_codes_go_to_a_file(words: tuple[str, ...]) -> None:
    done = subprocess.run(process(*words), capture_output=True, text=True, env={**os.environ, "TERM": "xterm-256color"})
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.usefixtures("no_colour_wishes")
@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminal")
def test_no_color_is_honoured_on_a_terminal() -> None:
    colours = on_a_terminal(process("pretrain", "--help"), {"TERM": "xterm-256color"})
    plain_text = on_a_terminal(process("pretrain", "--help"), {"TERM": "xterm-256color", "NO_COLOR": "1"})
    assert COLOUR.search(colours)
    assert "--epochs" in ESCAPE.sub("", plain_text)
    assert not COLOUR.search(plain_text)


def on_a_terminal(words: list[str], environ: dict[str, str]) -> str:
    """What a command writes to a pseudo-terminal."""
    import pty

    reader, writer = pty.openpty()
    with subprocess.Popen(words, stdin=writer, stdout=writer, stderr=writer, env={**os.environ, **environ}):
        os.close(writer)
        parts: list[bytes] = []
        while select.select([reader], [], [], 60)[0]:
            try:
                parts.append(os.read(reader, 65536))
            except OSError:  # Linux reports the end of a pseudo-terminal as an error
                break
            if not parts[-1]:
                break
    os.close(reader)
    return b"".join(parts).decode()


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


def test_tables_of_the_reference_are_whole(run: Run) -> None:
    for line in run("config", "describe").out.splitlines():
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


# pretrain --dry-run, --json


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every folder that a program may write to by itself, all in one empty place."""
    home = tmp_path / "home"
    home.mkdir()
    for variable in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "HOME"):
        monkeypatch.setenv(variable, str(home))
    monkeypatch.chdir(home)
    return home


@pytest.mark.parametrize("preset", PAPER)
def test_a_dry_run_of_the_paper_needs_no_data_and_writes_nothing(preset: str, run: Run, empty_home: Path) -> None:
    # A micro-batch too large to be timed on a CPU: the estimate of time is not what is tested here.
    untimed = ("--device", "cpu", "--set", "train.micro_batch=256")
    done = run("pretrain", "--preset", preset, "--dry-run", "--json", "--out", empty_home / "out", *untimed)
    assert (done.code, done.err) == (0, "")
    plan = json.loads(done.out)
    settings = load(preset=preset, environ={}).settings
    images = 100_000 if "stl10" in preset else 50_000
    assert plan["dataset"] == settings.data.dataset
    assert plan["train_images"] == images
    assert plan["tokens"] == 256
    assert plan["effective_batch"] == settings.train.batch_size
    assert plan["steps"] == 500 * (images // settings.train.batch_size)
    assert plan["learning_rate"] == pytest.approx(1.5e-4 * settings.train.batch_size / 256)
    millions = {"tiny": 5.4, "small": 21.3, "base": 85.3}[preset.rpartition("-")[2]]
    assert plan["encoder_parameters"] == pytest.approx(millions * 1e6, rel=0.01)
    assert plan["gflop_per_image"] > 0
    assert plan["memory_gib"] > 0
    assert list(empty_home.iterdir()) == []


def test_a_dry_run_says_the_same_to_people(run: Run, empty_home: Path) -> None:
    done = run("pretrain", "--dry-run", "--out", empty_home / "out")
    assert (done.code, done.err) == (0, "")
    facts = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in done.out.splitlines() if "  " in line)
    assert facts["dataset"].startswith("digits: 1400 images to train, 397 to evaluate")
    assert "16 tokens" in facts["image"]
    train = load(environ={}).settings.train
    per_epoch = 1400 // train.batch_size
    assert facts["steps"] == f"{train.epochs * per_epoch} ({train.epochs} epochs of {per_epoch})"
    assert {"parameters", "batch", "work", "memory", "device", "time"} <= set(facts)
    assert list(empty_home.iterdir()) == []


def test_numbers_may_be_written_as_people_write_them(run: Run) -> None:
    assert json.loads(run("pretrain", "--dry-run", "--json", "--epochs", "1e3").out)["epochs"] == 1000


def test_a_dry_run_of_a_resumption_is_of_that_run(run: Run, refused: Callable[..., str], tmp_path: Path) -> None:
    assert "nothing to resume" in refused("pretrain", "--dry-run", "--resume", "--out", tmp_path / "none")
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    (earlier / "settings.toml").write_text(to_toml(tables(load(flags={"train.epochs": 3}, environ={}).settings)))
    plan = json.loads(run("pretrain", "--dry-run", "--json", "--resume", "--out", earlier).out)
    assert plan["epochs"] == 3
    assert [path.name for path in earlier.iterdir()] == ["settings.toml"]


def test_a_dry_run_into_a_used_directory_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    assert "is not empty" in refused("pretrain", "--dry-run", "--out", tmp_path)


def test_json_alone_is_on_stdout(run: Run, tmp_path: Path) -> None:
    small = ("--epochs", 1, "--device", "cpu", "--set", "train.knn_every=none", "--set", "backbone.depth=1")
    done = run("pretrain", "--json", "--out", tmp_path / "out", *small)
    assert done.code == 0
    result = json.loads(done.out)
    assert result == json.loads((tmp_path / "out" / "result.json").read_text())
    assert done.err == ""


def test_plugins_as_json_are_one_object(run: Run) -> None:
    done = run("plugins", "--json")
    assert (done.code, done.err) == (0, "")
    assert set(json.loads(done.out)) == {"plugins", "broken"}
