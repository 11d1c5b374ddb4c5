"""`dsdmae pretrain` from end to end: what a run leaves, how it stops, goes on, and refuses."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import (
    SLOW_DRIVER,
    assignments,
    cli,
    digit_folder,
    listing,
    one_line,
    records,
    start,
    steps_done,
    train,
    untimed,
    wait_until,
    words,
)
from PIL import Image
from safetensors.torch import load as load_tensors

from dsdmae_cli import checkpoint
from dsdmae_cli.errors import CheckpointError, RunInterrupted, SettingsError
from dsdmae_cli.evaluation.closing import wilson_interval
from dsdmae_cli.files import write_bytes
from dsdmae_cli.runs.run import Run
from dsdmae_cli.runs.rundir import RunDir
from dsdmae_cli.signals import listening

# Three epochs of five steps, each of three micro-batches; windows of four steps never end with an epoch. Everything
# that is random is switched on.
RANDOM = (
    "train.epochs=3", "train.log_every=4", "train.micro_batch=3", "train.knn_every=1", "backbone.depth=2",
    "backbone.drop_path=0.3", "method.noise_std=[0.5, 1.5]", "method.mask_ratio=[0.5, 0.9]", "data.flip=true",
    "data.shift=1", "data.crop_scale=[0.5, 1]",
)  # fmt: skip
PLACES = {
    "resident": ("data.placement=resident",),
    "streaming": ("data.placement=streaming", "data.workers=0"),
    "workers": ("data.placement=streaming", "data.workers=1"),
}
STEPS = 15
CURVES = {f"{name}.svg" for name in ("loss", "accuracy", "rank", "spread", "learning-rate", "gradient")}
FIGURES = {"restored.png", *(f"restored-step-{step:08d}.png" for step in (0, 4, 8, 11, 15))}
CHECKPOINT = ("manifest.json", "model.safetensors", "state.json", "training.safetensors")
FILES = {
    ".lock", "settings.toml", "run.json", "metrics.jsonl", "result.json", "encoder.safetensors", "report.html",
    "figures", *(f"figures/{name}" for name in FIGURES | CURVES), "checkpoints",
    *(f"checkpoints/step-{step:08d}" for step in (10, 15)),
    *(f"checkpoints/step-{step:08d}/{name}" for step in (10, 15) for name in CHECKPOINT),
}  # fmt: skip


class PowerCut(BaseException):
    """What no program can answer."""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_folder(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def resident(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was never interrupted; look at it, or copy it."""
    out = tmp_path_factory.mktemp("run")
    train(digits, out, *RANDOM, *PLACES["resident"])
    return out


@pytest.fixture
def copied(resident: Path, tmp_path: Path) -> Path:
    return shutil.copytree(resident, tmp_path / "run")


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], object]) -> None:
    """Do something as soon as a step is done."""
    stepped = Run.stepped

    def and_act(self: Run, now: int) -> None:
        stepped(self, now)
        if now == step:
            act()

    monkeypatch.setattr(Run, "stepped", and_act)


def assert_same_run(run: Path, expected: Path) -> None:
    """All that two runs of one command leave is equal to the last bit, the clock's readings apart."""
    assert untimed(run) == untimed(expected)
    equal = ["encoder.safetensors", *(f"figures/restored-step-{step:08d}.png" for step in (0, 4, 8, 11, 15))]
    equal += [f"checkpoints/step-{STEPS:08d}/{name}" for name in ("model.safetensors", "training.safetensors")]
    different = [name for name in equal if (run / name).read_bytes() != (expected / name).read_bytes()]
    assert different == []
    results = [json.loads((folder / "result.json").read_text()) for folder in (run, expected)]
    for key in ("run", "seconds", "encoder", "load_with", "pictures"):
        for result in results:
            del result[key]
    assert results[0] == results[1]


# -- what a run leaves


