"""What must not cost a result or a run (docs/design/faults.md): names, links and plugins that mean no good."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pytest
from helpers import (
    assignments,
    cli,
    one_line,
    train,
    undigested,
    words,
)
from safetensors.torch import load_file, save_file
from small_runs import at_step, stopped_after

from dsdmae_cli import files, plugins
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.errors import CheckpointError, PluginError, RunFailed
from dsdmae_cli.pictures.picture import Picture
from dsdmae_cli.pictures.restore import corrected
from dsdmae_cli.report import markdown, shown, without_password

pytestmark = pytest.mark.faults


def test_pipes_and_links_to_themselves_are_passed_over(
    encoder_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(next(encoder_run.parent.glob("digits/test/*/*.png")), tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    code, out, err = cli(capfd, "denoise", tmp_path)
    assert code == 1
    assert "a.denoised.png" in out
    assert "loop.png" in one_line(err)
    assert "pipe.png" not in err


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("postgresql://ann:s3cret@host:5432/db", "postgresql://ann:***@host:5432/db"),
        ("sqlite:///:SECRET@s.db", "sqlite:///:***@s.db"),
        ("--storage=mysql://a:b:c@h/d", "--storage=mysql://a:***@h/d"),
        ("postgresql://ann:s/3c@ret@host/db", "postgresql://ann:***@host/db"),
        ("postgresql://host/db?user=ann&PassWord=s3cret&sslmode=require",
         "postgresql://host/db?user=ann&PassWord=***&sslmode=require"),
        ("https://hub.example:8080/a/b", "https://hub.example:8080/a/b"),
        ("data.crop_scale=[0.4,1.0]", "data.crop_scale=[0.4,1.0]"),
    ],
)  # fmt: skip
def test_passwords_are_recorded_nowhere(given: str, kept: str) -> None:
    assert without_password(given) == kept


# -- text from outside is shown, never obeyed


HOSTILE = "<img src=x onerror=alert(1)>|`[click](javascript:alert(1))\x1b[31mRED\x07\u202e\n---"


def test_a_terminal_obeys_no_name() -> None:
    assert shown("a\x1b[31mb\x07\u202ec\r\x9bd\te\nf é 猫 σ") == (
        "a\\x1b[31mb\\x07\\u202ec\\r\\x9bd\te\nf é 猫 σ"
    )  # fmt: skip
    assert shown("a\nb", one_line=True) == "a\\nb"


def test_markdown_says_names_as_they_are() -> None:
    text = markdown(HOSTILE)
    assert text == (
        "&lt;img src=x onerror=alert(1)&gt;\\|\\`[click]\\(javascript:alert(1))\\\\x1b[31mRED\\\\x07\\\\u202e\\\\n---"
    )
    assert markdown("mask_ratio = 0.9, [0.4, 1.0] ± 3%") == "mask_ratio = 0.9, [0.4, 1.0] ± 3%"


def test_names_of_files_and_runs_write_no_escape_to_the_terminal(
    digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(digits, tmp_path / "images"))
    (folder / "train" / "0" / "esc\x1b[31mRED\x07.png").write_bytes(b"no picture")
    (folder / "test" / "0" / "a\nforged.png").write_bytes(b"no picture")
    (folder / "train" / "0").rename(folder / "train" / "0\nforged")
    chosen = words(assignments(folder, "train.epochs=1"))
    code, out, err = cli(capfd, "pretrain", *chosen, "--out", tmp_path / "r\x1b[2Jun")
    assert code == 0, err
    assert "\x1b" not in out + err
    assert "\x07" not in out + err
    assert "skipped an unreadable image" in err
    assert "esc\\x1b[31mRED\\x07.png" in err
    assert "a\\nforged.png" in err
    assert "0\\nforged" in err
    forged = [line for line in (out + err).splitlines() if line.startswith("forged")]
    assert not forged
    code, _, err = cli(capfd, "denoise", tmp_path / "no\x1b[31m\u202esuch.png")
    assert code == 2
    assert "no\\x1b[31m\\u202esuch.png" in one_line(err)


def test_a_card_holds_no_markup_from_outside(
    tuned_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, path = tuned_run / "classifier.safetensors", tmp_path / "classifier.safetensors"
    metadata = undigested(source)
    metadata["classes"] = json.dumps([HOSTILE, *json.loads(metadata["classes"])[1:]])
    save_file(load_file(source), path, metadata)
    code, _, err = cli(capfd, "export", path, "--to", "hf", "--out", tmp_path / "out")
    assert code == 0, err
    card = (tmp_path / "out" / "README.md").read_text()
    assert markdown(HOSTILE) in card
    for live in ("<img", "](javascript", "\x1b", "\u202e"):
        assert live not in card


def test_a_table_of_results_in_markdown_holds_no_markup_from_outside(
    encoder_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Which is pasted where it is rendered; and it goes to a file as it is."""
    run = Path(shutil.copytree(encoder_run, tmp_path / HOSTILE.replace("/", "")))
    code, out, err = cli(capfd, "compare", run, "--markdown", "--paper", "none")
    assert code == 0, err
    for live in ("<img", "](javascript", "\x1b", "\u202e"):
        assert live not in out
    assert len([line for line in out.splitlines() if line.startswith("|")]) == 3


