"""Two processes under torchrun, on the CPU with gloo: one process's results, one process's files, one fate."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from helpers import (
    SLOW_DRIVER,
    assignments,
    listing,
    records,
    start,
    steps_done,
    train,
    wait_until,
    words,
)
from safetensors.torch import load_file

from dsdmae_cli import checkpoint, distributed

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# Local batches of four in micro-batches of two; all that is random is on.
CHOSEN = (
    "train.micro_batch=2", "train.knn_every=1", "train.log_every=2", "backbone.depth=2", "backbone.drop_path=0.3",
    "data.shift=1", "method.noise_std=[0.5, 1.5]", "train.epochs=3",
)  # fmt: skip


# What still holds the process group when the interpreter ends aborts a process now and then.
LETS_GO = """
import gc, sys
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from dsdmae_cli.__main__ import main

try:
    main()
except SystemExit as ended:
    code = ended.code
held = [type(one).__name__ for one in gc.get_objects() if isinstance(one, (DistributedDataParallel, dist.ProcessGroup))]
sys.exit(code or (f"still there: {held}" if held else 0))
"""


@pytest.mark.slow
def test_two_processes_compute_what_one_does(digits: Path, tmp_path: Path) -> None:
    chosen = words(assignments(digits, *CHOSEN))
    driver = tmp_path / "driver.py"
    driver.write_text(LETS_GO)
    process = start(*TORCHRUN, driver, "pretrain", *chosen, "--out", tmp_path / "two", "--json")
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    train(digits, tmp_path / "one", *CHOSEN)
    # One object on stdout, one set of files: the second process says and writes nothing.
    assert json.loads(out) == json.loads((tmp_path / "two" / "result.json").read_text())
    assert listing(tmp_path / "two") == listing(tmp_path / "one")
    assert json.loads((tmp_path / "two" / "run.json").read_text())["world_size"] == 2

    ours, reference = (records(tmp_path / name) for name in ("two", "one"))
    assert [r["step"] for r in ours] == [r["step"] for r in reference]
    for mine, theirs in zip(ours, reference, strict=True):
        assert mine.keys() == theirs.keys()
        for key in mine.keys() - {"images_per_second", "knn"}:
            assert mine[key] == pytest.approx(theirs[key], rel=2e-4), (mine, theirs)
    weights, expected = (load_file(tmp_path / name / "encoder.safetensors") for name in ("two", "one"))
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=2e-4, msg=name)


def ranks(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that torchrun started."""
    return [child for child in psutil.Process(process.pid).children() if "pretrain" in child.cmdline()]


