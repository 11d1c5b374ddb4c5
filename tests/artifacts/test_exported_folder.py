"""The folder of an export: one process at a time, nothing half replaced, nothing of others taken for it."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
from helpers import cli, listing
from small_runs import exported

from dsdmae_cli import files
from dsdmae_cli.errors import RunFailed, SettingsError

locked = pytest.mark.skipif(sys.platform == "win32", reason="folders are not locked there")


@locked
def test_two_at_once_do_not_sweep_each_others_draft(tmp_path: Path) -> None:
    folder, refused = tmp_path / "out", []

    def second() -> None:
        try:
            with files.folder_at_once(folder, "advice", replace=True):
                pass
        except RunFailed as error:
            refused.append(str(error))

    with files.folder_at_once(folder, "advice", replace=False) as draft:
        (draft / "a").write_text("first")
        other = threading.Thread(target=second)
        other.start()
        other.join()
    assert listing(folder) == {"a"}
    assert [text.startswith(f"another process is writing {folder}; wait") for text in refused] == [True]
    with files.folder_at_once(folder, "advice", replace=True) as draft:  # the lock went with the block
        (draft / "b").write_text("second")
    assert listing(folder) == {"a", "b"}


def test_what_another_process_wrote_meanwhile_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a").write_text("theirs")  # after this command saw an empty folder
    with (
        pytest.raises(RunFailed, match="not empty any more: another process has written there; choose another"),
        files.folder_at_once(folder, "choose another", replace=False),
    ):
        raise AssertionError
    assert listing(folder) == {"a"}


def test_none_of_them_takes_its_place_where_one_cannot(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "b").mkdir(parents=True)
    (folder / "a").write_text("old")

    def written() -> None:
        with files.folder_at_once(folder, "choose another", replace=True) as draft:
            (draft / "a").write_text("new")
            (draft / "b").write_text("new")

    with pytest.raises(RunFailed, match="b is a folder there; choose another"):
        written()
    assert (folder / "a").read_text() == "old"
    assert listing(folder) == {"a", "b"}


def test_a_card_of_other_weights_is_named(encoder_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    exported(encoder_run, "hf", out)
    code, _, err = cli(capfd, "export", encoder_run, "--to", "timm", "--out", out, "--force")
    assert code == 0
    assert f"{out / 'README.md'} was there before and is about other weights; delete it" in err


@pytest.mark.parametrize("name", ["encoder.safetensors", "classifier.safetensors"])
def test_weights_that_would_be_read_in_its_place(name: str, encoder_run: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(SettingsError, match=f"holds {name}, which is read before the model.safetensors"):
        exported(encoder_run, "timm", tmp_path, force=True)
    assert listing(tmp_path) == {name}
