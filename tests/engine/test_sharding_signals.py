"""A run whose weights are divided among processes is stopped by a signal to all of them, is saved, and goes on to the
very end of one that nothing stopped."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest
from helpers import SLOW_DRIVER, assignments, start, steps_done, untimed, wait_until, words
from test_distributed import TORCHRUN, ranks

from dsdmae_cli import checkpoint

pytestmark = [pytest.mark.faults, pytest.mark.slow]
CHOSEN = (
    "train.shard=full", "backbone.depth=2", "backbone.drop_path=0.3", "train.epochs=4", "train.checkpoint_every=1000"
)  # fmt: skip
# Each process notes by which code it ends.
DRIVER = SLOW_DRIVER.replace(
    "main(sys.argv[1:])",
    """
import os
from pathlib import Path
try:
    main(sys.argv[1:])
except SystemExit as ended:
    Path(os.environ["CODES"], os.environ["RANK"]).write_text(str(ended.code))
    raise
""",
)


@pytest.fixture(scope="module")
def whole(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    driver = folder / "driver.py"
    driver.write_text(DRIVER)
    chosen = words(assignments(digits, *CHOSEN))
    environ = {"CODES": str(folder)}
    process = start(*TORCHRUN, driver, "pretrain", *chosen, "--out", folder / "run", environ=environ)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "divided among 2 processes" in err
    return folder / "run"


@pytest.mark.parametrize(
    ("number", "whom"),
    [
        (signal.SIGTERM, "torchrun"),
        (signal.SIGTERM, "all"),  # as scancel, systemd: what torchrun passes on to its processes is an echo
        (signal.SIGINT, "torchrun"),  # as a terminal
    ],
)
def test_a_sharded_run_that_is_stopped_is_saved_and_goes_on_bitwise(
    number: signal.Signals, whom: str, whole: Path, digits: Path, tmp_path: Path
) -> None:
    run, driver = tmp_path / "run", tmp_path / "driver.py"
    driver.write_text(DRIVER)
    chosen, environ = words(assignments(digits, *CHOSEN)), {"CODES": str(tmp_path)}
    first = start(*TORCHRUN, driver, "pretrain", *chosen, "--out", run, environ=environ)
    wait_until(lambda: steps_done(run) >= 3, first, seconds=240)
    both = ranks(first)
    assert len(both) == 2
    for process in [*both, psutil.Process(first.pid)] if whom == "all" else [psutil.Process(first.pid)]:
        process.send_signal(number)
    _, err = first.communicate(timeout=120)
    by = "Ctrl-C" if number == signal.SIGINT else f"signal {int(number)}"
    [saved] = checkpoint.newest_first(run / "checkpoints")
    step = int(saved.name.split("-")[1])
    sentence = (
        f"dsdmae: stopped by {by} and saved at step {step} of 20; go on with: dsdmae pretrain --resume --out {run}"
    )
    assert err.count(sentence) == 1, err
    assert [(tmp_path / rank).read_text() for rank in "01"] == [str(128 + number)] * 2
    assert 3 <= step < 20

    second = start(*TORCHRUN, driver, "pretrain", "--resume", "--out", run, environ=environ)
    _, err = second.communicate(timeout=240)
    assert second.returncode == 0, err
    assert f"resumed at step {step}" in err
    assert untimed(run) == untimed(whole)
    for name in ("encoder.safetensors", "checkpoints/step-00000020/model.safetensors",
                 "checkpoints/step-00000020/training.safetensors"):  # fmt: skip
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
