"""Trackers: what they are told, that a resumed run goes on as the same, and that none of them costs a run."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import assignments, cli, one_line, words

from dsdmae_cli.errors import SettingsError
from dsdmae_cli.tracking import TrackedRun, final_figures, need

TINY = ("train.epochs=2", "train.log_every=4", "train.knn_every=1", "backbone.depth=1")
# Stands for a package that is not installed, and writes down what it is told. Tests marked `long` have the real ones.
RECORDING = """
import json, os
class errors:
    class UsageError(Exception): pass
def _note(what, **said):
    with open(os.environ["TOLD"], "a") as file:
        file.write(json.dumps({"what": what} | said) + "\\n")
class Image:
    def __init__(self, file): self.file = file
class Settings(dict):
    def __init__(self, **given): super().__init__(given)
class Summary:
    def update(self, values): _note("summary", values=values)
class Run:
    summary = Summary()
    def define_metric(self, name, **more): pass
    def log(self, values, step=None):
        if os.environ.get("BROKEN") == "log": raise ConnectionError("the server is\\naway")
        values = {k: os.path.basename(v.file) if isinstance(v, Image) else v for k, v in values.items()}
        _note("log", values=values, step=step)
    def finish(self, exit_code=0): _note("finish", exit_code=exit_code)
def init(**given):
    print("an advertisement")
    if os.environ.get("BROKEN") == "key": raise errors.UsageError("No API key configured.")
    if os.environ.get("BROKEN") == "init": raise ConnectionError("no route")
    _note("init", **{k: given.get(k) for k in ("project", "id", "name", "resume", "config")})
    return Run()
def finish(): _note("finish")
"""


@pytest.fixture(params=["wandb", "trackio"])
def recording(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a package that writes what it is told to told.jsonl, in the place of the real one."""
    name: str = request.param
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / f"{name}.py").write_text(RECORDING)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("TOLD", str(tmp_path / "told.jsonl"))
    monkeypatch.delenv(f"{name.upper()}_PROJECT", raising=False)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def told(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()]


def run_words(digits: Path, out: Path, *more: str) -> list[str]:
    return ["pretrain", *words(assignments(digits, *TINY)), "--out", str(out), *more]


