"""What `dsdmae ablate` gives to the command that measures is checked before hours of training, not after them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import assignments, cli, one_line, words

from dsdmae_cli.errors import SettingsError

TINY = words([text for text in assignments("digits") if not text.startswith("train.knn_every")])
SWEEP = ("--sweep", "mask-ratio", "0.5,0.9")


@pytest.mark.parametrize(
    ("metric", "options", "said"),
    [
        ("linear", "--bogus 2", "--metric-options --bogus 2: No such option: --bogus"),
        ("linear", "--epochs", "requires an argument"),
        ("linear", "--epochs 0", "train.epochs = 0 (from --epochs) is not allowed"),
        ("linear", "there", "unexpected extra argument"),
        ("linear", "--epochs 'x", "no closing quotation"),
        ("linear", "--epochs 3 --help", "--help measures nothing"),
        ("linear", "--dry-run", "--dry-run is the study's to say"),
        ("linear:all", "--out here", "--out is the study's to say"),
        ("finetune", "--name mine", "--name is the study's to say"),
        ("finetune", "--resume", "--resume is the study's to say"),
        ("finetune", "--preset stronk", "did you mean strong?"),
        ("finetune", "--set optim.lrr=1", "unknown setting optim.lrr"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(
    metric: str, options: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = (*TINY, *SWEEP, "--metric", metric, "--metric-options", options)
    code, out, err = cli(capfd, "ablate", *given, "--out", tmp_path / "study")
    assert (code, out) == (SettingsError.exit_code, "")
    assert said in one_line(err)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("metric", "options"),
    [("finetune", "--preset strong --epochs 2 --set finetune.mixup=0.2"), ("ep", "--few-shot 5,10% --pool max")],
)
def test_right_ones_are_planned(
    metric: str, options: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSDMAE_PRESET", "quick")  # of the study: the command that measures is told nothing of it
    given = (*TINY, *SWEEP, "--metric", metric, "--metric-options", options, "--dry-run")
    code, out, err = cli(capfd, "ablate", *given, "--out", tmp_path / "study")
    assert code == 0, err
    assert "total: 2 runs to do" in out


def test_options_for_each_trials_own_network_are_left_to_it(capfd: pytest.CaptureFixture[str]) -> None:
    """The network that all share has no layer scale of BEiT's; one that is swept may."""
    given = ("--sweep", "backbone", "vit-tiny,beit-tiny", "--metric", "finetune", "--metric-options")
    code, _, err = cli(capfd, "ablate", *given, "--set backbone.nothing=1", "--dry-run")
    assert "backbone.nothing" not in err
    assert code == 0, err


@pytest.mark.parametrize("more", [(), ("--metric", "loss", "--also", "knn"), ("--metric", "linear", "--prune")])
def test_a_sweep_over_runs_without_knn_is_refused(more: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = cli(capfd, "ablate", *TINY, "--sweep", "train.knn_every", "none,1", *more, "--dry-run")
    assert code == SettingsError.exit_code
    assert "train.knn_every, " in one_line(err) or "train.knn_every is none" in one_line(err)


@pytest.mark.slow
def test_the_environments_settings_reach_what_measures_and_are_the_studys(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "study"
    given = (*TINY, *words(["train.knn_every=none", "train.epochs=1"]), "--sweep", "mask-ratio", "0.5")
    given = (*given, "--metric", "loss", "--also", "linear", "--seeds", "1", "--out", str(study))
    monkeypatch.setenv("DSDMAE_PROBE_POOL", "best")
    code, _, err = cli(capfd, "ablate", *given)
    assert code == 2
    assert "linear: probe.pool = 'best' (from environment variable DSDMAE_PROBE_POOL) is not allowed" in one_line(err)
    assert not study.exists()
    monkeypatch.setenv("DSDMAE_PROBE_POOL", "max")
    monkeypatch.setenv("DSDMAE_FINETUNE_MIXUP", "0.2")  # of a command that measures nothing here
    code, _, err = cli(capfd, "ablate", *given)
    assert code == 0, err
    [judged] = study.glob("trials/*-linear/settings.toml")
    assert 'pool = "max"' in judged.read_text()
    assert json.loads((study / "study.json").read_text())["environment"] == {"DSDMAE_PROBE_POOL": "max"}
    monkeypatch.delenv("DSDMAE_PROBE_POOL")
    code, _, err = cli(capfd, "ablate", *given)
    assert code == 2
    assert "measured with DSDMAE_PROBE_POOL=max in the environment, and now it has nothing" in one_line(err)


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("bogus", "cannot open the study in bogus: "),
        ("nonsense://x", "cannot open the study in nonsense://x: "),
        ("oracle://ann:secret@host/x", "there is no driver for oracle://ann:***@host/x here; install one for oracle"),
        ("sqlite:///no/such/folder/s.db", "there is no folder no/such/folder; make it"),
        ("sqlite:////dev/zero", "it is a device, no file"),
    ],
)
def test_a_dry_run_refuses_a_storage_that_the_run_would(
    storage: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = (*TINY, *SWEEP, "--metric", "loss", "--storage", storage, "--out", str(tmp_path / "study"))
    for more in ((), ("--dry-run",)):
        code, out, err = cli(capfd, "ablate", *given, *more)
        assert (code, out) == (2, ""), more
        assert said in err
        assert "secret" not in err


def test_a_dry_run_connects_to_nothing_and_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = (*TINY, *SWEEP, "--metric", "loss", "--storage", f"sqlite:///{tmp_path}/s.db", "--dry-run")
    code, out, err = cli(capfd, "ablate", *given, "--out", tmp_path / "study")
    assert code == 0, err
    assert f"connecting to sqlite:///{tmp_path}/s.db, which was not tried" in out
    assert list(tmp_path.iterdir()) == []
