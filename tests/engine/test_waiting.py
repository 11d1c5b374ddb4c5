"""Processes of one run wait for what the first one prepares longer than for a step, and go by its flags."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from helpers import assignments, words
from test_agreement import in_two

pytestmark = [pytest.mark.faults, pytest.mark.slow]
PATCH = """
    sys.argv += ["--set", "train.seed=7", "--set", "optim.lr=1"]
import time
from datetime import timedelta
from dsdmae_cli import distributed
from dsdmae_cli.recipes import pretrain
distributed._TIMEOUT = timedelta(seconds=3)  # of a step's exchanges
before = pretrain.open_all
def slow(settings):
    if os.environ["RANK"] == "0":
        time.sleep(8)
    return before(settings)
pretrain.open_all = slow
"""


def test_the_others_wait_for_the_first_and_go_by_its_flags(digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, err = in_two(tmp_path, PATCH, "pretrain", *words(assignments(digits, "train.epochs=1")), "--out", run)
    assert code == 0, err
    written = tomllib.loads((run / "settings.toml").read_text())
    assert (written["train"]["seed"], written["optim"]["lr"]) == (0, 1e-3)
    assert (run / "result.json").exists()