def test_settings_figures_pictures_and_the_result_are_told(
    recording: str, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    code, said, err = cli(capfd, *run_words(digits, out, "--track", recording, "--json"))
    assert (code, err) == (0, "")
    result = json.loads(said)  # and no advertisement
    begun, *between = told(tmp_path)
    assert begun["project"] == "dsdmae"
    assert begun["config"]["train"]["epochs"] == 2
    assert begun["config"]["train"]["trackers"] == [recording]
    logged = [entry["values"] for entry in between if entry["what"] == "log"]
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    figures = [{k: v for k, v in values.items() if k != "step"} for values in logged if "epoch" in values]
    assert figures == [{k: v for k, v in record.items() if k != "step"} for record in records]
    pictures = [values["restored"] for values in logged if "restored" in values]
    assert pictures == sorted(file.name for file in (out / "figures").glob("restored-step-*.png"))
    last = between[-2]["values"]
    assert last["result/knn_accuracy"] == result["knn_accuracy"]
    assert between[-1]["what"] == "finish"


def test_a_resumed_run_goes_on_as_the_same(
    recording: str, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert cli(capfd, *run_words(digits, out, "--track", recording))[0] == 0
    (out / "result.json").unlink()
    for newest in sorted((out / "checkpoints").iterdir())[1:]:
        shutil.rmtree(newest)
    assert cli(capfd, "pretrain", "--resume", "--out", out)[0] == 0
    first, second = [entry for entry in told(tmp_path) if entry["what"] == "init"]
    assert first["resume"] == second["resume"] == "allow"
    key = "id" if recording == "wandb" else "name"
    assert first[key] == second[key] == json.loads((out / "trackers.json").read_text())[recording]
    assert first[key].startswith("run-")


@pytest.mark.parametrize("where", ["init", "log"])
def test_one_that_fails_is_a_warning(
    recording: str, where: str, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("BROKEN", where)
    code, _, err = cli(capfd, *run_words(digits, tmp_path / "run", "--track", recording, "--json"))
    [warning] = err.splitlines()
    assert code == 0
    assert f"tracker {recording} failed and is told no more: ConnectionError:" in warning
    assert (tmp_path / "run" / "result.json").is_file()


@pytest.mark.parametrize("recording", ["wandb"], indirect=True)
def test_a_missing_key_ends_a_run_before_it_trains(
    recording: str, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN", "key")
    code, _, err = cli(capfd, *run_words(digits, tmp_path / "run", "--track", recording))
    assert code == 2
    assert "No API key configured. (`wandb login`, or WANDB_MODE=offline" in one_line(err)
    assert not (tmp_path / "run").exists()


def test_a_package_that_is_not_here_is_named_with_its_extra(
    digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsdmae_cli.tracking.find_spec", lambda name: None)
    for name, extra in (("mlflow", "'dsdmae[mlflow]'"), ("tensorboard", "'dsdmae[tensorboard]'")):
        code, out, err = cli(capfd, *run_words(digits, tmp_path / "run", "--track", name))
        assert (code, out) == (2, "")
        assert extra in one_line(err)
        assert not (tmp_path / "run").exists()
    code, _, err = cli(capfd, *run_words(digits, tmp_path / "run", "--track", "wanbd"))
    assert code == 2
    assert "did you mean" in one_line(err)


def test_a_folder_of_its_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "somewhere_runs").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SettingsError, match="needs somewhere_runs, which is not here; pip install it"):
        need("somewhere", "somewhere_runs", "pip install it")


def test_a_probe_is_told_too(digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "probe"
    chosen = words([f"data.dataset=folder:{digits}", "data.image_size=16"])
    code, said, _ = cli(
        capfd, "probe", "pixels", *chosen, "--kind", "knn", "--track", "tensorboard", "--out", out, "--json"
    )
    assert code == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(out / "tensorboard"))
    read.Reload()
    [event] = read.Tensors("result/text_summary")
    assert f"| top1 | {json.loads(said)['top1']} |" in event.tensor_proto.string_val[0].decode()
    assert {"classes", "confusion"} <= set(read.Tags()["images"])


def test_tensorboard_has_each_step_once_after_a_resumption(
    digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    assert cli(capfd, *run_words(digits, out, "--track", "tensorboard"))[0] == 0
    (out / "result.json").unlink()
    for newest in sorted((out / "checkpoints").iterdir())[1:]:
        shutil.rmtree(newest)
    assert cli(capfd, "pretrain", "--resume", "--out", out)[0] == 0
    read = EventAccumulator(str(out / "tensorboard"), size_guidance={"images": 0})  # all of them
    read.Reload()
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [(record["step"], record["loss"]) for record in records if "loss" in record]
    found = [(event.step, event.value) for event in read.Scalars("loss")]
    assert [step for step, _ in found] == [step for step, _ in losses]
    assert [value for _, value in found] == pytest.approx([value for _, value in losses], rel=1e-6)
    assert [event.step for event in read.Images("restored")] == [0, 2, 5, 8, 10]


def test_numbers_of_a_result() -> None:
    result = {
        "run": "x",
        "top1": 0.5,
        "top1_interval": [0.4, 0.6],
        "final": {"loss": 1.0},
        "ok": True,
        "classes": [1, 2, 3],
    }
    assert final_figures(result) == {"top1": 0.5, "top1_interval.0": 0.4, "top1_interval.1": 0.6, "final.loss": 1.0}


def test_names_are_kept_apart(tmp_path: Path) -> None:
    one, two = (TrackedRun(name, tmp_path, "pretrain", {}, 0) for name in ("a", "b"))
    one.keep("1")
    two.keep("2")
    assert (one.identity(), two.identity()) == ("1", "2")
    (tmp_path / "trackers.json").write_text("{")
    assert one.identity() is None


# -- the real packages, which .ci/long installs


def real(digits: Path, tmp_path: Path, *names: str) -> Path:
    """A run with these trackers, stopped half-way and resumed, in processes of its own; its directory."""
    for name in names:
        pytest.importorskip(name, exc_type=ImportError)
    out = tmp_path / "run"
    environ = {
        **os.environ, "WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio"), "HOME": str(tmp_path),
        "MLFLOW_TRACKING_URI": "",
    }  # fmt: skip

    def dsdmae(*given: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "dsdmae_cli", *given], env=environ, capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr, done.stderr

    dsdmae(*run_words(digits, out, *(word for name in names for word in ("--track", name))))
    (out / "result.json").unlink()
    for newest in sorted((out / "checkpoints").iterdir())[1:]:
        shutil.rmtree(newest)
    dsdmae("pretrain", "--resume", "--out", str(out))
    return out


@pytest.mark.long
def test_trackio_keeps_it_in_its_store(digits: Path, tmp_path: Path) -> None:
    out = real(digits, tmp_path, "trackio")
    with sqlite3.connect(tmp_path / "trackio" / "dsdmae.db") as store:
        rows = store.execute("select run_name, step, metrics from metrics").fetchall()
        [config] = store.execute("select config from configs").fetchall()
    assert {name for name, _, _ in rows} == {json.loads((out / "trackers.json").read_text())["trackio"]}
    logged = {(step, value) for _, step, text in rows if (value := json.loads(text).get("loss")) is not None}
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert logged >= {(record["step"], record["loss"]) for record in records if "loss" in record}
    assert json.loads(config[0])["train"]["epochs"] == 2
    assert len(list((tmp_path / "trackio" / "media").rglob("*.png"))) >= 5
    result = json.loads((out / "result.json").read_text())
    assert any(json.loads(text).get("result/knn_accuracy") == result["knn_accuracy"] for _, _, text in rows)


@pytest.mark.long
def test_mlflow_keeps_it_in_the_run(digits: Path, tmp_path: Path) -> None:
    out = real(digits, tmp_path, "mlflow")
    with sqlite3.connect(out / "mlflow" / "mlflow.db") as store:
        [(run, status)] = store.execute("select run_uuid, status from runs").fetchall()
        losses = store.execute("select distinct step, value from metrics where key = 'loss'").fetchall()
        params = dict(store.execute("select key, value from params").fetchall())
    assert (run, status) == (json.loads((out / "trackers.json").read_text())["mlflow"], "FINISHED")
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert set(losses) >= {(record["step"], record["loss"]) for record in records if "loss" in record}
    assert params["train.epochs"] == "2"
    moments = {file.name for file in (out / "figures").glob("*-step-*.png")}
    assert {"restored-step-00000000.png", "patches-step-00000000.png"} <= moments
    assert {file.name for file in (out / "mlflow" / "artifacts").rglob("*.png")} >= moments


@pytest.mark.long
def test_wandb_keeps_it_offline(digits: Path, tmp_path: Path) -> None:
    out = real(digits, tmp_path, "wandb")
    files = sorted((out / "wandb").glob("offline-run-*/*.wandb"))
    name = json.loads((out / "trackers.json").read_text())["wandb"]
    assert {file.name for file in files} == {f"run-{name}.wandb"}
    content = b"".join(file.read_bytes() for file in files)
    result = json.loads((out / "result.json").read_text())
    for wanted in (b"knn", b"spread", b"result/knn_accuracy", json.dumps(result["knn_accuracy"]).encode()):
        assert wanted in content
    assert len(list((out / "wandb").rglob("media/images/restored_*.png"))) >= 5
