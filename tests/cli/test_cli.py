"""The command line as a person meets it: wrong words and values in one line, signals, pipes, full disks, terminals.

Help is in test_help.py, `dsdmae config` in test_config_commands.py, --dry-run and --json in test_dry_run.py. What
settings mean is in tests/config, what `dsdmae plugins` lists and writes in tests/plugins.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ESCAPE, Done, Run, process

from dsdmae_cli import __version__
from dsdmae_cli.__main__ import main
from dsdmae_cli.errors import SettingsError

COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-7]|38|4[0-7]|48|9[0-7]|10[0-7])[;m]")


@pytest.fixture
def no_colour_wishes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Typer takes these for a wish for colour, terminal or not."""
    for variable in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "NO_COLOR"):
        monkeypatch.delenv(variable, raising=False)


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
        ("config check", "FILE.toml"),
        ("config check a b", "b"),
        ("config describe optim train", "train"),
        ("config describe nope", "data, backbone, method, optim, train"),
        ("config describe optm", "did you mean optim?"),
        ("plugins --nope", "--nope"),
        ("plugins new", "KIND"),
        ("plugins new backbone", "NAME"),
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
        (["--batch-size", "1401"], "larger than the 1,400 training images"),
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
        (["--data-dir", ""], "--data-dir '' names nothing; give DIR, or leave it out"),
        (["--method", "dsdmea"], "did you mean dsdmae?"),
        (["--method", "mae", "--lambda", "0.4"], "unknown setting method.lambda (from --lambda)"),
        (["--backbone", "timm:"], "timm:NAME"),
        (["--backbone", "timm:resnet8"], "did you mean resnet18?"),
        (["--preset", ""], "unknown preset ''"),
        (["--preset", "quik"], "did you mean quick?"),
        (["--config", ""], "--config '' names nothing; give FILE.toml"),
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