def test_the_files_of_a_run(resident: Path, digits: Path) -> None:
    assert listing(resident) == FILES
    kept = tomllib.loads((resident / "settings.toml").read_text())
    assert kept["train"]["epochs"] == 3
    assert kept["backbone"]["embed_dim"] == 32
    about = json.loads((resident / "run.json").read_text())
    assert about["packages"].keys() >= {"dsdmae", "torch", "timm", "safetensors"}
    assert (about["device"], about["precision"], about["micro_batch"]) == ("cpu", "fp32", 3)
    assert about["resolved_settings"]["data"]["crop_scale"] == [0.5, 1]
    assert about["argv"] == sys.argv
    for picture in (resident / "figures").glob("*.png"):
        with Image.open(picture) as image:
            image.load()
            assert min(image.size) > 100


def test_the_metrics_of_a_run(resident: Path) -> None:
    logged = records(resident)
    assert [r["step"] for r in logged] == [0, 4, 5, 8, 10, 12, 15, 15]
    assert [r["step"] for r in logged if "knn" in r] == [0, 5, 10, 15]
    for record in logged:
        assert record["epoch"] == pytest.approx(record["step"] / 5)
        if "knn" in record:
            assert 0 <= record["knn"] <= 1
            continue
        parts = {"loss", "pixel", "feature", "grad_norm", "skipped", "lr", "images_per_second"}
        assert record.keys() == {"step", "epoch", *parts}
        assert record["loss"] == pytest.approx(0.6 * record["pixel"] + 0.4 * record["feature"], rel=1e-5)


def test_the_result_of_a_run(resident: Path, digits: Path) -> None:
    result = json.loads((resident / "result.json").read_text())
    scores = [r["knn"] for r in records(resident) if "knn" in r]
    last = [r for r in untimed(resident) if "loss" in r][-1]
    last_scored = [r for r in records(resident) if "knn" in r][-1]
    assert result.pop("seconds") > 0
    assert result.pop("load_with").startswith("timm.create_model('vit_tiny_patch16_224', img_size=16, patch_size=4,")
    assert result == {
        "run": str(resident),
        "method": "dsdmae",
        "backbone": "vit-tiny",
        "dataset": f"folder:{digits}",
        "data_notes": ["train/ is learned from and test/ evaluated on"],
        "epochs": 3,
        "steps": STEPS,
        "images_seen": STEPS * 8,
        "final": {k: v for k, v in last.items() if k not in ("step", "epoch")},
        "knn_accuracy": scores[-1],
        "knn_interval": list(wilson_interval(scores[-1], 10)),
        "knn_images": 10,
        "start": None,
        "knn_accuracy_untrained": scores[0],
        "knn_accuracy_start": None,
        "closing": result["closing"],
        "measured": {},
        "feature_spread": last_scored["spread"],
        "feature_rank": last_scored["rank"],
        "skipped_steps": 0,
        "unreadable_images": 0,
        "encoder": str(resident / "encoder.safetensors"),
        "pictures": str(resident / "figures"),
    }


