"""What must not cost a result or a run (docs/design/faults.md): odd places, places that are gone or cannot be
written, and files of a run that somebody changed."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import assignments, cli, listing, one_line, train, words

from dsdmae_cli import checkpoint, files
from dsdmae_cli.errors import RunFailed
from dsdmae_cli.figures.sheet import save
from dsdmae_cli.pictures import each
from dsdmae_cli.runs.rundir import RunDir

pytestmark = [pytest.mark.faults, pytest.mark.skipif(os.name != "posix", reason="files as POSIX has them")]


def small(digits: Path) -> list[str]:
    return words(assignments(digits, "train.epochs=1"))


# -- --out


@pytest.mark.parametrize("odd", ["root", "file", "pipe", "null", "link to nowhere", "link to itself", "long"])
def test_an_odd_out_is_one_line_and_harms_nothing(
    odd: str, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "here"
    if odd == "file":
        here.write_text("mine")
    elif odd == "pipe":
        os.mkfifo(here)
    elif odd.startswith("link"):
        here.symlink_to(tmp_path / "gone" / "away" if odd == "link to nowhere" else here)
    out = {"root": Path("/"), "null": Path("/dev/null"), "long": tmp_path / ("x" * 260)}.get(odd, here)
    before = listing(tmp_path)
    code, _, err = cli(capfd, "pretrain", *small(digits), "--out", out)
    assert code == 2
    assert "--out" in one_line(err)
    assert listing(tmp_path) == before
    if odd == "file":
        assert here.read_text() == "mine"


@pytest.mark.parametrize("name", ["new\nline", "quo\"te's", "ünï 猫", "-dash"])
def test_an_odd_name_is_a_name(name: str, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / name
    code, _, err = cli(capfd, "pretrain", *small(digits), "--out", out)
    assert code == 0, err
    assert (out / "result.json").exists()
    code, said, _ = cli(capfd, "compare", out)
    assert code == 0
    assert not any(line.startswith("line") for line in said.splitlines())


# -- what cannot be written


def test_nowhere_to_keep_anything_costs_a_note(
    encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "HOME", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "/proc/nowhere")
    digits = encoder_run.parent / "digits"
    code, _, err = cli(
        capfd, "probe", encoder_run, "--kind", "knn", "--dataset", f"folder:{digits}", "--device", "cpu",
        "--out", tmp_path / "probed",
    )  # fmt: skip
    assert code == 0, err
    assert "Traceback" not in err
    assert (tmp_path / "probed" / "result.json").exists()
    code, _, err = cli(capfd, "pretrain", *small(digits))  # whose directory goes where nothing can be made
    assert code == 2
    assert "name a directory by --out" in one_line(err)


def test_a_working_directory_that_is_gone_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    # In a process of its own MKL would end it, whatever paths are given.
    for command in (["pretrain", "--out", tmp_path / "run"], ["runs"], ["probe", tmp_path]):
        code, _, err = cli(capfd, *command)
        assert (code, "the current directory is gone" in one_line(err)) == (2, True)
    assert cli(capfd, "probe", "--help")[0] == 0


@pytest.mark.parametrize("size", [500, 40_000, 300_000])
def test_files_that_may_not_grow_end_a_run_in_one_line(
    size: int, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        code, _, err = cli(capfd, "pretrain", *small(digits), "--out", tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code in (0, 1), err
    assert "Traceback" not in err
    if code:
        assert "File too large" in one_line(err)
        begun = (tmp_path / "run" / "settings.toml").exists()
        assert ("go on with --resume" in err) == begun
        code, _, err = cli(capfd, "pretrain", *(["--resume"] if begun else small(digits)), "--out", tmp_path / "run")
        assert code == 0, err


@pytest.fixture
def read_only(encoder_run: Path, tmp_path: Path) -> Iterator[Path]:
    """A disk with a run on it that can be read alone."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        made = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    if made.returncode:
        pytest.skip(f"no disk can be mounted here: {made.stderr.strip()}")
    try:
        shutil.copytree(encoder_run, disk / "run")
        (disk / "run" / "result.json").unlink()
        shutil.copy(next(encoder_run.parent.glob("digits/test/*/*.png")), disk / "a.png")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("command", ["pretrain", "resume", "probe", "export", "embed", "denoise", "data"])
