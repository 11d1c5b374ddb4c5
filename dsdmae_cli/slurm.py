"""srun's tasks as the processes of one run: its variables in the words that torchrun has for them. Torch-free.

SLURM's own (man srun, OUTPUT ENVIRONMENT VARIABLES) are there in every task of a step; those of a step alone are read,
since a batch script, or a shell within an allocation, has the others too and is no process of a group.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from dsdmae_cli.errors import SettingsError

_FIRST_PORT, _PORTS = 20_000, 10_000
_ADVICE = "launch with torchrun, or set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT yourself"


def group(environ: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT of a task of a step of several.

    Nothing outside srun, in a step of one task, or where a launcher within srun (torchrun) has said RANK. MASTER_ADDR
    is the step's first node, MASTER_PORT comes from the number of the job and the step; either may be set before.

    Raises:
        SettingsError: the variables are not what SLURM writes.
    """
    if "RANK" in environ or environ.get("SLURM_STEP_NUM_TASKS", "1") == "1" or "SLURM_PROCID" not in environ:
        return {}
    try:
        node = int(environ["SLURM_NODEID"])
        job, step = (re.match(r"\d*", environ[key])[0] or "0" for key in ("SLURM_JOB_ID", "SLURM_STEP_ID"))  # type: ignore[index]
        return {
            "RANK": environ["SLURM_PROCID"],
            "WORLD_SIZE": environ["SLURM_STEP_NUM_TASKS"],
            "LOCAL_RANK": environ["SLURM_LOCALID"],
            "LOCAL_WORLD_SIZE": str(_tasks_of_nodes(environ["SLURM_STEP_TASKS_PER_NODE"])[node]),
            "MASTER_ADDR": environ.get("MASTER_ADDR") or first_host(environ["SLURM_STEP_NODELIST"]),
            "MASTER_PORT": environ.get("MASTER_PORT") or str(_FIRST_PORT + (int(job) * 7 + int(step)) % _PORTS),
        }
    except KeyError as missing:
        raise SettingsError(f"srun started several tasks but did not set {missing.args[0]}; {_ADVICE}") from missing
    except (ValueError, IndexError, TypeError) as error:
        raise SettingsError(f"srun's variables cannot be read ({error}); {_ADVICE}") from error


def first_host(nodes: str) -> str:
    """The first name of a list of nodes as SLURM shortens it: node[03-05,9]-a,login is node03-a."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes.strip())
    if first is None:
        raise ValueError(f"no node in {nodes!r}")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])


def _tasks_of_nodes(counts: str) -> list[int]:
    """Tasks of each node, from SLURM's 4(x2),3."""
    found: list[int] = []
    for part in counts.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            raise ValueError(f"tasks per node {counts!r}")
        found += [int(match[1])] * int(match[2] or 1)
    return found
