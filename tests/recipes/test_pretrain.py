"""`dsdmae pretrain` from end to end: what a run leaves, what it learns, and where it does not begin.

Stopping and going on is in test_resume.py, signals and other processes in test_pretrain_signals.py, images that cannot
be read in test_unreadable.py, disks without room in test_full_disk.py.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    assignments,
    cli,
    listing,
    one_line,
    records,
    train,
    untimed,
    words,
)
from PIL import Image
from small_runs import FIGURES, FILES, RANDOM, STEPS

from dsdmae_cli.errors import RunInterrupted
from dsdmae_cli.evaluation.closing import DIVERGED, wilson_interval
from dsdmae_cli.runs.observers import features
from dsdmae_cli.runs.run import Run

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
        "data_notes": [
            "train/ is learned from and test/ evaluated on",
            "classes 4, 6, 8, 9 have training images alone: no score speaks of them",
        ],
        "labels": "classes",
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


def test_features_that_are_not_finite_at_the_end_have_no_score(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The score of an epoch before is another network's."""
    measured = features.features_of

    def last_are_nan(run: Run, images: Any) -> Any:
        return measured(run, images) * (math.nan if run.trainer.step == run.trainer.total_steps else 1)

    monkeypatch.setattr(features, "features_of", last_are_nan)
    result = train(digits, tmp_path / "run", "train.epochs=2", "train.knn_every=1")
    assert "epoch 2: the features are not finite, and are not judged" in capfd.readouterr().err
    assert [record["epoch"] for record in records(tmp_path / "run") if "knn" in record] == [0, 1]
    judged = ("knn_accuracy", "knn_interval", "feature_rank", "feature_spread")
    assert [result[key] for key in judged] == [None] * len(judged)
    assert (result["closing"], result["measured"]) == (DIVERGED, {})
    assert result["final"]["loss"] > 0


def test_with_tensorboard_and_json(digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    chosen = words(assignments(digits, *RANDOM, "train.trackers=tensorboard", "method.lambda=0"))
    code, out, err = cli(capfd, "pretrain", *chosen, "--out", run, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads((run / "result.json").read_text())
    [events] = [name for name in listing(run) if name.startswith("tensorboard/")]
    # Without a decoder nothing is restored, and there is nothing to show but what patches are alike.
    pictures = {f"figures/{name}" for name in FIGURES if name.startswith("restored")}
    assert listing(run) == FILES - pictures | {"tensorboard", events}
    assert {"feature", "loss"} <= records(run)[-2].keys()
    assert "pixel" not in records(run)[-2]


def test_the_person_hears_that_a_signal_was_heard(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = []
    stepped = Run.stepped

    def and_stop(self: Run, now: int) -> None:
        stepped(self, now)
        heard.append(self.report.stopping())
        signal.raise_signal(signal.SIGTERM)
        heard.append(self.report.stopping())

    monkeypatch.setattr(Run, "stepped", and_stop)
    with pytest.raises(RunInterrupted):
        train(digits, tmp_path / "run", "train.epochs=1")
    assert heard == [False, True]


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