def test_a_disk_that_is_read_only_is_one_line(
    command: str, read_only: Path, encoder_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    digits, out = encoder_run.parent / "digits", read_only / "out"
    line = {
        "pretrain": ["pretrain", *small(digits), "--out", out],
        "resume": ["pretrain", "--resume", "--out", read_only / "run"],
        "probe": ["probe", encoder_run, "--kind", "knn", "--dataset", f"folder:{digits}", "--out", out],
        "export": ["export", read_only / "run", "--to", "timm", "--out", out],
        "embed": ["embed", read_only / "run", "--out", out.with_suffix(".npz")],
        "denoise": ["denoise", read_only / "a.png", "--run", read_only / "run"],
        "data": ["data", "pack", f"folder:{digits}", "--out", out],
    }[command]
    code, _, err = cli(capfd, *line)
    assert code in (1, 2)
    assert "Read-only file system" in one_line(err)
    assert "--resume" not in err


# -- what somebody changed


def test_a_manifest_that_names_other_files_reads_none_of_them(encoder_run: Path, tmp_path: Path) -> None:
    shutil.copytree(encoder_run, tmp_path / "run")
    [newest, *_] = checkpoint.newest_first(tmp_path / "run" / "checkpoints")
    sums = json.loads((newest / "manifest.json").read_text())
    (newest / "manifest.json").write_text(json.dumps(sums | {"../../../../../../etc/passwd": "0" * 64}))
    read: list[str] = []

    def noting(real: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def noted(path: Path) -> Any:
            read.append(path.name)
            return real(path)

        return noted

    with pytest.MonkeyPatch.context() as patched:
        for real in (files.open_file, files.read_within):
            patched.setattr(f"dsdmae_cli.checkpoint.{real.__name__}", noting(real))
        checkpoint.load(newest)
    assert "model.safetensors" in read
    assert "passwd" not in read


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[1, 2]", b"\xff\x00", b"[" * 100_000, b'{"ended": 3}'])
@pytest.mark.parametrize("name", ["run.json", "result.json"])
def test_a_damaged_word_about_a_run_stops_nothing(
    name: str, content: bytes, encoder_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(encoder_run, tmp_path / "run"))
    (run / name).write_bytes(content)
    assert cli(capfd, "runs", "--in", tmp_path)[0] == 0
    is_object = content.startswith(b'{"')
    for line in (["export", run, "--to", "timm", "--out", tmp_path / "out"], ["compare", run]):
        code, _, err = cli(capfd, *line)
        needs = line[0] == "export" or name == "result.json"
        assert code == (2 if needs and not (line[0] == "export" and is_object) else 0), err
        if code:
            assert name in one_line(err)
    code, _, err = cli(capfd, "pretrain", "--resume", "--out", run)
    assert code == 0, err
    assert json.loads((run / name).read_text())
    assert RunDir(run).finished() is not None


def test_a_probe_that_was_killed_is_in_nobodys_way(
    encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It cannot be resumed, so that the same command begins anew; one that has a result stays."""
    out, digits = tmp_path / "probed", encoder_run.parent / "digits"
    line = ["probe", encoder_run, "--kind", "knn", "--dataset", f"folder:{digits}", "--device", "cpu", "--out", out]
    kept = tmp_path / "kept"

    def killed(*_: object) -> None:
        shutil.copytree(out, kept)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("dsdmae_cli.recipes.probe.judge", killed)
        assert cli(capfd, *line)[0] == 130
    shutil.copytree(kept, out)
    code, said, err = cli(capfd, *line, "--dry-run")
    assert (code, (out / "settings.toml").exists()) == (0, True), err
    assert said.endswith(f"--out {out} holds what a probe that was killed has left, which will be removed first\n")
    code, _, err = cli(capfd, *line)
    assert code == 0, err
    result, torn = (out / "result.json").read_bytes(), out / "figures" / ".curves.png.0123456789abcdef.partial"
    torn.write_text("of a library that aborted")
    files._swept.clear()
    code, _, err = cli(capfd, *line)
    assert code == 2
    assert one_line(err).endswith("holds a probe already; choose another directory")
    assert (out / "result.json").read_bytes() == result
    assert not torn.exists()


def test_a_run_that_was_killed_is_not_taken_for_a_probe(
    digits: Path, encoder_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(digits, tmp_path / "run", "train.epochs=1")
    (tmp_path / "run" / "result.json").unlink()
    before = listing(tmp_path / "run")
    line = ["probe", encoder_run, "--kind", "knn", "--dataset", f"folder:{digits}", "--out", tmp_path / "run"]
    code, _, err = cli(capfd, *line)
    assert code == 2
    assert "holds a run already" in one_line(err)
    assert listing(tmp_path / "run") == before


# -- what a launcher says


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "process group"),
        ({"RANK": "0", "WORLD_SIZE": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, "process group"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "process group"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "no"}, "process group"),
    ],
)
def test_an_odd_launcher_is_one_line(
    environ: dict[str, str], said: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    code, _, err = cli(capfd, "pretrain", *small(digits), "--out", tmp_path / "run")
    assert code == 2
    assert said in one_line(err)
    assert not (tmp_path / "run").exists()


def test_a_port_that_is_taken_is_one_line(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        environ = {
            "RANK": "0",
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(taken.getsockname()[1]),
        }
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        code, _, err = cli(capfd, "pretrain", *small(digits), "--out", tmp_path / "run")
    assert code == 2
    assert "cannot join torchrun's process group" in one_line(err)


# -- what writes files at once, or in a folder that others use


def test_what_a_killed_writer_left_is_swept_and_what_somebody_writes_stays(tmp_path: Path) -> None:
    left, mine = tmp_path / ".e.npz.0123456789abcdef.partial", tmp_path / ".notes.partial"
    for path in (left, mine):
        path.write_text("half")
    with files.aside(tmp_path / "a.csv") as partial:
        assert not left.exists()
        left.write_text("half")
        files._swept.clear()  # as another process has it
        files.write_bytes(tmp_path / "b.csv", b"b")
        assert not left.exists()
        partial.write_text("a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".notes.partial", "a.csv", "b.csv"]
    assert (tmp_path / "a.csv").read_text() == "a"


def test_a_signal_that_comes_when_a_partial_file_is_made_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = files._make

    def stopped(*given: Any) -> None:
        make(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_make", stopped)
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes(tmp_path / "a.csv", b"a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", [False, True])
def test_an_exported_folder_is_whole_or_not_there(
    there: bool, encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out, write = tmp_path / "out", files.write_synced
    if there:  # and what was there stays
        (out / ".0123456789abcdef.partial").mkdir(parents=True)
        (out / "config.json").write_text("mine")

    def full(path: Path, content: bytes) -> None:
        if content.startswith(b"{"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    monkeypatch.setattr(files, "write_synced", full)
    line = ["export", encoder_run, "--to", "timm", "--out", out, *["--force"] * there]
    code, _, err = cli(capfd, *line)
    assert code == 1
    assert f"cannot write {out / 'config.json'}: No space left" in one_line(err)
    assert [(path.name, path.read_text()) for path in out.glob("*")] == [("config.json", "mine")] * there
    monkeypatch.setattr(files, "write_synced", write)
    assert cli(capfd, *line)[0] == 0
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]


def test_features_whose_picture_cannot_be_written_are_not_left(
    encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same command would find them there, and refuse."""
    digits = encoder_run.parent / "digits"

    def full(sheet: Any, path: Path) -> None:
        raise RunFailed(f"cannot write {path}: No space left on device; {files.RESUME}")

    monkeypatch.setattr("dsdmae_cli.figures.attention.save", full)
    line = ["embed", encoder_run, "--dataset", f"folder:{digits}", "--out", tmp_path / "e.npz", "--attention"]
    code, _, err = cli(capfd, *line)
    assert code == 1
    assert one_line(err).endswith("No space left on device; make room or choose another --out")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("dsdmae_cli.figures.attention.save", save)
    assert cli(capfd, *line)[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"e.npz", "e.attention.png"}


@pytest.mark.parametrize("there", [False, True])
def test_of_the_files_of_one_picture_all_are_written_or_none(
    there: bool, encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One that is there would keep the others from being made by the same command; and what was there before stays."""
    picture, out = next((encoder_run.parent / "digits").rglob("*.png")), tmp_path / "out"
    names = {f"{picture.stem}.{kind}.png" for kind in ("original", "corrupted", "restored")}
    if there:
        out.mkdir()
        for name in names:
            (out / name).write_text("mine")
    save, saved = each._save, []

    def full(*given: Any) -> None:
        saved.append(given)
        if len(saved) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(*given)

    monkeypatch.setattr(each, "_save", full)
    line = ["restore", encoder_run, picture, "--device", "cpu", "--out", f"{out}/", *["--force"] * there]
    code, _, err = cli(capfd, *line)
    assert code == 1
    assert "No space left on device; make room" in one_line(err)
    assert {path.name: path.read_text() for path in out.glob("*")} == (dict.fromkeys(names, "mine") if there else {})
    assert cli(capfd, *line)[0] == 0
    assert {path.name for path in out.iterdir()} == names
