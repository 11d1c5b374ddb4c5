"""srun's tasks are the processes of one run; a batch job that SLURM stops is queued again and ends the same."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import assignments, digit_folder, words
from safetensors.torch import load_file

from dsdmae_cli import slurm
from dsdmae_cli.__main__ import _run
from dsdmae_cli.errors import SettingsError

TASK = {
    "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "6", "SLURM_STEP_NUM_TASKS": "6", "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1", "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
    "SLURM_STEP_NODELIST": "gpu[07-08,11]-a",
}  # fmt: skip


def test_a_task_of_several_takes_its_place() -> None:
    assert slurm.group(TASK) == {
        "RANK": "5", "WORLD_SIZE": "6", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "gpu07-a",
        "MASTER_PORT": str(20_000 + 4711 * 7 % 10_000),
    }  # fmt: skip
    chosen = slurm.group(TASK | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert (chosen["MASTER_ADDR"], chosen["MASTER_PORT"]) == ("10.0.0.1", "29500")
    other = slurm.group(TASK | {"SLURM_JOB_ID": "4712"})
    assert other["MASTER_PORT"] != slurm.group(TASK)["MASTER_PORT"]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {
            key: value for key, value in TASK.items() if not key.startswith("SLURM_STEP")
        },  # a batch script, salloc's shell
        TASK | {"SLURM_STEP_NUM_TASKS": "1"},  # srun --pty bash
        TASK | {"RANK": "0", "WORLD_SIZE": "2"},  # torchrun under srun
    ],
)
def test_what_is_no_group(environ: dict[str, str]) -> None:
    assert slurm.group(environ) == {}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node[03-05,9],login", "node03"),
        ("a,b", "a"),
        ("r[1-2]n[05,07]", "r1n05"),
        ("gpu[9]", "gpu9"),
        ("n[1,3]-x,n9", "n1-x"),
    ],
)
def test_the_first_node(nodes: str, first: str) -> None:
    assert slurm.first_host(nodes) == first


def test_variables_that_are_not_slurms_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SettingsError, match=r"did not set SLURM_LOCALID; launch with torchrun"):
        slurm.group({key: value for key, value in TASK.items() if key != "SLURM_LOCALID"})
    for key, value in (TASK | {"SLURM_STEP_TASKS_PER_NODE": "many"}).items():
        monkeypatch.setenv(key, value)
    assert _run(["pretrain", "--dry-run"]) == 2
    assert "error: srun's variables cannot be read (tasks per node 'many')" in capsys.readouterr().err
    assert _run(["cache"]) == 0  # a command of its own in each task


# -- a SLURM of one machine

CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmUser=root
SlurmdUser=root
SlurmctldPort={port}
SlurmdPort={other}
StateSaveLocation={at}/state
SlurmdSpoolDir={at}/spool
SlurmctldPidFile={at}/ctld.pid
SlurmdPidFile={at}/slurmd.pid
SlurmctldLogFile={at}/ctld.log
SlurmdLogFile={at}/slurmd.log
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SlurmdParameters=config_overrides
JobRequeue=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SLURM's two daemons, and munge's, for the time of a test; SLURM_CONF names them."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))):
        pytest.skip("needs root and Debian's slurm-wlm and munge")
    at = tmp_path / "slurm"
    for name in ("state", "spool"):
        (at / name).mkdir(parents=True)
    host = socket.gethostname().partition(".")[0]
    (at / "slurm.conf").write_text(CONF.format(host=host, port=_free_port(), other=_free_port(), at=at))
    monkeypatch.setenv("SLURM_CONF", str(at / "slurm.conf"))
    if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode != 0:
        Path("/run/munge").mkdir(exist_ok=True)
        shutil.chown("/run/munge", "munge", "munge")
        subprocess.run(["su", "-s", "/bin/sh", "munge", "-c", "munged --force"], check=True)
    daemons = [subprocess.Popen([name, "-D"], stderr=subprocess.DEVNULL) for name in ("slurmctld", "slurmd")]
    try:
        yield
    finally:
        subprocess.run(["scancel", "--user=root", "--signal=KILL"], capture_output=True, check=False)
        for daemon in daemons:
            daemon.kill()  # slurmd waits for its steps, which are being killed
            daemon.wait()


def documented_job(run: Path, arguments: list[str]) -> str:
    """The batch file of docs/clusters.md with twenty minutes, one node, and this command."""
    page = (Path(__file__).parents[2] / "docs/clusters.md").read_text(encoding="utf-8")
    block = re.search(r"```bash pretrain\.sbatch\n(.*?)```", page, flags=re.DOTALL)
    assert block is not None
    ours = f"{sys.executable} -m dsdmae_cli"
    text, changes = block[1], {
        "--nodes=2": "--nodes=1", "--ntasks-per-node=8": "--ntasks-per-node=2", "#SBATCH --gpus-per-node=8\n": "",
        "--cpus-per-task=12": "--cpus-per-task=1", "--time=04:00:00": "--time=20",
        "RUN=$SLURM_SUBMIT_DIR/runs/mine": f"RUN={run}",
        'dsdmae pretrain --resume --out "$RUN"': f'{ours} pretrain --resume --out "$RUN"',
        'dsdmae pretrain "$SLURM_SUBMIT_DIR/photos" --backbone vit-small --epochs 300 --out "$RUN"':
            f'{ours} pretrain {" ".join(arguments)} --out "$RUN"',
    }  # fmt: skip
    for before, after in changes.items():
        assert before in text, before
        text = text.replace(before, after)
    return text


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_job_that_slurm_stops_is_queued_again_and_ends_the_same(cluster: None, tmp_path: Path) -> None:
    images, run = digit_folder(tmp_path / "digits"), tmp_path / "run"
    chosen = words(assignments(images, "train.epochs=60", "train.log_every=1", "train.checkpoint_every=1000"))
    (tmp_path / "job.sbatch").write_text(documented_job(run, chosen))
    subprocess.run(["sbatch", "job.sbatch"], cwd=tmp_path, check=True)
    out, metrics = tmp_path / "slurm-1.out", run / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.read_text().count("\n") > 20, out)
    subprocess.run(["scancel", "--signal=TERM", "1"], check=True)  # what --signal=TERM@180 sends, at a moment of ours
    until(lambda: "stopped by signal 15" in out.read_text(), out)
    assert not (run / "result.json").exists()
    until((run / "result.json").exists, out)
    assert "resumed at step" in out.read_text()
    two = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dsdmae_cli")
    subprocess.run([*two, "pretrain", *chosen, "--out", tmp_path / "whole"], check=True, capture_output=True)
    ours, expected = (load_file(tmp_path / name / "encoder.safetensors") for name in ("run", "whole"))
    assert all(ours[key].equal(tensor) for key, tensor in expected.items())


def until(so: Callable[[], bool], out: Path) -> None:
    """Wait for it, 400 seconds at most; what the job has said tells what went wrong."""
    deadline = time.monotonic() + 400
    while not so():
        assert time.monotonic() < deadline, out.read_text()[-3000:] if out.exists() else "the job never began"
        time.sleep(1)