def test_names_of_classes_begin_no_line_of_their_own(
    tuned_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, path = tuned_run / "classifier.safetensors", tmp_path / "classifier.safetensors"
    metadata = undigested(source)
    metadata["classes"] = json.dumps(["a\nload it with   rm", *json.loads(metadata["classes"])[1:]])
    save_file(load_file(source), path, metadata)
    code, out, err = cli(capfd, "export", path, "--to", "timm", "--out", tmp_path / "out")
    assert code == 0, err
    assert [line for line in out.splitlines() if line.startswith("load it with")] == [out.splitlines()[-1]]


def test_a_report_holds_no_markup_from_outside(tmp_path: Path) -> None:
    from jinja2 import Environment, PackageLoader

    for package in ("ablation", "worth"):
        template = PackageLoader(f"dsdmae_cli.{package}").get_source(Environment(), "report.md")[0]
        # Numbers and what the program says itself need none of it; everything that a person or a file named does.
        raw = set(re.findall(r"\{\{ ([a-z_.]+) \}\}", template))
        assert raw <= {
            "about_best",
            "base",
            "done",
            "image",
            "trials",
            "wall",
            "work",
            "metric",
            "paper.dataset",
            "paper.source",
            "value",
            "share",
        }


# -- what runs out, and who is left behind


def test_a_link_planted_at_a_partial_file_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim, target = tmp_path / "victim", tmp_path / "o.png"
    victim.write_text("mine")
    (tmp_path / f".o.png.{os.getpid()}.partial").symlink_to(victim)
    files.write_bytes(target, b"picture")
    monkeypatch.setattr(secrets, "token_hex", lambda _: "foreseen")
    (tmp_path / ".p.png.foreseen.partial").symlink_to(victim)
    with pytest.raises(RunFailed, match="File exists"):
        files.write_bytes(tmp_path / "p.png", b"picture")
    assert victim.read_text() == "mine"
    assert target.read_bytes() == b"picture"
    assert not target.is_symlink()
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


class _Odd(BaseException):
    pass


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (replace(plugins.find("dataset", "digits").spec, summary=None), "has summary None, not a text"),
        (replace(plugins.find("dataset", "digits").spec, settings=int), "has settings <class 'int'>, not a pydantic"),
        (_Odd("no"), "_Odd: no"),
    ],
)
def test_an_odd_plugin_is_named_and_harms_nobody(
    spec: Any, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Point:
        name, value, dist = "odd", "odd.module:ODD", None

        def load(self) -> Any:
            print("printed while it is imported")
            if isinstance(spec, BaseException):
                raise spec
            return spec

    known = plugins._entries

    def entries(kind: Any) -> Any:
        odd = plugins._Entry(Point(), "odd", "1")  # type: ignore[arg-type]
        return (*known(kind), *([odd] if kind == "dataset" else []))

    monkeypatch.setattr(plugins, "_entries", entries)
    code, out, _ = cli(capfd, "plugins", "--json")
    assert code == 0
    listed = json.loads(out)
    assert said in json.dumps(listed)
    with pytest.raises(PluginError, match="odd"):
        plugins.find("dataset", "odd")
    assert plugins.find("dataset", "digits").name == "digits"


def test_a_build_that_makes_the_wrong_thing_is_named() -> None:
    with pytest.raises(PluginError, match="'builtins:dict' made a dict, not a Backbone"):
        plugins.made_by("builtins:dict", Backbone)


@pytest.mark.parametrize("kind", get_args(plugins.Kind))
@pytest.mark.parametrize(
    ("does", "said"), [("leave", "SystemExit: 0"), ("odd", "_Odd: no"), ("none", "a NoneType, not")]
)
def test_a_plugin_that_would_end_the_program_is_named(
    does: str, said: str, kind: Any, encoder_run: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Unseen, with 0, by sys.exit; as a traceback, by an exception that nobody catches. What it prints is no JSON."""
    usual = {"backbone": "vit-tiny", "dataset": "digits", "method": "dsdmae", "probe": "knn", "tracker": "tensorboard"}
    spec = plugins.find(kind, usual[kind]).spec
    code, known = replace(spec, build=f"{__name__}:{does}"), plugins._entries

    class Point:
        name, value, dist = "odd", "odd.module:ODD", None

        def load(self) -> Any:
            return code

    monkeypatch.setattr(
        plugins, "_entries",
        lambda of: (*known(of), *([plugins._Entry(cast(Any, Point()), "odd", "1")] if of == kind else [])),
    )  # fmt: skip
    digits, out = f"folder:{encoder_run.parent / 'digits'}", tmp_path / "run"
    small = words([text for text in assignments("digits", "train.epochs=1") if ".name=" not in text][1:])
    line = {
        "backbone": ["pretrain", *small, "--dataset", digits, "--backbone", "odd"],
        "dataset": ["pretrain", *small, "--dataset", "odd"],
        "method": ["pretrain", *small, "--dataset", digits, "--method", "odd"],
        "probe": ["probe", encoder_run, "--kind", "odd", "--dataset", digits],
        "tracker": ["pretrain", *small, "--dataset", digits, "--track", "odd"],
    }[kind]
    ended, text, err = cli(capfd, *line, "--out", out, "--json")
    if kind == "tracker":  # which costs no run
        assert ended == 0, err
        json.loads(text)
        assert "dsdmae: warning: tracker odd failed and is told no more: " in err
        return
    assert (ended, text) == (2, ""), err
    assert said in one_line(err)
    assert f"'{__name__}:{does}'" in err
    assert "printed by a plugin" in err
    assert not out.exists()


def leave(*_: object) -> None:
    print("printed by a plugin")
    sys.exit(0)


def odd(*_: object) -> None:
    print("printed by a plugin")
    raise _Odd("no")


def none(*_: object) -> None:
    print("printed by a plugin")


def test_steps_are_saved_whatever_ends_the_training(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By sys.exit of a plugin it would end as if it were done."""
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        at_step(patched, 3, lambda: sys.exit(0))
        chosen = words(assignments(digits, "train.epochs=1"))
        code, out, err = cli(capfd, "pretrain", *chosen, "--out", run, "--json")
    assert (code, out) == (1, "")
    assert re.search(r"SystemExit: 0, raised in .*test_faults_hostile\.py:\d+; --debug shows", one_line(err))
    assert "SystemExit ended the training; step 3 was saved" in err
    assert cli(capfd, "pretrain", "--resume", "--out", run)[0] == 0


def test_what_lists_runs_writes_no_escape_to_the_terminal(
    encoder_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(encoder_run, tmp_path / "r\x1b[2J\u202eun\nfinished"))
    about = json.loads((run / "run.json").read_text())
    (run / "result.json").unlink()
    about["ended"] = {"state": "failed", "why": "it\x1b[31m said\nso"}
    (run / "run.json").write_text(json.dumps(about))
    for line in (["runs", "--in", tmp_path], ["runs", "show", run], ["compare", encoder_run, "--paper", "none"]):
        code, out, err = cli(capfd, *line)
        assert code == 0, err
        assert not set("\x1b\u202e\x07") & set(out + err)
        assert not any(text.startswith(("finished", "so")) for text in out.splitlines())


def test_commands_print_by_what_escapes_alone() -> None:
    for path in (Path(plugins.__file__).parent / "cli").glob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(typer|click)\.echo\(|sys\.std(out|err)\.write\(", source), path


def test_words_that_say_how_to_go_on_can_be_typed(
    digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import shlex

    run = tmp_path / "it's my run; rm -rf"
    with stopped_after(3):
        train(digits, run)
    code, out, _ = cli(capfd, "runs", "show", run)
    assert code == 0
    [line] = [text for text in out.splitlines() if text.startswith("go on")]
    assert shlex.split(line.removeprefix("go on")) == ["dsdmae", "pretrain", "--resume", "--out", str(run)]


def test_a_network_that_gives_no_numbers_makes_no_picture() -> None:
    class Broken:
        origin, image_size, patch, batch_size = "broken.onnx", 16, (4, 4), 1
        size_multiple = None

        def begin(self, images: Any) -> Any:
            return lambda: images * float("nan")

    pixels = np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(CheckpointError, match=r"broken\.onnx gives values that are not finite"):
        corrected(Broken(), Picture(pixels, "RGB"))  # type: ignore[arg-type]