@pytest.mark.slow
def test_a_killed_rank_ends_all_and_a_signal_saves(digits: Path, tmp_path: Path) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(SLOW_DRIVER)
    run = tmp_path / "run"
    chosen = words(assignments(digits, "train.epochs=40", "train.checkpoint_every=1000"))
    first = start(*TORCHRUN, driver, "pretrain", *chosen, "--out", run)
    wait_until(lambda: steps_done(run) >= 2, first, seconds=180)
    both = ranks(first)
    assert len(both) == 2
    both[1].kill()
    killed = time.monotonic()
    _, err = first.communicate(timeout=120)
    assert time.monotonic() - killed < 60
    assert first.returncode != 0
    assert not [p for p in both if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    # The directory is free again: the next two take it over, and save when torchrun is told to stop.
    reached = steps_done(run)
    second = start(*TORCHRUN, driver, "pretrain", "--resume", "--out", run)
    # Nothing was saved, so it begins anew: the old lines go first.
    wait_until(lambda: steps_done(run) < reached or reached < 3, second, seconds=180)
    wait_until(lambda: steps_done(run) >= 3, second, seconds=180)
    second.send_signal(signal.SIGTERM)
    _, err = second.communicate(timeout=120)
    assert second.returncode != 0
    [saved] = checkpoint.newest_first(run / "checkpoints")
    step = int(saved.name.split("-")[1])
    assert step >= 3
    assert f"stopped by signal 15 and saved at step {step} of 200" in err
    assert checkpoint.load(saved).step == step
    assert records(run)[-1]["step"] == step

    # One process may finish what two began.
    assert train(digits, run, resume=True)["steps"] == 200
    assert [r["step"] for r in records(run)] == list(range(1, 201))


def test_without_torchrun_there_is_a_group_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(variable, raising=False)
    with distributed.process_group(torch.device("cpu")):
        assert (distributed.rank(), distributed.world_size(), distributed.local_rank()) == (0, 1, 0)
        assert distributed.from_main("mine") == "mine"
        assert distributed.highest(3) == 3
        assert distributed.mean_(torch.tensor([2.0])).tolist() == [2.0]
        assert distributed.max_(torch.tensor(5.0)).item() == 5


UNEVEN = """
import sys
from pathlib import Path
import torch
from dsdmae_cli import distributed
from toy import Listener, Toy, trainer

class Uneven(Toy):
    # Its loss is another in the second process's first step and infinite in its second, its gradient never.
    def forward(self, images, corruption):
        losses = super().forward(images, corruption)
        if distributed.rank() == 1 and self.steps < 2:
            losses["loss"] = losses["loss"] + (1, float("inf"))[self.steps]
        return losses

def main():
    # What holds the group must be gone before the interpreter ends, or gloo's threads abort it now and then.
    run = trainer(Uneven(), Listener(stop_at=3), micro=16, log_every=4)
    run.fit()
    weights = torch.cat([p.detach().flatten() for p in run.method.net.parameters()])
    [_, kept, _], [_, own, _] = run.state(), run.state(alone=True)
    [mean] = {value["window/loss"].item() for value in distributed.all_gathered(kept)}
    assert abs(mean - sum(value["window/loss"].item() for value in distributed.all_gathered(own)) / 2) < 1e-6
    assert mean != own["window/loss"].item()
    said = f"{int(run.skipped)} {weights.double().sum().item()} {mean}"
    Path(sys.argv[1], f"rank{distributed.rank()}").write_text(said)

with distributed.process_group(torch.device("cpu")):
    main()
"""


def test_what_is_not_finite_in_one_process_is_skipped_by_all(tmp_path: Path) -> None:
    """Gradients are averaged and so tell everyone; a loss tells its own process alone, were it not exchanged. And what
    a checkpoint keeps of a window that is open is the mean of all, since all go on with it."""
    script = tmp_path / "uneven.py"
    script.write_text(UNEVEN)
    here = Path(__file__).parent
    environ = {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])}
    process = start(*TORCHRUN, script, tmp_path, environ=environ)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    first, second = ((tmp_path / f"rank{rank}").read_text() for rank in (0, 1))
    assert first.split()[0] == "1"
    assert first == second


ASKERS = """
import sys
from types import SimpleNamespace
import torch
from dsdmae_cli import distributed
from dsdmae_cli.runs import asking

now = [0.0]
asking.time = SimpleNamespace(monotonic=lambda: now[0])
exchanged = []
highest = distributed.highest
distributed.highest = lambda value: exchanged.append(value) or highest(value)
with distributed.process_group(torch.device("cpu")):
    asked = asking.Asking(log_every=64)
    pace = 0.125 * (1 + distributed.rank())
    due = []
    for step in range(1, 101):
        now[0] += pace
        if asked.due(step):
            due.append(step)
    sys.stderr.write(f"rank {distributed.rank()}: {due} {len(exchanged)}\\n")
"""


@pytest.mark.slow
def test_processes_ask_for_signals_at_the_same_steps_and_not_at_each(tmp_path: Path) -> None:
    """One does eight steps a second and one four, by clocks of their own."""
    driver = tmp_path / "driver.py"
    driver.write_text(ASKERS)
    process = start(*TORCHRUN, driver)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    said = sorted(line.partition(": ")[2] for line in err.splitlines() if line.startswith("rank "))
    expected = [1, 2, 10, 18, 26, 34, 42, 50, 58, 64, 72, 80, 88, 96]
    assert said == [f"{expected} {len(expected)}"] * 2
