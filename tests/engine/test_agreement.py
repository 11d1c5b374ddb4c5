"""Processes of one run that see other checkpoints or images end together, with one sentence, and harm nothing.

What a process sees is changed in the second one alone, as another disk, a slow network file system or a damaged file
of one machine would change it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from helpers import assignments, one_line, start, train, words

from dsdmae_cli import checkpoint, distributed
from dsdmae_cli.engine import Trainer
from dsdmae_cli.errors import DataError, SettingsError
from dsdmae_cli.runtime import choose_device

pytestmark = pytest.mark.faults
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")

# {patch} stands for what is otherwise in the second process.
DRIVER = """
import os, sys
from pathlib import Path
from dsdmae_cli.__main__ import main
if os.environ["RANK"] == "1":
    {patch}
main(sys.argv[1:])
"""
ELSEWHERE = """
    from dsdmae_cli.runs import rundir
    before = rundir.RunDir.__init__
    def other(self, path):
        before(self, path)
        self.checkpoints = Path({folder!r})
    rundir.RunDir.__init__ = other
"""
FEWER = """
    import numpy as np
    from dsdmae_cli.data.base import Subset
    from dsdmae_cli.recipes import pretrain
    before = pretrain.open_all
    def other(settings):
        whole = before(settings)
        return Subset(whole, np.array({chosen}))
    pretrain.open_all = other
"""
RAISES = """
    from dsdmae_cli.errors import DataError
    from dsdmae_cli.recipes import pretrain
    def fails(settings):
        raise {error}
    pretrain.open_all = fails
"""


def in_two(folder: Path, patch: str, *arguments: str | Path) -> tuple[int, str]:
    """(exit code, stderr) of two processes, of which the second is patched."""
    driver = folder / "driver.py"
    driver.write_text(DRIVER.replace("    {patch}", patch))
    process = start(*TORCHRUN, "2", driver, *arguments)
    _, err = process.communicate(timeout=240)
    return process.returncode, err


def ours(err: str) -> str:
    """What the program said, before torchrun's own account."""
    return err.partition("torch/distributed/elastic")[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ("nothing", "in process 1 of 2: checkpoint"),
        ("an older one", "in process 1 of 2: checkpoint"),
        ("a damaged one", "does not match its checksum"),
        ("another run's", "is not the one that the first process reads"),
    ],
)
def test_a_process_that_sees_another_checkpoint_ends_all(seen: str, said: str, digits: Path, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    train(digits, run, "train.checkpoint_every=1", "train.epochs=2")
    (run / "result.json").unlink()  # as if it had been stopped before its end
    if seen == "another run's":
        train(digits, other, "train.checkpoint_every=1", "train.epochs=2", "train.seed=1")
        theirs = other / "checkpoints"
    else:
        theirs = other
        if seen != "nothing":
            shutil.copytree(run / "checkpoints", theirs)
            newest = checkpoint.newest_first(theirs)[0]
            if seen == "an older one":
                shutil.rmtree(newest)
            else:
                (newest / "model.safetensors").write_bytes(b"torn")
    held = {path: path.stat().st_mtime_ns for path in sorted((run / "checkpoints").rglob("*"))}
    code, err = in_two(tmp_path, ELSEWHERE.format(folder=str(theirs)), "pretrain", "--resume", "--out", run)
    assert code != 0
    assert said in one_line(ours(err))
    assert {path: path.stat().st_mtime_ns for path in sorted((run / "checkpoints").rglob("*"))} == held


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patch", "said"),
    [
        (FEWER.format(chosen="range(len(whole) - 1)"), "do not see the same images: 42 images"),
        (FEWER.format(chosen="range(len(whole))[::-1]"), "do not see the same images: 42 images"),
        (RAISES.format(error='DataError("no such folder")'), "in process 1 of 2: no such folder"),
    ],
)
def test_a_process_that_sees_other_images_ends_all(patch: str, said: str, digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, err = in_two(tmp_path, patch, "pretrain", *words(assignments(digits)), "--out", run)
    assert code != 0
    assert said in one_line(ours(err))
    assert not run.exists()


@pytest.mark.slow
def test_an_error_that_is_a_bug_keeps_its_traceback_and_ends_all(digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    patch = RAISES.format(error='ZeroDivisionError("a bug")')
    code, err = in_two(tmp_path, patch, "pretrain", *words(assignments(digits)), "--out", run)
    assert code != 0
    assert "dsdmae: error: in process 1 of 2: ZeroDivisionError: a bug" in err
    assert 'raise ZeroDivisionError("a bug")' in err
    assert not run.exists()


def test_a_group_of_one_agrees_with_itself() -> None:
    distributed.agree("images", "8 images", "")
    with pytest.raises(DataError, match=r"^torn$"), distributed.one_fate():
        raise DataError("torn")


def test_all_take_the_smallest_micro_batch_of_any(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def fit(self: Trainer) -> None:
        seen.extend((self.runtime.micro_batch, len(next(next(self.source.steps(0))).images)))
        raise ZeroDivisionError

    highest = distributed.highest
    monkeypatch.setattr(distributed, "highest", lambda value: max(highest(value), -2))  # the other one's is 2
    monkeypatch.setattr(Trainer, "fit", fit)
    with pytest.raises(ZeroDivisionError):
        train(digits, tmp_path / "run", "train.micro_batch=4", "train.knn_every=100")
    assert seen == [2, 2]


def test_each_process_has_a_gpu_of_its_own_or_one_line_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:1")
    with pytest.raises(SettingsError, match=r"'cuda:1' would put all 2 processes of this machine on one GPU; say cuda"):
        choose_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("cuda") == torch.device("cuda:0")  # srun gave it this one alone
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(SettingsError, match=r"process 1 of this machine finds no GPU of its own: 1 can be seen"):
        choose_device("cuda")