def test_with_tensorboard_and_json(digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    chosen = words(assignments(digits, *RANDOM, "train.trackers=tensorboard", "method.lambda=0"))
    code, out, err = cli(capfd, "pretrain", *chosen, "--out", run, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads((run / "result.json").read_text())
    [events] = [name for name in listing(run) if name.startswith("tensorboard/")]
    # Without a decoder nothing is restored, and there is nothing to show.
    pictures = {f"figures/{name}" for name in FIGURES}
    assert listing(run) == FILES - pictures | {"tensorboard", events}
    assert {"feature", "loss"} <= records(run)[-2].keys()
    assert "pixel" not in records(run)[-2]


def test_plain_progress_goes_to_stderr(digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    chosen = words(assignments(digits, "train.epochs=1", method="mae"))
    code, out, err = cli(capfd, "pretrain", *chosen, "--out", tmp_path / "run")
    assert code == 0
    assert "\x1b" not in out + err
    assert out.splitlines()[0].startswith("5 steps, 40 images in ")
    assert "timm.create_model(" in out
    assert f"mae with vit-tiny on folder:{digits}: 42 images, 5 steps of 8 on cpu in fp32" in err


@pytest.mark.parametrize("as_json", [True, False])
def test_a_dry_run_writes_nothing(
    as_json: bool, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    home = Path(os.environ["XDG_DATA_HOME"]).parent
    before = [listing(folder) for folder in (tmp_path, home, digits)]
    chosen = words(assignments(digits, *RANDOM))
    json_flag = ["--json"] if as_json else []
    code, out, err = cli(capfd, "pretrain", *chosen, "--out", tmp_path / "run", "--dry-run", *json_flag)
    assert (code, err) == (0, "")
    assert [listing(folder) for folder in (tmp_path, home, digits)] == before
    if not as_json:
        assert "42 images to train, 10 to evaluate, resident" in out
        return
    plan = json.loads(out)
    known = {"train_images": 42, "test_images": 10, "placement": "resident", "image_size": 16, "tokens": 16,
             "epochs": 3, "steps": STEPS, "effective_batch": 8, "micro_batch": 3, "learning_rate": 1e-3,
             "device": "cpu", "precision": "fp32", "compile": False}  # fmt: skip
    assert {key: plan[key] for key in known} == known
    assert plan["gflop_per_image"] > 0
    assert plan["memory_gib"] > 0
    assert 0 < plan["estimated_seconds"] < 600
    assert plan["encoder_parameters"] < plan["parameters"]


# -- stopping and going on


@pytest.mark.parametrize("place", PLACES)
def test_a_resumed_run_equals_an_uninterrupted_one(
    place: str, digits: Path, resident: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, chosen = tmp_path / "run", (*RANDOM, *PLACES[place])
    expected = resident
    if place != "resident":
        expected = tmp_path / "whole"
        train(digits, expected, *chosen)

    def crash() -> None:
        raise PowerCut

    # In the first micro-window, at the end of an epoch, right after it, in a window that has just begun.
    for index, step in enumerate((2, 10, 11, 13)):
        with monkeypatch.context() as patched:
            if step == 13:
                at_step(patched, step, crash)
                with pytest.raises(PowerCut):
                    train(digits, run, *chosen, resume=True)
                with (run / "metrics.jsonl").open("a") as file:
                    file.write('{"step": 13, "lo')
                break
            number = signal.SIGTERM if index % 2 else signal.SIGINT
            at_step(patched, step, lambda number=number: signal.raise_signal(number))
            with pytest.raises(RunInterrupted, match=f"saved at step {step} of {STEPS}") as stopped:
                train(digits, run, *chosen, resume=index > 0)
            assert stopped.value.exit_code == 128 + number
            assert checkpoint.newest_first(run / "checkpoints")[0].name == f"step-{step:08d}"
    train(digits, run, *chosen, resume=True)
    assert_same_run(run, expected)
    if place == "resident":
        # The checkpoints before the last are those at which it was stopped.
        kept = FILES - {name for name in FILES if "step-00000010" in name}
        assert {name for name in listing(run) if "step-00000011/" not in name} >= kept
    assert json.loads((run / "run.json").read_text())["resumed_at_step"] == 11


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file but the lock: when it was written, and what it holds."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize("without", ["", "checkpoints"])
def test_a_finished_run_is_left_as_it_is(without: str, copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if without:  # to save room: it must not be trained from the beginning
        shutil.rmtree(copied / without)
    before = contents(copied)
    code, out, err = cli(capfd, "pretrain", "--resume", "--out", copied)
    assert code == 0, err
    assert f"finished already, in {copied}: nothing is trained, judged or written" in err
    assert "encoder " in out
    assert contents(copied) == before


@pytest.mark.parametrize("lost", ["result.json", "encoder.safetensors", "run.json"])
def test_what_a_finished_run_has_lost_is_made_again(lost: str, copied: Path, resident: Path, digits: Path) -> None:
    (copied / lost).unlink()
    train(digits, copied, *RANDOM, *PLACES["resident"], resume=True)
    assert listing(copied) == FILES
    assert_same_run(copied, resident)


def test_a_damaged_newest_checkpoint_falls_back(
    copied: Path, resident: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    newest = copied / "checkpoints" / "step-00000015"
    damaged = bytearray((newest / "model.safetensors").read_bytes())
    damaged[-5] ^= 4
    (newest / "model.safetensors").write_bytes(damaged)
    (copied / "result.json").unlink()
    code, _, err = cli(capfd, "pretrain", "--resume", "--out", copied, "--json")
    assert code == 0
    assert len(err.splitlines()) == 1
    assert f"warning: checkpoint {newest} is damaged: model.safetensors does not match its checksum" in err
    assert_same_run(copied, resident)

    for path in [*copied.glob("checkpoints/*/manifest.json"), copied / "result.json"]:
        path.unlink()
    before = listing(copied)
    code, out, err = cli(capfd, "pretrain", "--resume", "--out", copied)
    assert (code, out) == (2, "")
    assert "no checkpoint" in one_line(err)
    assert listing(copied) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("optim.lr=0.5", "optim.lr: 0.001, now 0.5"),
        ("train.epochs=4", "train.epochs: 3, now 4"),
        ("method.lambda=0.5", "method.lambda: 0.6, now 0.5"),
        ("train.micro_batch=4", "train.micro_batch: 3, now 4"),
        ("backbone.depth=1", "backbone.depth: 2, now 1"),
        ("data.shift=2", "data.shift: 1, now 2"),
        ("train.seed=1", "train.seed: 0, now 1"),
    ],
)
def test_changed_settings_are_refused_by_name(change: str, named: str, resident: Path, digits: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        train(digits, resident, *RANDOM, *PLACES["resident"], change, resume=True, overridden=True)
    assert named in str(refused.value)
    assert str(refused.value).count(", now ") == 1
    assert listing(resident) == FILES


def test_settings_that_change_no_result_may_change(copied: Path, resident: Path, digits: Path, tmp_path: Path) -> None:
    free = ("train.keep_checkpoints=3", "data.workers=1", "data.download=false", f"data.data_dir={tmp_path}")
    shutil.rmtree(copied / "checkpoints" / "step-00000015")
    (copied / "result.json").unlink()
    train(digits, copied, *RANDOM, *PLACES["resident"], *free, resume=True, overridden=True)
    assert untimed(copied) == untimed(resident)
    weights = "checkpoints/step-00000015/model.safetensors"
    ours, theirs = (load_tensors((run / weights).read_bytes()) for run in (copied, resident))
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)


def test_only_what_is_given_beside_resume_is_compared(copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The run's other settings stand: nobody repeats a whole command line to move a run to another device."""
    resume = ("pretrain", "--resume", "--out", copied, "--json")
    code, _, err = cli(capfd, *resume, "--device", "cpu", "--set", "train.keep_checkpoints=3")
    assert (code, err) == (0, "")
    code, _, err = cli(capfd, *resume, "--lr", "0.5")
    assert code == 2
    assert "optim.lr: 0.001, now 0.5" in one_line(err)
    assert err.count(", now ") == 1


def test_where_there_is_nothing_to_resume(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for out in (tmp_path, tmp_path / "missing"):
        code, _, err = cli(capfd, "pretrain", "--resume", "--out", out)
        assert code == 2
        assert f"nothing to resume in {out}" in one_line(err)
    assert listing(tmp_path) == set()
    code, _, err = cli(capfd, "pretrain", "--resume")
    assert code == 2
    assert "add --out DIR" in one_line(err)


def test_a_run_without_a_checkpoint_begins_anew(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash() -> None:
        raise PowerCut

    chosen = ("train.epochs=1", "train.knn_every=1")
    with monkeypatch.context() as patched:
        at_step(patched, 3, crash)
        with pytest.raises(PowerCut):
            train(digits, tmp_path / "run", *chosen)
    train(digits, tmp_path / "run", *chosen, resume=True)
    train(digits, tmp_path / "whole", *chosen)
    assert untimed(tmp_path / "run") == untimed(tmp_path / "whole")


def test_a_directory_that_holds_something_is_refused(
    resident: Path, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for out, word in ((resident, "--resume"), (digits, "not empty"), (digits / "file", "cannot use --out")):
        if word.startswith("cannot"):
            out = tmp_path / "file"
            out.write_text("mine")
        before = listing(out)
        code, _, err = cli(capfd, "pretrain", *words(assignments(digits)), "--out", out)
        assert code == 2
        assert word in one_line(err)
        assert str(out) in err
        assert listing(out) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_that_could_not_begin_leaves_its_directory_free(
    digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = words(assignments(digits, "train.epochs=1", "train.batch_size=64"))
    code, _, err = cli(capfd, "pretrain", *chosen, "--out", tmp_path / "run")
    assert code == 2
    assert "train.batch_size = 64 is larger than the 42 training images; set --batch-size 42" in one_line(err)
    # Mended as the message says.
    chosen = words(assignments(digits, "train.epochs=1", "train.batch_size=42"))
    code, _, err = cli(capfd, "pretrain", *chosen, "--out", tmp_path / "run")
    assert code == 0, err


# -- signals and other processes


def test_the_first_signal_is_remembered_the_second_ends() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with listening() as requests:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert (requests.save, requests.stop_signal) == (True, signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
    script = (
        "import signal, sys\nfrom dsdmae_cli.signals import listening\nwith listening():\n"
        "    signal.raise_signal(signal.SIGINT)\n    print('on', flush=True)\n"
        "    signal.raise_signal(signal.SIGTERM)\n    print('still on')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "on\n")


@pytest.mark.slow
def test_usr1_kill_and_term(digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    total = 150
    chosen = assignments(digits, "train.epochs=30", "train.checkpoint_every=1000")
    first = start("-c", SLOW_DRIVER, "pretrain", *words(chosen), "--out", run)
    wait_until(lambda: steps_done(run) >= 2, first)

    # A second process, this one, finds the directory taken, whether it resumes or begins.
    with pytest.raises(SettingsError, match="another process is running"):
        train(digits, run, resume=True)
    with pytest.raises(SettingsError, match="holds a run already"):
        train(digits, run)

    # SIGUSR1 saves and goes on.
    first.send_signal(signal.SIGUSR1)
    wait_until(lambda: bool(checkpoint.newest_first(run / "checkpoints")), first)
    saved = int(checkpoint.newest_first(run / "checkpoints")[0].name.split("-")[1])
    assert 2 <= saved < total
    wait_until(lambda: steps_done(run) > saved + 2, first)

    # kill -9: nothing is said, the lock is gone with the process.
    first.kill()
    _, err = first.communicate()
    assert (first.returncode, "Traceback" in err) == (-signal.SIGKILL, False)
    reached = steps_done(run)
    second = start("-c", SLOW_DRIVER, "pretrain", "--resume", "--out", run)
    wait_until(lambda: steps_done(run) > reached + 2, second)
    second.send_signal(signal.SIGTERM)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 143, err
    assert f"resumed at step {saved}" in err
    newest = int(checkpoint.newest_first(run / "checkpoints")[0].name.split("-")[1])
    assert f"stopped by signal 15 and saved at step {newest} of {total}" in err.splitlines()[-1]
    assert f"dsdmae pretrain --resume --out {run}" in err.splitlines()[-1]
    assert "Traceback" not in err

    code, out, _ = cli(capfd, "pretrain", "--resume", "--out", run, "--json")
    assert (code, json.loads(out)["steps"]) == (0, total)
    assert [r["step"] for r in records(run)] == list(range(1, total + 1))


def test_ctrl_c_reaches_the_workers_too_and_harms_nothing(
    digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    chosen = assignments(digits, *PLACES["workers"], "train.epochs=10")
    process = start("-c", SLOW_DRIVER, "pretrain", *words(chosen), "--out", run)
    wait_until(lambda: steps_done(run) >= 2, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopped by Ctrl-C" in err.splitlines()[-1]
    assert "Traceback" not in err
    code, out, _ = cli(capfd, "pretrain", "--resume", "--out", run, "--json")
    assert (code, json.loads(out)["steps"]) == (0, 50)


# torch reports a lost worker from a signal handler, so wherever the process is; in one of its own it harms no test.
FATAL_DRIVER = """
import os, signal
from dsdmae_cli.data.files import FileImages
me, load = os.getpid(), FileImages.load
def fatal(self, index):
    if os.getpid() != me and index == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return load(self, index)
FileImages.load = fatal
"""


@pytest.mark.parametrize("when", ["while decoding", "while training"])
def test_a_killed_worker_ends_the_run(when: str, digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    chosen = words(assignments(digits, *PLACES["workers"], "train.epochs=40"))
    driver = SLOW_DRIVER if when == "while training" else FATAL_DRIVER + SLOW_DRIVER
    process = start("-c", driver, "pretrain", *chosen, "--out", run)
    if when == "while training":
        wait_until(lambda: steps_done(run) >= 2, process)
        for child in psutil.Process(process.pid).children():
            child.kill()
        killed = time.monotonic()
        _, err = process.communicate(timeout=60)
        assert time.monotonic() - killed < 20
    else:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "decodes images died" in one_line(err)
    assert "--resume" in err
    assert len(err.splitlines()) < 15


# -- images that cannot be read


@pytest.fixture
def broken(tmp_path: Path) -> Callable[[int], Path]:
    """A function that makes a folder of digits with so many of them damaged."""

    def make(count: int) -> Path:
        folder = digit_folder(tmp_path / "broken")
        for path in sorted(folder.glob("train/*/*.png"))[:count]:
            path.write_bytes(path.read_bytes()[:60])
        return folder

    return make


@pytest.mark.parametrize("place", PLACES)
def test_an_unreadable_image_is_skipped_named_and_counted(
    place: str, broken: Callable[[int], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = broken(3)
    names = [str(path) for path in sorted(folder.glob("train/*/*.png"))[:3]]
    chosen = assignments(folder, *PLACES[place], "data.max_unreadable=0.1", "train.epochs=4")
    code, out, err = cli(capfd, "pretrain", *words(chosen), "--out", tmp_path / "run", "--json")
    assert code == 0, err
    assert json.loads(out)["unreadable_images"] == 3
    [line] = err.splitlines()
    assert line.startswith("dsdmae: warning: skipped 3 unreadable images: ")
    assert all(name in line for name in names)


@pytest.mark.parametrize("place", PLACES)
def test_unreadable_images_stop_a_strict_run_and_one_beyond_the_limit(
    place: str, broken: Callable[[int], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = words(assignments(broken(2), *PLACES[place], "train.epochs=4"))
    code, _, err = cli(capfd, "pretrain", *chosen, "--strict-data", "--out", tmp_path / "strict")
    assert code == 2
    assert "unreadable image" in one_line(err)
    assert "--strict-data" in err
    code, _, err = cli(capfd, "pretrain", *chosen, "--out", tmp_path / "limit")
    assert code == 2
    assert "2 unreadable images so far, more than the limit of 1 of 42" in one_line(err)
    assert "--set data.max_unreadable=SHARE" in err


def test_a_run_that_failed_before_its_first_record_can_still_be_resumed(
    broken: Callable[[int], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, run = broken(2), tmp_path / "run"
    whole = digit_folder(tmp_path / "whole")
    chosen = assignments(folder, *PLACES["streaming"], "train.epochs=4", "train.log_every=100")
    code, _, err = cli(capfd, "pretrain", *words(chosen), "--out", run)
    assert code == 2
    assert "more than the limit" in one_line(err)
    for bad in sorted(folder.glob("train/*/*.png"))[:2]:
        shutil.copyfile(whole / bad.relative_to(folder), bad)
    # What has trained, and left pictures or checkpoints, is a run; what has not may begin again.
    resume = ["--resume"] if listing(run) - {".lock"} else words(chosen)
    code, out, err = cli(capfd, "pretrain", *resume, "--out", run, "--json")
    assert code == 0, err
    assert json.loads(out)["steps"] == 20


def test_a_resumed_run_remembers_unreadable_images(
    broken: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, run = broken(4), tmp_path / "run"
    chosen = (*PLACES["streaming"], "data.max_unreadable=0.2", "train.epochs=1")
    expected = train(folder, tmp_path / "whole", *chosen)["unreadable_images"]
    assert expected >= 3
    with monkeypatch.context() as patched:
        at_step(patched, 4, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(RunInterrupted):
            train(folder, run, *chosen)
    assert train(folder, run, resume=True)["unreadable_images"] == expected


def test_an_unreadable_held_out_image_is_named(
    broken: Callable[[int], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = broken(0)
    bad = sorted(folder.glob("test/*/*.png"))[0]
    bad.write_bytes(b"")
    chosen = words(assignments(folder, "train.epochs=1", "train.knn_every=1"))
    code, out, err = cli(capfd, "pretrain", *chosen, "--out", tmp_path / "run", "--json")
    assert code == 0, err
    assert str(bad) in err
    assert json.loads(out)["unreadable_images"] == 0


# -- no room


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("what", ["metrics.jsonl", "checkpoints", "encoder.safetensors", "result.json"])
def test_a_full_disk_ends_the_run_in_one_line(
    what: str, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    room = pytest.MonkeyPatch()
    if what == "metrics.jsonl":
        if not Path("/dev/full").exists():
            pytest.skip("needs /dev/full")
        create = RunDir.create

        def and_fill(self: RunDir, settings: Any) -> None:
            create(self, settings)
            (self.path / "metrics.jsonl").symlink_to("/dev/full")

        room.setattr(RunDir, "create", and_fill)
    elif what == "checkpoints":
        room.setattr(checkpoint, "write_synced", full)
    elif what == "encoder.safetensors":
        room.setattr(checkpoint, "write_bytes", full_for_encoder)
    else:
        write = RunDir._write

        def unless_result(self: RunDir, name: str, text: str) -> None:
            with pytest.MonkeyPatch.context() as patched:
                if name == "result.json":
                    patched.setattr(os, "fsync", full)
                write(self, name, text)

        room.setattr(RunDir, "_write", unless_result)
    chosen = words(assignments(digits, "train.epochs=1"))
    try:
        code, _, err = cli(capfd, "pretrain", *chosen, "--out", run)
    finally:
        room.undo()
    assert code == 1, err
    assert "No space left" in one_line(err)
    assert what in one_line(err)
    assert not [name for name in listing(run) if name.endswith(".partial")]
    # With room again the run goes on, or begins anew where it had not begun; it says which.
    if (run / "metrics.jsonl").is_symlink():
        (run / "metrics.jsonl").unlink()
    begun = (run / "settings.toml").exists()
    assert ("go on with --resume" in err) == begun
    assert ("then start again" in err) == (not begun)
    again = ["--resume"] if begun else chosen
    code, out, err = cli(capfd, "pretrain", *again, "--out", run, "--json")
    assert code == 0, err
    assert json.loads(out)["steps"] == 5


def full_for_encoder(path: Path, content: bytes, *advice: str) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", full)
        _write_bytes(path, content, *advice)


_write_bytes = write_bytes


def test_checkpoints_of_another_shape_are_refused(copied: Path, digits: Path) -> None:
    text = (copied / "settings.toml").read_text()
    (copied / "settings.toml").write_text(text.replace("embed_dim = 32", "embed_dim = 16"))
    (copied / "result.json").unlink()
    with pytest.raises(CheckpointError, match=r"embed_dim: 32, now 16; put it back"):
        train(digits, copied, resume=True)
    with pytest.raises(CheckpointError, match=r"do not fit: .* is \(.*32.*\), not \(.*16.*\)"):
        train(digits, copied, resume=True, accept_changes=True)


# -- learning


def test_the_loss_falls_on_real_images(cifar_folder: Path, tmp_path: Path) -> None:
    chosen = ("data.image_size=32", "backbone.patch_size=8", "train.epochs=8", "train.batch_size=20", "optim.lr=3e-3")
    result = train(cifar_folder, tmp_path / "run", *chosen, "train.knn_every=8")
    losses = [r["loss"] for r in records(tmp_path / "run") if "loss" in r]
    assert len(losses) == 80
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])
    assert 0.05 < result["knn_accuracy"] <= 1


@pytest.mark.slow
def test_the_quick_preset_learns(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = cli(capfd, "pretrain", "--epochs", "30", "--device", "cpu", "--out", tmp_path / "run", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["dataset"] == "digits"
    assert result["knn_accuracy"] > result["knn_accuracy_untrained"] + 0.1
    assert result["knn_accuracy"] > 0.75
